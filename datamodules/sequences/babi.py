"""The bAbI tasks (Weston et al. 2016): questions about small stories, in their official text files, word by word.

Words are lower-case; `.` and `?` are words of their own. After a question come as many answer slots `-` as its answer has words; there
the network is to name them (as in Graves et al. 2016).
"""

import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.loaders import Batch, Damaged, generator, leave_out, mix
from datamodules.readers import damaged, first
from datamodules.sequences.base import SequenceData, at
from datamodules.splits import stratified, validation_count
from papermix.errors import UserError

TASKS = 20
ARCHIVE, SIZE = "babi_tasks_1-20_v1-2.tar.gz", 11_745_123
# a copy that answers where the publisher's own page (thespermwhale.com/jaseweston/babi) does not
URL = f"https://s3.amazonaws.com/text-datasets/{ARCHIVE}"
FOLDER = "tasks_1-20_v1-2"
NAMES = (FOLDER, ARCHIVE, f"{FOLDER}.tar.gz")
FILE = re.compile(r"qa(\d+)_(?:.+_)?(train|test)\.txt")
SLOT = "-"
# words of a fake story, and how many stand between two of its questions
FAKE_LENGTH, FAKE_EVERY = 100, 20


@dataclass
class Story:
    """A story with its questions.

    Attributes:
        task: from 1.
        words: those that the network reads, answer slots included.
        answers: for each of ``words`` the word to be named there, or None.
        last: whether that is the answer's last word.
    """

    task: int
    words: list[str]
    answers: list[str | None]
    last: list[bool]


@cache
def tokenise(sentence: str) -> tuple[str, ...]:
    """Words and marks of a sentence, lower-case."""
    return tuple(re.findall(r"\w+|[.?]", sentence.lower()))


def read_stories(data: bytes, path: str, task: int) -> Iterator[Story | Damaged]:
    """The stories of a file, in order; in place of one that has a broken line what is wrong with it.

    Args:
        data: content of the file.
        path: its name, for messages.
        task: its number.
    """
    blocks: list[list[tuple[int, bytes]]] = []
    for place, line in enumerate(data.rstrip().split(b"\n"), 1):
        if line.startswith(b"1 ") or not blocks:
            blocks.append([])
        blocks[-1].append((place, line))
    return (_story(block, path, task) for block in blocks)


def _story(block: list[tuple[int, bytes]], path: str, task: int) -> Story | Damaged:
    story = Story(task, [], [], [])
    for number, (place, raw) in enumerate(block, 1):
        try:
            words, answer = _line(raw.decode("utf-8").rstrip("\r"), number)
        except ValueError as error:
            reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            return Damaged(f"{path}, line {place}", reason)
        story.words += [*words, *[SLOT] * len(answer)]
        story.answers += [*[None] * len(words), *answer]
        story.last += [False] * (len(words) + len(answer))
        if answer:
            story.last[-1] = True
    return story if any(story.last) else Damaged(f"{path}, line {block[-1][0]}", "the story that ends there has no question")


def _line(text: str, number: int) -> tuple[tuple[str, ...], list[str]]:
    """Words of the sentence and of the answer (none for a statement) of a line that should have this number; ValueError if broken."""
    head, _, rest = text.partition(" ")
    if head != str(number):
        raise ValueError(f"it starts with {head[:20]!r}, not with its number in the story, {number}")
    sentence, *fields = rest.split("\t")
    words = tokenise(sentence)
    if not words:
        raise ValueError("it has no words")
    if not fields:
        return words, []
    if len(fields) != 2 or words[-1] != "?" or not fields[1].replace(" ", "").isdecimal():
        raise ValueError("a question is written as sentence?, answer, numbers of supporting lines, with tabs between them")
    answer = fields[0].strip().lower().split(",")
    if not all(answer):
        raise ValueError("its answer lacks a word")
    return words, answer


def find(data_dir: Path) -> Path | None:
    """The unpacked folder or the archive."""
    return first(NAMES, (data_dir, data_dir / "babi"))


def read_files(path: Path, language: str) -> dict[tuple[int, str], tuple[str, bytes]]:
    """(task, train or test) -> (name for messages, content) of the files of a language, from the folder or straight from the archive."""
    found: dict[tuple[int, str], tuple[str, bytes]] = {}
    if path.is_dir():
        for file in sorted((path / language).glob("qa*.txt")):
            if match := FILE.fullmatch(file.name):
                found[int(match[1]), match[2]] = str(file), file.read_bytes()
        return found
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name)
                match = FILE.fullmatch(name.name)
                if match and member.isfile() and name.parent.name == language and not name.name.startswith("."):
                    content = archive.extractfile(member)
                    assert content is not None, "a plain file"
                    found[int(match[1]), match[2]] = f"{path}: {language}/{name.name}", content.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise damaged(path, error) from None
    return found


class Stories:
    """Stories as numbers of words: a :class:`datamodules.sequences.base.Source`.

    Args:
        stories: the stories.
        number: word -> number.
        vocab_size: length of a word's one-hot vector.
        seed: of a new order in every epoch; None: as they are.
    """

    def __init__(self, stories: Sequence[Story], number: dict[str, int], vocab_size: int, seed: int | None):
        self.vocab_size, self.seed = vocab_size, seed
        sizes = [len(story.words) for story in stories]
        self.sizes = torch.tensor(sizes)
        self.starts = self.sizes.cumsum(0) - self.sizes
        self.longest = max(sizes)
        self.task = torch.tensor([story.task for story in stories])
        # one row each: word, answer (-1: none), whether it is the answer's last word
        self.text = torch.from_numpy(np.array([
            [number[word] for story in stories for word in story.words],
            [-1 if word is None else number[word] for story in stories for word in story.answers],
            [int(last) for story in stories for last in story.last],
        ], np.int16))  # fmt: skip

    def order(self, epoch: int) -> Tensor:
        """See :class:`datamodules.sequences.base.Source`."""
        if self.seed is None:
            return torch.arange(len(self.sizes))
        return torch.randperm(len(self.sizes), generator=generator(self.seed, "order", epoch))

    def lengths(self, numbers: Tensor) -> Tensor:
        """See :class:`datamodules.sequences.base.Source`."""
        return self.sizes[numbers]

    def episodes(self, numbers: Tensor) -> Batch:
        """`text` int16 [n, longest, 3]: word, answer, last; -1, -1, 0 behind the end. `task` int64 [n]."""
        place = torch.arange(self.longest)
        there = place < self.sizes[numbers, None]
        text = self.text[:, (self.starts[numbers, None] + place).clamp(max=self.text.shape[1] - 1)]
        nothing = torch.tensor([-1, -1, 0], dtype=torch.int16)[:, None, None]
        return {"text": text.where(there, nothing).permute(1, 2, 0), "task": self.task[numbers]}

    def segment(self, held: Batch, steps: Tensor) -> Batch:
        """`frames` float32 [rows, T, vocab_size]: one-hot words, zero behind the end; `target` int64 [rows, T]: the word to be named, 0
        where none is; `last` bool [rows, T]: the answer's last word; `task` int64 [rows], from 1."""
        words, answers, last = at(held["text"], steps).long().unbind(-1)
        return {
            "frames": F.one_hot(words + 1, self.vocab_size + 1)[..., 1:].float(),
            "target": answers.clamp(min=0),
            "asked": answers >= 0,
            "last": last.bool(),
            "task": held["task"],
        }


class Babi(SequenceData):
    """Stories with questions; the batch is that of :meth:`Stories.segment`.

    Args:
        vocab_size: room for so many different words; the texts may have fewer.
        tasks: numbers of the tasks, 1 to 20; None: all.
        language: folder of the archive: en-10k (10,000 questions a task), en (1,000), hn, hn-10k, shuffled, shuffled-10k.
        val_fraction: see :func:`datamodules.splits.validation_count`; of the training stories of all tasks together, in proportion.
        split_seed: of the validation split and of ``limit``.
        data_dir: where data sets lie: the archive, or what was unpacked from it; a download goes there.
        download: get what is missing from its publisher.
        skip_bad: leave stories with a broken line out and report them, instead of stopping.
        others: see :class:`datamodules.sequences.base.SequenceData`.

    Raises:
        UserError: values out of range (here); missing or broken files, more words than there is room for (in ``setup``).
    """

    def __init__(
        self,
        *,
        vocab_size: int = 159,
        tasks: Sequence[int] | None = None,
        language: str = "en-10k",
        val_fraction: float = 0.1,
        split_seed: int = 0,
        data_dir: str = "data",
        download: bool = True,
        skip_bad: bool = False,
        **others: Any,
    ):
        super().__init__(**others)
        self.tasks = list(range(1, TASKS + 1) if tasks is None else dict.fromkeys(tasks))
        if not self.tasks or not all(1 <= task <= TASKS for task in self.tasks):
            raise UserError(f"dataset.tasks={list(tasks or ())} must be numbers from 1 to {TASKS}, or null for all")
        self.check_shapes(in_shape=(vocab_size,), query_shape=None, out_shape=(vocab_size,))
        self.vocab_size, self.language, self.val_fraction, self.split_seed = vocab_size, language, val_fraction, split_seed
        self.data_dir, self.download, self.skip_bad = Path(data_dir), download, skip_bad
        # words by their number, filled by setup
        self.words: tuple[str, ...] = ()

    @property
    def _cure(self) -> str:
        return f"put {ARCHIVE} or its folder {FOLDER} in {self.data_dir}/babi, or try dataset.fake=true"

    def prepare_data(self) -> None:
        """Download what is missing; Lightning calls this in one process per machine."""
        if self.fake or not self.download or find(self.data_dir):
            return
        from filelock import FileLock
        from torchvision.datasets.utils import download_url

        folder = self.data_dir / "babi"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.data_dir / ".download.lock"):
                # another run may have got it while this one waited
                if find(self.data_dir):
                    return
                download_url(URL, folder, f"{ARCHIVE}.part")
                part = folder / f"{ARCHIVE}.part"
                if part.stat().st_size != SIZE:
                    raise OSError(f"{part.stat().st_size} bytes came instead of {SIZE}")
                part.rename(folder / ARCHIVE)
        # torchvision reports a failed download as RuntimeError
        except (OSError, RuntimeError) as error:
            reason = str(error).partition("\n")[0].rstrip(":")
            raise UserError(f"bAbI could not be downloaded ({reason}): {self._cure}") from None

    def load(self) -> None:
        if self.fake:
            self._fake()
            return
        path = find(self.data_dir)
        if path is None:
            raise UserError(
                f"bAbI is not in {self.data_dir}: {'' if self.download else 'set dataset.download=true, or '}{self._cure}"
            )
        files = read_files(path, self.language)
        for task in self.tasks:
            for part in ("train", "test"):
                if (task, part) not in files:
                    raise UserError(f"{path} has no file qa{task}_..._{part}.txt in {self.language}: {self._cure}")
        parts: dict[str, list[Story]] = {"train": [], "test": []}
        # all tasks that are there have their share in the numbers of words: these do not depend on which are asked for
        words: set[str] = set()
        for (task, part), (name, data) in sorted(files.items()):
            for story in read_stories(data, name, task):
                if isinstance(story, Story):
                    words.update(story.words, (word for word in story.answers if word))
                    if task in self.tasks:
                        parts[part].append(story)
                elif task in self.tasks:
                    leave_out(story, self.damaged, self.skip_bad)
        self.words = (SLOT, *sorted(words - {SLOT}))
        if len(self.words) > self.vocab_size:
            raise UserError(
                f"dataset.vocab_size={self.vocab_size} has no room for the {len(self.words)} words of {path}: "
                f"set dataset.vocab_size={len(self.words)}"
            )
        self._divide(parts)

    def _divide(self, parts: dict[str, list[Story]]) -> None:
        number = {word: place for place, word in enumerate(self.words)}
        for part, stories in parts.items():
            if not stories:
                raise UserError(f"no {part} story of bAbI is left: get the files again")
        train = parts["train"]
        count = validation_count(len(train), self.val_fraction)
        held_out = stratified(torch.tensor([story.task for story in train]), count, self.split_seed, "val").tolist()
        chosen = {
            "train": [story for story, out in zip(train, held_out) if not out],
            "val": [story for story, out in zip(train, held_out) if out],
            "test": parts["test"],
        }
        for split, stories in chosen.items():
            if self.limit is not None and self.limit < len(stories):
                kept = stratified(torch.tensor([story.task for story in stories]), self.limit, self.split_seed, "limit", split)
                stories = [story for story, keep in zip(stories, kept.tolist()) if keep]
            if stories:
                self.sources[split] = Stories(stories, number, self.vocab_size, self.seed if split == "train" else None)

    def _fake(self) -> None:
        self.words = (SLOT, *(f"w{number}" for number in range(1, self.vocab_size)))
        number = {word: place for place, word in enumerate(self.words)}
        for split in ("train", "val", "test"):
            count = self.limit or self.batch_size * (4 if split == "train" else 1)
            random = np.random.default_rng(mix("fake", split))
            stories = []
            for story in range(count):
                words: list[str] = [self.words[word] for word in random.integers(1, self.vocab_size, FAKE_LENGTH)]
                answers: list[str | None] = [None] * FAKE_LENGTH
                for place in range(FAKE_EVERY - 1, FAKE_LENGTH, FAKE_EVERY):
                    answers[place], words[place] = words[place], SLOT
                last = [answer is not None for answer in answers]
                stories.append(Story(self.tasks[story % len(self.tasks)], words, answers, last))
            self.sources[split] = Stories(stories, number, self.vocab_size, self.seed if split == "train" else None)
