"""Episodes cut into segments: rows of a batch read on from segment to segment, each with an episode of its own."""

import heapq
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from datamodules.base import DataModule
from datamodules.loaders import Batch, Loader, check_batch, mix
from papermix.errors import UserError

# episodes that are drawn at once; how many such chunks are kept
CHUNK, KEPT = 64, 4


class Source(Protocol):
    """The episodes of a split, by number."""

    def order(self, epoch: int) -> Tensor:
        """Numbers of the episodes of an epoch in the order in which they come, int64 [episodes]; always as many."""

    def lengths(self, numbers: Tensor) -> Tensor:
        """Steps of episodes, int64 [n]; the multiset over an epoch is the same for all epochs."""

    def episodes(self, numbers: Tensor) -> Batch:
        """What is kept of episodes while they are read, tensors [n, ...] in main memory, of the same shapes for all episodes."""

    def segment(self, held: Batch, steps: Tensor) -> Batch:
        """Entries of a batch, [rows, T, ...]: the steps ``steps`` (int64 [rows, T], clamped to the longest episode) of what is held."""


class SegmentLoader(Loader):
    """Episodes read in segments of at most ``seq_len`` steps by ``batch_size`` rows (truncated back-propagation through time).

    Each episode goes to the row that is free first, and is read there to its end, one segment a batch. A batch holds what
    :meth:`Source.segment` gives, and

    - `asked` bool [rows, T]: the steps that have a loss; false behind the end of an episode, and in rows that have none;
    - `fresh` bool [rows]: an episode begins here, a carried state must be zeroed;
    - `index` int64 [rows]: the number of the episode, -1 in a row without one.

    T is the longest segment of the batch, the same for all processes. A position within an epoch is all that resuming needs, also
    in the middle of episodes: what an episode holds is a function of its number.

    Args:
        source: the episodes.
        batch_size: rows over all processes; each takes an equal share.
        seq_len: steps of a segment.
        whole: every episode is read to its end: some rows may run empty first. Otherwise episodes of equal length that do not
            fill all rows are left out, and of episodes of different lengths the last segments of the longest rows.
        device: where batches are made.

    Raises:
        UserError: fewer episodes than rows (without ``whole``), no episodes, rows that the processes cannot share.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seq_len: int,
        *,
        whole: bool = False,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        frozen: bool = False,
        name: str = "train",
    ):
        super().__init__(frozen)
        check_batch(batch_size, world)
        self.source, self.rows, self.seq_len, self.device = source, batch_size, seq_len, torch.device(device)
        self.mine = slice(batch_size * rank // world, batch_size * (rank + 1) // world)
        order = source.order(0)
        if not len(order):
            raise UserError(f"the {name} split is empty: check dataset.limit and the numbers of episodes")
        if not whole and len(order) < batch_size:
            raise UserError(
                f"dataset.batch_size={batch_size} is larger than the {name} split of {len(order)} episodes: "
                f"use dataset.batch_size={len(order)} or less"
            )
        parts = self._parts(order)
        if whole:
            self._batches = len(self.table(order)[0])
        elif len(set(parts)) == 1:
            self._batches = parts[0] * (len(parts) // batch_size)
        else:
            self._batches = sum(parts) // batch_size

    def __len__(self) -> int:
        return self._batches

    def _parts(self, order: Tensor) -> list[int]:
        return (-(-self.source.lengths(order) // self.seq_len)).tolist()

    def table(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """Which episode each row reads in each batch, and which of its segments: int64 [batches, rows], -1 for none."""
        parts = self._parts(order)
        free = [(0, row) for row in range(self.rows)]
        plan = []
        for episode, count in zip(order.tolist(), parts):
            start, row = heapq.heappop(free)
            plan.append((episode, start, row, count))
            heapq.heappush(free, (start + count, row))
        table = np.full((2, max(start for start, _ in free), self.rows), -1)
        for episode, start, row, count in plan:
            table[0, start : start + count, row] = episode
            table[1, start : start + count, row] = np.arange(count)
        episodes, segments = torch.from_numpy(table)
        return episodes, segments

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        episodes, segments = self.table(self.source.order(epoch))
        reading = torch.full((self.mine.stop - self.mine.start,), -1)
        held: Batch = {}
        for number in range(first, len(self)):
            lengths = self.source.lengths(episodes[number].clamp(min=0)).where(episodes[number] >= 0, 0)
            left = (lengths - segments[number].clamp(min=0) * self.seq_len).clamp(0, self.seq_len)
            steps = int(left.max().clamp(min=1))
            mine, part, left = episodes[number][self.mine], segments[number][self.mine], left[self.mine]
            new = ((mine != reading) & (mine >= 0)).nonzero()[:, 0]
            if len(new) or not held:
                self._hold(held, new, self.source.episodes(mine[new]))
                reading[new] = mine[new]
            where = part.clamp(min=0)[:, None] * self.seq_len + torch.arange(steps)
            batch = self.source.segment(held, where.to(self.device))
            there = (torch.arange(steps) < left[:, None]).to(self.device)
            batch["asked"] = batch["asked"] & there
            batch["fresh"] = (part <= 0).to(self.device)
            batch["index"] = mine.to(self.device)
            yield batch

    def _hold(self, held: Batch, rows: Tensor, new: Batch) -> None:
        """Put new episodes into their rows."""
        for name, values in new.items():
            if name not in held:
                held[name] = torch.zeros(
                    self.mine.stop - self.mine.start, *values.shape[1:], dtype=values.dtype, device=self.device
                )
            held[name][rows.to(self.device)] = values.to(self.device)


class Drawn:
    """Episodes of equal length that are drawn, in chunks that are a function of a key and the chunk's number.

    Args:
        key: what the episodes are a function of, besides their numbers.
        count: episodes of an epoch.
        length: steps of an episode.
        endless: new episodes in every epoch, instead of the same ones.
    """

    def __init__(self, key: tuple[int | str, ...], count: int, length: int, endless: bool):
        self.key, self.count, self.length, self.endless = key, count, length, endless
        self._chunks: dict[int, Batch] = {}

    def draw(self, random: np.random.Generator, count: int) -> Batch:
        """``count`` episodes, tensors [count, ...]."""
        raise NotImplementedError

    def order(self, epoch: int) -> Tensor:
        """See :class:`Source`."""
        return torch.arange(self.count) + (epoch * self.count if self.endless else 0)

    def lengths(self, numbers: Tensor) -> Tensor:
        """See :class:`Source`."""
        return torch.full_like(numbers, self.length)

    def episodes(self, numbers: Tensor) -> Batch:
        """See :class:`Source`."""
        numbers, empty = (numbers, False) if len(numbers) else (torch.zeros(1, dtype=torch.int64), True)
        chunk = numbers // CHUNK
        out: Batch = {}
        for one in chunk.unique().tolist():
            which = (chunk == one).nonzero()[:, 0]
            for name, values in self._chunk(one).items():
                if name not in out:
                    out[name] = torch.empty(len(numbers), *values.shape[1:], dtype=values.dtype)
                out[name][which] = values[numbers[which] % CHUNK]
        # a process that has no episode yet needs the shapes
        return {name: values[:0] for name, values in out.items()} if empty else out

    def _chunk(self, number: int) -> Batch:
        if number not in self._chunks:
            while len(self._chunks) >= KEPT:
                del self._chunks[next(iter(self._chunks))]
            self._chunks[number] = self.draw(np.random.default_rng(mix(*self.key, number)), CHUNK)
        return self._chunks[number]


def at(values: Tensor, steps: Tensor) -> Tensor:
    """The steps ``steps`` [rows, T] of ``values`` [rows, length, ...], [rows, T, ...]; those beyond the end are the last one."""
    rows = torch.arange(len(steps), device=steps.device)[:, None]
    return values[rows, steps.clamp(max=values.shape[1] - 1)]


class SequenceData(DataModule):
    """Base of datamodules for networks with a memory. Subclasses give ``load`` (which fills ``sources``).

    A batch holds `frames` float32 [B, T, *in_shape]; `query` float32 [B, T, *query_shape], if there is one; `target`; and what
    :class:`SegmentLoader` adds: `asked`, `fresh`, `index`.

    Args:
        in_shape, query_shape, out_shape: of one step of the frames, the query (None: none) and the network's output; [C, H, W] or [D].
        batch_size: episodes side by side, over all processes.
        seq_len: steps of a segment: gradients flow back no farther, the state is carried on.
        fake, limit, seed: see :class:`datamodules.base.DataModule`.
    """

    def __init__(
        self,
        *,
        in_shape: Sequence[int],
        query_shape: Sequence[int] | None,
        out_shape: Sequence[int],
        batch_size: int,
        seq_len: int,
        fake: bool = False,
        limit: int | None = None,
        seed: int = 0,
    ):
        super().__init__(batch_size, fake=fake, limit=limit, seed=seed)
        self.shapes = {"in_shape": in_shape, "query_shape": query_shape, "out_shape": out_shape}
        self.seq_len = seq_len
        self.sources: dict[str, Source] = {}

    def check_shapes(self, **own: tuple[int, ...] | None) -> None:
        """Raise UserError where a shape that the config states is not the data's own."""
        for key, shape in own.items():
            given = self.shapes[key]
            if (None if given is None else list(given)) != (None if shape is None else list(shape)):
                says = "null" if shape is None else list(shape)
                raise UserError(f"dataset.{key}={'null' if given is None else list(given)} must be {says} with these settings")

    def loader(self, split: str) -> SegmentLoader | None:
        if split not in self.sources:
            return None
        settings: dict[str, Any] = {"rank": self.rank, "world": self.world, "device": self.device, "frozen": self.frozen}
        return SegmentLoader(self.sources[split], self.batch_size, self.seq_len, whole=split != "train", name=split, **settings)


class DrawnData(SequenceData):
    """Base of datamodules whose episodes are drawn. Subclasses give ``source``.

    Training sees new episodes in every epoch, a function of ``seed``; those of validation and test are always the same.

    Args:
        train_episodes: how many a training epoch has.
        val_episodes, test_episodes: how many there are; 0: no such split.
        data_seed: of the episodes of validation and test.
        others: see :class:`SequenceData`.
    """

    def __init__(self, *, train_episodes: int, val_episodes: int, test_episodes: int, data_seed: int = 0, **others: Any):
        super().__init__(**others)
        for key, value, least in (("train", train_episodes, 1), ("val", val_episodes, 0), ("test", test_episodes, 0)):
            if value < least:
                raise UserError(f"dataset.{key}_episodes={value} must be at least {least}")
        self.counts = {"train": train_episodes, "val": val_episodes, "test": test_episodes}
        self.data_seed = data_seed

    def source(self, split: str, key: tuple[int | str, ...], count: int, endless: bool) -> Source:
        """The episodes of a split; see :class:`Drawn`."""
        raise NotImplementedError

    def load(self) -> None:
        for split, count in self.counts.items():
            train = split == "train"
            if self.fake:
                count = self.limit or self.batch_size * (4 if train else 1)
            count = min(count, self.limit or count)
            key = (type(self).__name__, split, self.data_seed, *((self.seed,) if train else ()))
            if count:
                self.sources[split] = self.source(split, key, count, train)
