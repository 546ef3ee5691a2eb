"""Text as long streams of tokens: language modelling by characters or by words."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from datamodules import corpora, vocabulary
from datamodules.base import DataModule
from datamodules.loaders import Batch, IndexLoader, Loader, check_batch, generator
from datamodules.vocabulary import Vocabulary
from papermix.errors import UserError

# target of a place that holds no token to be predicted: what torch's cross entropy ignores
PADDING = -100
# tokens of train, val, test: as published for the Penn Treebank, ends of lines added; as in Python 3.11 for its documentation
SIZES = {
    ("pydocs", "char"): (418_788, 23_102, 23_156),
    ("pydocs", "word"): (98_690, 5_307, 4_852),
    ("ptb", "char"): (5_059_551, 396_413, 446_184),
    ("ptb", "word"): (929_589, 73_760, 82_430),
}


class StreamLoader(Loader):
    """A text as ``batch_size`` parallel streams, read side by side in chunks of ``seq_len`` tokens.

    A batch holds `tokens` int64 [rows, T], `target` int64 [rows, T] (the token that follows each), and `fresh` bool [rows]: true
    in the first chunk, where a carried hidden state must be zeroed. Chunk c + 1 goes on where chunk c ended, row by row. The
    text is read as if an end of line stood before it, so that its first token is predicted as well.

    Args:
        text: token numbers, int64 [N].
        before: number of the token that stands before the text.
        batch_size: streams over all processes; each takes an equal share of the rows.
        seq_len: T.
        whole: every token is predicted exactly once: streams differ in length by one token at most, the target of the missing one
            is -100, and chunks have nearly equal lengths up to ``seq_len``. Otherwise all streams and chunks are equally long,
            and less than batch_size * seq_len tokens at the end of the streams are left out.
        random_start: read the text as a ring, from a place drawn from (seed, epoch): cuts and chunks differ between epochs.
        device: where the text lies and the batches come from.

    Raises:
        UserError: a text too short for the streams; streams that the processes cannot share.
    """

    def __init__(
        self,
        text: Tensor,
        before: int,
        batch_size: int,
        seq_len: int,
        *,
        whole: bool = False,
        random_start: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        frozen: bool = False,
        name: str = "train",
    ):
        super().__init__(frozen)
        check_batch(batch_size, world)
        size, least = len(text), 1 if whole else seq_len
        if size < batch_size * least:
            key = "eval_batch_size" if whole else "batch_size"
            cures = [f"at most {size // least} streams"] * (size >= least) + ["a smaller dataset.seq_len"] * (not whole)
            raise UserError(
                f"the {name} text of {size} tokens is too short for dataset.{key}={batch_size} streams of {least} or more each: "
                f"take {', '.join([*cures, 'a larger dataset.limit'])}."
            )
        self.tokens, self.target = (part.to(device) for part in _pairs(text, before))
        self.random_start, self.seed = random_start, seed
        streams = torch.arange(batch_size + 1, device=device)
        edges = size * streams // batch_size if whole else size // batch_size * streams
        mine = slice(batch_size * rank // world, batch_size * (rank + 1) // world)
        # [rows, 1]: where each of this process's streams starts and ends in the text
        self.starts, self.ends = edges[:-1, None][mine], edges[1:, None][mine]
        if whole:
            longest = -(-size // batch_size)
            chunks = -(-longest // seq_len)
            self.cuts = [longest * chunk // chunks for chunk in range(chunks + 1)]
        else:
            self.cuts = list(range(0, size // batch_size + 1, seq_len))

    def __len__(self) -> int:
        return len(self.cuts) - 1

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        size, device = len(self.tokens), self.tokens.device
        start = _start(size, self.seed, epoch) if self.random_start else 0
        for chunk in range(first, len(self)):
            place = self.starts + torch.arange(self.cuts[chunk], self.cuts[chunk + 1], device=device)
            where = (place + start) % size
            yield {
                "tokens": self.tokens[where],
                "target": self.target[where].masked_fill_(place >= self.ends, PADDING),
                "fresh": torch.full((len(where),), chunk == 0, device=device),
            }


class WindowLoader(IndexLoader):
    """A text as separate windows of ``seq_len`` tokens, for models without a carried state.

    A batch holds `tokens` int64 [rows, T], `target` int64 [rows, T] and `fresh` bool [rows], always true.

    Args:
        text, before, seq_len, random_start, device: see :class:`StreamLoader`.
        batch_size: windows over all processes.
        stride: tokens that a window predicts, its last ones; those before them are context with the target -100. Less than
            ``seq_len`` predicts every token from a longer context, at a higher price. Every token is predicted exactly once,
            unless ``drop_last`` leaves out windows that do not fill a batch.
        others: seed, shuffle, drop_last, rank, world, frozen, name of :class:`IndexLoader`.

    Raises:
        UserError: a text shorter than a window, and as :class:`IndexLoader`.
    """

    def __init__(
        self,
        text: Tensor,
        before: int,
        batch_size: int,
        seq_len: int,
        *,
        stride: int | None = None,
        random_start: bool = False,
        device: torch.device | str = "cpu",
        drop_last: bool = False,
        name: str = "train",
        **others: Any,
    ):
        size, self.seq_len, self.stride, self.random_start = len(text), seq_len, stride or seq_len, random_start
        if size < seq_len:
            raise UserError(f"the {name} text of {size} tokens is shorter than a window of dataset.seq_len={seq_len}: lower it.")
        windows = size // self.stride if drop_last else -(-size // self.stride)
        super().__init__(windows, batch_size, drop_last=drop_last, name=name, **others)
        self.tokens, self.target = (part.to(device) for part in _pairs(text, before))

    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        size, device = len(self.tokens), self.tokens.device
        start = _start(size, self.seed, epoch) if self.random_start else 0
        order = self.order(epoch).to(device)
        for number in range(first, len(self)):
            share = self.share(number)
            # [rows, 1]: the first token that each window predicts
            predicted = self.stride * order[share.start + share.low : share.start + share.high, None]
            begin = (predicted + self.stride - self.seq_len).clamp(0, size - self.seq_len)
            place = begin + torch.arange(self.seq_len, device=device)
            where = (place + start) % size
            yield {
                "tokens": self.tokens[where],
                "target": self.target[where].masked_fill_((place < predicted) | (place >= predicted + self.stride), PADDING),
                "fresh": torch.ones(len(where), dtype=torch.bool, device=device),
            }


def _pairs(text: Tensor, before: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a text: each token, and the one ahead of it."""
    return torch.cat([text.new_tensor([before]), text[:-1]]), text


def _start(size: int, seed: int, epoch: int) -> int:
    return int(torch.randint(size, (), generator=generator(seed, "start", epoch)))


class Text(DataModule):
    """A corpus as batches of tokens. Batches: see :class:`StreamLoader` and :class:`WindowLoader`.

    Args:
        corpus: "pydocs" (Python's own documentation, nothing to download) or "ptb" (Penn Treebank, files in ``root``).
        unit: what a token is, "char" or "word".
        vocab_size: number of different tokens; checked against the corpus. For "pydocs" by words it is a choice: so many of the
            most frequent words of the training text, <unk> and <eos> included. The characters of "pydocs" are a fixed alphabet.
        batch_size: streams (or windows) per optimizer step over all processes.
        seq_len: tokens per stream and step.
        eval_batch_size: streams (or windows) side by side in validation and test. Fewer streams begin without context less often.
        order: "stream" reads on from step to step, for carried hidden states; "shuffled" draws separate windows in random order.
        random_start: start each training epoch at another place of the text.
        eval_stride: with "shuffled", new tokens per window in validation and test (null: seq_len).
        min_count: words that occur less often in the training text are <unk>.
        root: folder of the files of "ptb".
        split_seed: of the division of "pydocs" into train, val and test.
        fake: random tokens, as many as the corpus has.
        limit: so many tokens at the start of each split (null: all).
        seed: of the order.

    Raises:
        UserError: a vocabulary of another size, missing files, a text too short for the batch, values out of range.
    """

    def __init__(
        self,
        corpus: Literal["pydocs", "ptb"],
        unit: Literal["char", "word"],
        vocab_size: int,
        batch_size: int,
        seq_len: int,
        eval_batch_size: int = 8,
        order: Literal["stream", "shuffled"] = "stream",
        random_start: bool = True,
        eval_stride: int | None = None,
        min_count: int = 1,
        root: str = "data/ptb",
        split_seed: int = 0,
        fake: bool = False,
        limit: int | None = None,
        seed: int = 0,
    ):
        super().__init__(batch_size, fake=fake, limit=limit, seed=seed)
        for key, value in {"seq_len": seq_len, "eval_batch_size": eval_batch_size, "min_count": min_count}.items():
            if value < 1:
                raise UserError(f"dataset.{key}={value} must be at least 1.")
        if eval_stride is not None and (order == "stream" or not 1 <= eval_stride <= seq_len):
            raise UserError(
                f"dataset.eval_stride={eval_stride} must be null with dataset.order=stream, which carries its context."
                if order == "stream"
                else f"dataset.eval_stride={eval_stride} must lie between 1 and dataset.seq_len={seq_len}."
            )
        self.corpus, self.unit, self.vocab_size, self.min_count = corpus, unit, vocab_size, min_count
        self.seq_len, self.eval_batch_size, self.eval_stride = seq_len, eval_batch_size, eval_stride
        self.order, self.random_start, self.root, self.split_seed = order, random_start, root, split_seed
        self.vocabulary: Vocabulary
        self.texts: dict[str, Tensor] = {}

    def load(self) -> None:
        if self.fake:
            self.vocabulary = _placeholders(self.vocab_size, self.unit)
            for split, size in zip(corpora.SPLITS, SIZES[self.corpus, self.unit]):
                size = min(size, self.limit or size)
                self.texts[split] = torch.randint(self.vocab_size, (size,), generator=generator(self.split_seed, split))
            return
        texts = corpora.ptb(self.root, self.unit) if self.corpus == "ptb" else corpora.pydocs(self.unit, self.split_seed)
        self.vocabulary = self._vocabulary(texts["train"])
        if len(self.vocabulary) != self.vocab_size:
            size = len(self.vocabulary)
            raise UserError(
                f"dataset.vocab_size={self.vocab_size} does not fit: {self.corpus} has {size} different {self.unit}s"
                f"{f' that occur at least {self.min_count} times' if self.min_count > 1 else ''}; set dataset.vocab_size={size}."
            )
        self.texts = {split: self.vocabulary.encode(text)[: self.limit] for split, text in texts.items()}

    def _vocabulary(self, train: str) -> Vocabulary:
        if self.unit == "word":
            return vocabulary.words(train, self.min_count, self.vocab_size if self.corpus == "pydocs" else None)
        if self.corpus == "pydocs":
            return Vocabulary([vocabulary.UNK, *vocabulary.ALPHABET], "char")
        return vocabulary.characters(train)

    def loader(self, split: str) -> Loader:
        train, text, before = split == "train", self.texts[split], self.vocabulary.line_end
        batch_size = self.batch_size if train else self.eval_batch_size
        if batch_size % self.world:
            raise UserError(
                f"dataset.eval_batch_size={batch_size} cannot be shared by {self.world} processes: take a multiple of it."
            )
        common: dict[str, Any] = {"seed": self.seed, "random_start": train and self.random_start, "name": split}
        common |= {"rank": self.rank, "world": self.world, "device": self.device, "frozen": self.frozen}
        if self.order == "stream":
            return StreamLoader(text, before, batch_size, self.seq_len, whole=not train, **common)
        stride = None if train else self.eval_stride
        return WindowLoader(text, before, batch_size, self.seq_len, stride=stride, shuffle=train, drop_last=train, **common)

    def encode(self, text: str) -> Tensor:
        """Return the token numbers of ``text``, int64 [tokens]."""
        return self.vocabulary.encode(text)

    def decode(self, tokens: Tensor) -> str:
        """Return the text of token numbers [tokens]."""
        return self.vocabulary.decode(tokens)


def _placeholders(size: int, unit: str) -> Vocabulary:
    """Symbols for random tokens."""
    if unit == "char":
        return Vocabulary(["\n", *(chr(ord("!") + i) for i in range(size - 1))], unit)
    return Vocabulary([vocabulary.UNK, vocabulary.EOS, *(f"w{i}" for i in range(2, size))], unit)
