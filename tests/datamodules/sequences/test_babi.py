"""bAbI: official files, words and answers as they stand there, broken lines named by file and line."""

from pathlib import Path

import pytest
import torch

from datamodules.sequences import babi
from datamodules.sequences.babi import Babi, Story, read_stories
from papermix.errors import UserError
from tests.datamodules.sequences.babi_official import files, pack, write


def make(folder: Path | str = "nowhere", **changes) -> Babi:
    size = changes.get("vocab_size", 30)
    settings = {"vocab_size": size, "in_shape": [size], "query_shape": None, "out_shape": [size], "batch_size": 4, "seq_len": 5}
    made = Babi(**settings | {"tasks": [1, 8], "val_fraction": 0.2, "data_dir": str(folder), "download": False} | changes)
    made.setup()
    return made


def told(made: Babi, split: str) -> list[tuple[int, str, str]]:
    """(task, what the network reads, answers with / after their last words) of every story, put together from segments."""
    found: dict[int, list] = {}
    for batch in made.loader(split):
        for row, number in enumerate(batch["index"].tolist()):
            if number < 0:
                continue
            story = found.setdefault(number, [int(batch["task"][row]), [], []])
            for step in range(batch["frames"].shape[1]):
                one = batch["frames"][row, step]
                assert float(one.sum()) in (0.0, 1.0)
                if one.sum():
                    story[1].append(made.words[int(one.argmax())])
                if batch["asked"][row, step]:
                    assert story[1][-1] == "-"
                    story[2].append(made.words[int(batch["target"][row, step])] + "/" * bool(batch["last"][row, step]))
    return [(task, " ".join(words), " ".join(answers)) for task, words, answers in (found[n] for n in sorted(found))]


def test_words_and_answers(tmp_path: Path) -> None:
    write(tmp_path, files())
    made = make(tmp_path)
    assert (
        made.words[0] == "-"
        and list(made.words[1:]) == sorted(made.words[1:])
        and {".", "?", "kitchen", "mary"} <= set(made.words)
    )
    stories = told(made, "test")
    assert len(stories) == 8 and [task for task, _, _ in stories] == [1] * 4 + [8] * 4
    assert stories[0] == (
        1,
        "mary moved to the garden . john went to the office . where is mary ? - mary went back . where was john ? -",
        "garden/ office/",
    )
    assert stories[4][1:] == (
        "mary moved to the garden . john went to the kitchen . where are they ? - - mary went back . where was john ? -",
        "garden kitchen/ kitchen/",
    )
    # training and validation stories are those of the training files, in the tasks' proportion
    train, val = made.sources["train"], made.sources["val"]
    assert train.task.bincount().tolist() == [0, 16] + [0] * 6 + [16] and val.task.bincount().tolist() == [0, 4] + [0] * 6 + [4]
    assert len(told(made, "train")) == 32


def test_archive_and_folder_are_the_same(tmp_path: Path) -> None:
    contents = files()
    write(tmp_path / "a", contents)
    pack(tmp_path / "b", contents)
    one, other = make(tmp_path / "a"), make(tmp_path / "b")
    assert one.words == other.words and torch.equal(one.sources["train"].text, other.sources["train"].text)
    (tmp_path / "b/babi" / babi.ARCHIVE).write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(UserError, match=r"babi_tasks_1-20_v1-2.tar.gz is damaged"):
        make(tmp_path / "b")


def test_numbers_of_words_do_not_depend_on_the_tasks_chosen(tmp_path: Path) -> None:
    write(tmp_path, files((1, 8)))
    one, both = make(tmp_path, tasks=[1]), make(tmp_path)
    assert one.words == both.words and set(one.sources["train"].task.tolist()) == {1}
    with pytest.raises(UserError, match=r"has no file qa2_..._train.txt in en-10k"):
        make(tmp_path, tasks=[1, 2])
    with pytest.raises(UserError, match=r"no file qa1_..._train.txt in hn"):
        make(tmp_path, language="hn")


BROKEN = [
    ("1 Mary went.\n2 Where?\tx\t1\nMary went.\n", 3, "it starts with 'Mary', not with its number in the story, 3"),
    ("1 Mary went.\n3 Where?\tx\t1\n", 2, "it starts with '3', not with its number in the story, 2"),
    ("1 Mary went.\n2 Where?\tx\n", 2, "a question is written as"),
    ("1 Mary went.\n2 Where\tx\t1\n", 2, "a question is written as"),
    ("1 Mary went.\n2 Where?\tx\tone\n", 2, "a question is written as"),
    ("1 Mary went.\n2 Where?\tx,\t1\n", 2, "its answer lacks a word"),
    ("1 Mary went.\n2 \n3 Where?\tx\t1\n", 2, "it has no words"),
    ("1 Mary went.\n2 Mary slept.\n", 2, "the story that ends there has no question"),
    ("", 1, "it starts with '', not with its number in the story, 1"),
    (b"1 Mary went.\n2 Where?\t\xff\t1\n", 2, "it is not UTF-8"),
]


@pytest.mark.parametrize(("content", "line", "reason"), BROKEN)
def test_broken_lines_are_named(tmp_path: Path, content: str | bytes, line: int, reason: str) -> None:
    good = files()
    name = "qa1_single-supporting-fact_train.txt"
    bad = content if isinstance(content, bytes) else content.encode()
    before = good[name].encode()
    folder = write(tmp_path, {**good, name: bad + before if bad else b""})
    with pytest.raises(UserError) as caught:
        make(tmp_path)
    assert str(caught.value).startswith(f"{folder / name}, line {line} cannot be used ({reason}") and "\n" not in str(
        caught.value
    )
    assert "dataset.skip_bad=true" in str(caught.value)
    with pytest.warns(UserWarning, match=f"skipped so far: 1, such as .*line {line} "):
        made = make(tmp_path, skip_bad=True)
    assert list(made.damaged) == [f"{folder / name}, line {line}"]
    # the stories around it are there
    rest = 40 if bad else 20
    assert len(made.sources["train"].sizes) + len(made.sources["val"].sizes) == rest


def test_windows_line_ends(tmp_path: Path) -> None:
    name = "qa1_x_train.txt"
    unix, dos = (
        list(read_stories(text.encode(), name, 1))
        for text in (files()[k] for k in list(files())[:1])
        for text in (text, text.replace("\n", "\r\n"))
    )
    assert unix == dos and all(isinstance(story, Story) for story in unix)


def test_missing_files_and_room(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"bAbI is not in .*: set dataset.download=true, or put .* in .*/babi, or try dataset.fake=true"
    ):
        make(tmp_path)
    write(tmp_path, files())
    with pytest.raises(UserError, match=r"dataset.vocab_size=9 has no room for the (\d+) words of .*: set dataset.vocab_size=\1"):
        make(tmp_path, vocab_size=9)
    with pytest.raises(UserError, match="must be numbers from 1 to 20"):
        make(tmp_path, tasks=[0])
    with pytest.raises(UserError, match=r"in_shape=\[30\] must be \[31\]"):
        make(tmp_path, vocab_size=31, in_shape=[30], out_shape=[31])


def test_download_is_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def get(url: str, folder: Path, filename: str) -> None:
        asked.append(url)
        made = pack(tmp_path / "source", files())
        (Path(folder) / filename).write_bytes(made.read_bytes())

    monkeypatch.setattr("torchvision.datasets.utils.download_url", get)
    data = Babi(
        vocab_size=30, in_shape=[30], query_shape=None, out_shape=[30], batch_size=4, seq_len=5, data_dir=str(tmp_path / "data")
    )
    with pytest.raises(UserError, match=r"could not be downloaded \(\d+ bytes came instead of 11745123\): put"):
        data.prepare_data()
    assert babi.find(tmp_path / "data") is None
    monkeypatch.setattr(babi, "SIZE", pack(tmp_path / "source", files()).stat().st_size)
    data.prepare_data()
    data.prepare_data()
    assert asked == [babi.URL] * 2 and babi.find(tmp_path / "data").name == babi.ARCHIVE


def test_fake_and_limit(tmp_path: Path) -> None:
    made = make(fake=True, tasks=None, limit=40)
    batch = next(iter(made.train_dataloader()))
    assert batch["frames"].shape == (4, 5, 30) and len(made.sources["val"].sizes) == 40
    assert sorted(set(made.sources["train"].task.tolist())) == list(range(1, 21))
    assert [len(answers.split()) for _, _, answers in told(made, "test")] == [5] * 40
    write(tmp_path, files())
    limited = make(tmp_path, limit=6)
    assert limited.sources["train"].task.bincount().tolist() == [0, 3] + [0] * 6 + [3]
