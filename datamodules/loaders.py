"""Loaders that know where they stand: sized iterables whose order and randomness are functions of (seed, epoch, batch).

A position is two numbers, (epoch, next batch). Nothing else needs saving: a loader that is given a position goes on bit for bit
as the one that was stopped there, whatever the number of workers. With several processes the order is drawn for the global batch
and each process keeps its own slice, so that R processes together see exactly the batches that one would see.
"""

import ctypes
import hashlib
import itertools
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from papermix.errors import UserError

Batch = dict[str, Tensor]


def mix(*numbers: int | str) -> int:
    """Return a 64-bit seed that depends on every one of ``numbers`` and on their order (BLAKE2b of their text)."""
    text = "/".join(map(str, numbers))
    # torch's CPU generator keeps the low 32 bits of a seed: a hash spreads every input over all bits
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(*numbers: int | str) -> torch.Generator:
    """Return a CPU generator seeded by :func:`mix` of ``numbers``: drawn there, numbers are the same for every device."""
    return torch.Generator().manual_seed(mix(*numbers))


class Loader:
    """A sized iterable of batches with a position. Subclasses give ``__len__`` and ``batches(epoch, first)``.

    A pass starts at the first batch of the current epoch; the pass after a full one is the next epoch. After
    ``load_state_dict`` the next pass goes on where the state was taken. ``set_epoch`` (called by Lightning before every epoch)
    moves to the start of another epoch and leaves the position alone when that epoch is the current one.

    Args:
        frozen: draw the randomness of epoch 0 in every epoch (to overfit some batches).
    """

    def __init__(self, frozen: bool = False):
        self.frozen = frozen
        self._epoch = 0
        self._next = 0
        self._resume = False
        self.batch_sampler = _EpochSetter(self)

    def __len__(self) -> int:
        """Batches per epoch."""
        raise NotImplementedError

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """Yield the batches ``first, first + 1, ...`` of ``epoch``."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Batch]:
        # a generator: this line runs at the first batch, after Lightning has set the epoch
        epoch, first = self._epoch, self._next if self._resume else 0
        self._resume = False
        last = len(self)
        for number, batch in enumerate(self.batches(0 if self.frozen else epoch, first), first + 1):
            self._epoch, self._next = (epoch, number) if number < last else (epoch + 1, 0)
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Move to the start of ``epoch``; does nothing when that is the current one, or the one whose end was loaded."""
        # Lightning names the old epoch when it goes on behind the last batch of it
        at_its_end = self._resume and (self._epoch, self._next) == (epoch + 1, 0)
        if epoch != self._epoch and not at_its_end:
            self._epoch, self._next, self._resume = epoch, 0, False

    def state_dict(self) -> dict[str, int]:
        """Return the position: the epoch and the batch that comes next."""
        return {"epoch": self._epoch, "batch": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a position that ``state_dict`` returned."""
        self._epoch, self._next, self._resume = state["epoch"], state["batch"], True


class _EpochSetter:
    """What Lightning looks for at ``loader.batch_sampler.sampler``. (At ``loader.sampler`` it would replace what it finds.)"""

    def __init__(self, loader: Loader):
        self.sampler = self
        self.set_epoch = loader.set_epoch


class IndexLoader(Loader):
    """Order, batches and shares of a set of ``examples`` that can be indexed.

    Args:
        examples: how many there are.
        batch_size: global batch size, over all processes.
        seed: of the order and of the augmentation.
        shuffle: draw a new permutation each epoch.
        drop_last: leave out the examples of an epoch that do not fill a batch. Otherwise every example comes exactly once:
            a last, smaller batch is shared out among the processes as evenly as it goes.
        rank, world: this process and the number of processes.
        name: of the split, for messages.

    Raises:
        UserError: no examples, a batch larger than the data, a batch or data that cannot be shared among the processes.
    """

    def __init__(
        self,
        examples: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
        frozen: bool = False,
        name: str = "train",
    ):
        super().__init__(frozen)
        check_batch(batch_size, world)
        if examples == 0:
            raise UserError(f"the {name} split is empty: check dataset.limit, dataset.val_fraction and the data folder")
        if drop_last and examples < batch_size:
            raise UserError(
                f"dataset.batch_size={batch_size} is larger than the {name} split of {examples} examples: "
                f"use dataset.batch_size={examples} or less"
            )
        if examples < world:
            raise UserError(f"the {name} split has {examples} examples, too few for {world} processes: use at most {examples}")
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.shuffle, self.drop_last, self.rank, self.world = shuffle, drop_last, rank, world
        full, rest = divmod(examples, batch_size)
        # a rest too small for one example a process joins the batch before it, so that all processes have as many batches
        self._batches = full if drop_last or rest < world else full + 1
        self._batches = max(self._batches, 1)

    def __len__(self) -> int:
        return self._batches

    def order(self, epoch: int) -> Tensor:
        """The indices of ``epoch`` in the order in which they come, int64 [examples]."""
        if not self.shuffle:
            return torch.arange(self.examples)
        return torch.randperm(self.examples, generator=generator(self.seed, "order", epoch))

    def share(self, number: int) -> "Share":
        """The part of global batch ``number`` that is this process's."""
        start = number * self.batch_size
        size = self.batch_size if self.drop_last or number < self._batches - 1 else self.examples - start
        return Share(start, size, size * self.rank // self.world, size * (self.rank + 1) // self.world)


@dataclass(frozen=True)
class Share:
    """Examples ``start + low`` to ``start + high`` of an epoch's order: this process's part of a global batch of ``size``."""

    start: int
    size: int
    low: int
    high: int


class Draw:
    """Random numbers for the examples of one global batch: drawn for all of them, cut to this process's share; on the CPU.

    Args:
        key: what the numbers are a function of, such as (seed, epoch, batch).
        share: this process's part.
        good: bool [share], which examples of the share are in the batch; None: all.
    """

    def __init__(self, key: tuple[int | str, ...], share: Share, good: Tensor | None = None):
        self.key, self.share, self.good = key, share, good

    @cached_property
    def generator(self) -> torch.Generator:
        """The CPU generator behind the draws, for numbers that belong to the whole batch."""
        return generator(*self.key)

    def uniform(self, *shape: int) -> Tensor:
        """Floats in [0, 1), [share, *shape]."""
        return self._cut(torch.rand(self.share.size, *shape, generator=self.generator))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Integers in [low, high), int64 [share, *shape]."""
        return self._cut(torch.randint(low, high, (self.share.size, *shape), generator=self.generator))

    def whole(self, count: int) -> list[float]:
        """``count`` floats in [0, 1) for the whole batch."""
        return torch.rand(count, generator=self.generator).tolist()

    def beta(self, alpha: float) -> float:
        """One number of Beta(alpha, alpha) for the whole batch."""
        seed = int(torch.randint(2**62, (), generator=self.generator))
        return random.Random(seed).betavariate(alpha, alpha)

    def _cut(self, numbers: Tensor) -> Tensor:
        numbers = numbers[self.share.low : self.share.high]
        return numbers if self.good is None else numbers[self.good]


Transform = Callable[[Batch, Draw], Batch]


class TensorLoader(IndexLoader):
    """Batches of tensors in memory, gathered and transformed on ``device``.

    Args:
        tensors: name -> tensor [examples, ...]; moved to ``device`` once. A batch has the same names and `index`, int64 [share].
        transform: ``transform(batch, draw) -> batch``, called on each share.
        device: where the tensors lie and the batches come from.
        others: see :class:`IndexLoader`.
    """

    def __init__(
        self,
        tensors: Batch,
        batch_size: int,
        *,
        transform: Transform | None = None,
        device: torch.device | str = "cpu",
        **others: Any,
    ):
        super().__init__(len(next(iter(tensors.values()))), batch_size, **others)
        self.device = torch.device(device)
        self.tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        self.transform = transform

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        order = self.order(epoch).to(self.device)
        for number in range(first, len(self)):
            share = self.share(number)
            index = order[share.start + share.low : share.start + share.high]
            batch = {name: tensor.index_select(0, index) for name, tensor in self.tensors.items()}
            batch["index"] = index
            if self.transform is not None:
                batch = self.transform(batch, Draw((self.seed, "batch", epoch, number), share))
            yield batch


@dataclass(frozen=True)
class Damaged:
    """What a worker returns in place of an example that it could not read."""

    path: str
    reason: str


def leave_out(bad: Damaged, damaged: dict[str, str], skip_bad: bool) -> None:
    """Note what is bad in ``damaged`` (path -> reason). Raises UserError, with file and cure, unless ``skip_bad``."""
    if not skip_bad:
        raise UserError(f"{bad.path} cannot be used ({bad.reason}): restore the file or set dataset.skip_bad=true")
    damaged[bad.path] = bad.reason


def warn_of(damaged: dict[str, str]) -> None:
    """Say how many examples were left out, and the last of them."""
    path, reason = next(reversed(damaged.items()))
    warnings.warn(f"damaged examples skipped so far: {len(damaged)}, such as {path} ({reason})", stacklevel=3)


def stack_images(images: list[Tensor]) -> Batch:
    """Images of one size as a batch."""
    return {"image": torch.stack(images)}


class WorkerLoader(IndexLoader):
    """Batches whose examples are read and transformed one by one in worker processes.

    The randomness of an example is a function of (seed, epoch, index), and that of a batch of (seed, epoch, batch), so the number
    of workers changes nothing but the speed, and a resumed epoch goes on with the very batches that were left.

    Args:
        read: ``read(index)`` -> an example or :class:`Damaged`; picklable, of a length where ``tensors`` is empty; may draw from
            torch's global generator, which is seeded around the call.
        tensors: name -> tensor [examples, ...] of what lies in memory (labels); stays in this process.
        collate: a list of examples -> the entries of a batch, in the worker; the default stacks images.
        workers: processes that read; 0 reads in this one.
        skip_bad: leave damaged examples out of their batch and note them in ``damaged``, instead of raising.
        damaged: path -> what is wrong with it, filled in; loaders may share one.
        others: see :class:`TensorLoader` and :class:`IndexLoader`.

    Raises:
        UserError: while iterating, a damaged example (without ``skip_bad``) or a batch of nothing else.
    """

    def __init__(
        self,
        read: Any,
        tensors: Batch,
        batch_size: int,
        *,
        collate: Callable[[list[Any]], Batch] = stack_images,
        workers: int = 0,
        transform: Transform | None = None,
        device: torch.device | str = "cpu",
        skip_bad: bool = False,
        damaged: dict[str, str] | None = None,
        **others: Any,
    ):
        super().__init__(len(next(iter(tensors.values()), read)), batch_size, **others)
        self.read, self.tensors, self.workers, self.transform = read, tensors, workers, transform
        self.collate, self.device, self.skip_bad = collate, torch.device(device), skip_bad
        self.damaged: dict[str, str] = {} if damaged is None else damaged

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        order = self.order(epoch)
        shares = [self.share(number) for number in range(first, len(self))]
        loader = DataLoader(
            _Reads(self.read, self.seed, epoch),
            batch_sampler=[order[s.start + s.low : s.start + s.high].tolist() for s in shares],
            num_workers=self.workers,
            collate_fn=partial(_sort_out, self.collate),
            pin_memory=self.device.type == "cuda",
            worker_init_fn=partial(_end_with, os.getpid()),
            # a generator of its own: else each pass would draw from the global one, and a resumed pass once more
            generator=torch.Generator(),
        )
        known = len(self.damaged)
        for number, share, (good, examples, damaged) in zip(itertools.count(first), shares, loader):
            for bad in damaged:
                leave_out(bad, self.damaged, self.skip_bad)
            if not good.any():
                if not self.drop_last:
                    continue  # an evaluation misses nothing by it
                raise UserError(f"all {len(good)} examples of a batch are damaged, such as {damaged[0].path}: check the folder")
            index = order[share.start + share.low : share.start + share.high][good]
            batch = {**examples, **{name: tensor[index] for name, tensor in self.tensors.items()}, "index": index}
            batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
            if self.transform is not None:
                batch = self.transform(batch, Draw((self.seed, "batch", epoch, number), share, good))
            yield batch
        if len(self.damaged) > known:
            warn_of(self.damaged)


def check_batch(batch_size: int, world: int) -> None:
    """Raise UserError unless ``batch_size`` is a positive whole number that ``world`` processes can share evenly."""
    if batch_size < 1:
        raise UserError(f"dataset.batch_size={batch_size} must be at least 1")
    if batch_size % world:
        below, above = batch_size // world * world, (batch_size // world + 1) * world
        cure = f"{below} or {above}" if below else str(above)
        raise UserError(f"dataset.batch_size={batch_size} (the global batch) cannot be shared by {world} processes: use {cure}")


class _Reads(Dataset):
    """``read`` under a seed of its own for every (seed, epoch, index); torch's global generator is left as it was."""

    def __init__(self, read: Any, seed: int, epoch: int):
        self.read, self.key = read, (seed, "example", epoch)

    def __getitem__(self, index: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix(*self.key, index))
            return self.read(index)


def _end_with(parent: int, worker: int) -> None:
    """Let this worker end with the process that reads from it. Torch's own watch misses a parent killed while the worker starts."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _sort_out(collate: Callable[[list[Any]], Batch], examples: list[Any]) -> tuple[Tensor, Batch, list[Damaged]]:
    """Return which examples are good (bool [share]), the batch of the good ones, and what is said of the others."""
    good = [example for example in examples if not isinstance(example, Damaged)]
    damaged = [example for example in examples if isinstance(example, Damaged)]
    which = torch.tensor([not isinstance(example, Damaged) for example in examples])
    return which, collate(good) if good else {}, damaged
