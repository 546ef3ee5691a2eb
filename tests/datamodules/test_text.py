"""Text: the split leaks nothing, streams go on where they stopped, every held-out token is predicted once, resume, shares."""

from types import SimpleNamespace

import pytest
import torch

from datamodules.corpora import SPLITS, clusters, pydocs, spaced_words, split_clusters
from datamodules.text import PADDING, StreamLoader, Text, WindowLoader
from datamodules.vocabulary import ALPHABET, Vocabulary, tokenise, words
from papermix.errors import UserError

PYDOCS_CHAR = {"corpus": "pydocs", "unit": "char", "vocab_size": 104, "batch_size": 4, "seq_len": 16}


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return pydocs()


def make(**changes) -> Text:
    data = Text(**{**PYDOCS_CHAR, **changes})
    data.setup()
    return data


def same(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in zip(a, b))


def ring(length: int = 1000) -> torch.Tensor:
    return torch.arange(length)


# ---- corpora ----------------------------------------------------------------------------------------------------------------


def test_split_leaks_no_passage(texts):
    def passages(text: str, size: int = 200) -> set[str]:
        return {text[i : i + size] for i in range(len(text) - size + 1)}

    train, val, test = (passages(texts[side]) for side in SPLITS)
    assert not train & val and not train & test and not val & test


def test_split_takes_about_a_twentieth_for_each_held_out_side(texts):
    whole = sum(map(len, texts.values()))
    assert whole > 400_000
    for side in ("val", "test"):
        assert 0.045 * whole < len(texts[side]) <= 0.0505 * whole
    assert texts == pydocs(split_seed=0) and texts != pydocs(split_seed=1)


def test_clusters_follow_chains_of_shared_words():
    a, b, c = (" ".join(f"{name}{i}" for i in range(20)) for name in "abc")
    group = clusters({"one": a, "two": f"{a.upper()}\n\n{b}", "three": f"...{b}", "four": c, "five": "short", "six": "Short!"})
    assert group == [["one", "two", "three"], ["four"], ["five", "six"]]


def test_clusters_are_not_cut():
    shared = " ".join(f"w{i}" for i in range(12))
    topics = {f"t{i}": f"{shared if i % 3 == 0 else ''} " + " ".join(f"x{i}_{j}" for j in range(30)) for i in range(60)}
    sides = split_clusters(topics)
    assert sorted(name for names in sides.values() for name in names) == sorted(topics)
    assert {side for side, names in sides.items() if any(int(n[1:]) % 3 == 0 for n in names)} == {"train"}
    assert sides["val"] and sides["test"]


def test_spaced_words():
    assert spaced_words("The >>> f(x)...\n\n=======\n") == "the >>> f ( x ) ...\n\n====\n"


def write_ptb(folder):
    for name, lines in {"train": "a b <unk>\nb c N\n", "valid": "a c\n", "test": "b b z\n"}.items():
        (folder / f"ptb.{name}.txt").write_text("".join(f" {line} \n" for line in lines.splitlines()))
        spelled = [" ".join(line.replace(" ", "_").replace("z", "a")) for line in lines.splitlines()]
        (folder / f"ptb.char.{name}.txt").write_text("".join(f" {line} \n" for line in spelled))


def test_ptb_words(tmp_path):
    write_ptb(tmp_path)
    data = make(corpus="ptb", unit="word", vocab_size=6, root=str(tmp_path), batch_size=1, seq_len=2, eval_batch_size=1)
    assert data.vocabulary.symbols == ["<unk>", "<eos>", "b", "N", "a", "c"]
    assert data.texts["train"].tolist() == [4, 2, 0, 1, 2, 5, 3, 1]
    assert data.texts["test"].tolist() == [2, 2, 0, 1]
    assert data.decode(data.encode("a b\n\nc\n")) == "a b\n\nc\n"


def test_ptb_characters(tmp_path):
    write_ptb(tmp_path)
    data = make(corpus="ptb", unit="char", vocab_size=11, root=str(tmp_path), batch_size=1, seq_len=2, eval_batch_size=1)
    assert data.decode(data.texts["train"]) == "a b <unk>\nb c N\n" and len(data.texts["train"]) == 16


def test_ptb_missing_files(tmp_path):
    with pytest.raises(UserError, match=r"ptb\.char\.train\.txt.*not found in the folder '.*simple-examples.*dataset\.root"):
        make(corpus="ptb", root=str(tmp_path))
    assert make(corpus="ptb", root=str(tmp_path), fake=True, limit=500, vocab_size=50).texts["train"].max() < 50


# ---- vocabulary -------------------------------------------------------------------------------------------------------------


def test_pydocs_alphabet_covers_nearly_everything(texts):
    vocabulary = Vocabulary(["<unk>", *ALPHABET], "char")
    assert len(vocabulary) == 104
    for text in texts.values():
        numbers = vocabulary.encode(text)
        assert (numbers == 0).sum() < 10
        assert vocabulary.decode(numbers[:1000]) == text[:1000]


def test_words_are_ordered_by_frequency_and_cut():
    text = "b a b\nc a b d\n"
    assert words(text).symbols == ["<unk>", "<eos>", "b", "a", "c", "d"]
    assert words(text, min_count=2).symbols == ["<unk>", "<eos>", "b", "a"]
    assert words(text, size=3).symbols == ["<unk>", "<eos>", "b"]
    assert words(text, size=3).encode("b zebra\n").tolist() == [2, 0, 1]
    assert tokenise("a b\n", "word") == ["a", "b", "<eos>"]


def test_vocabulary_size_is_a_checked_fact():
    with pytest.raises(UserError, match=r"dataset\.vocab_size=104"):
        make(vocab_size=90)
    with pytest.raises(UserError, match=r"=9000 does not fit: pydocs has (\d+) different words; set dataset.vocab_size=\1"):
        make(unit="word", vocab_size=9000)
    data = make(unit="word", vocab_size=2000, min_count=2)
    assert len(data.vocabulary) == 2000 and (data.texts["train"] == 0).float().mean() < 0.05


def test_unknown_symbol_of_a_closed_vocabulary():
    with pytest.raises(UserError, match="the char 'Q' is not in the vocabulary of 2 chars"):
        Vocabulary(["\n", "a"], "char").encode("aQ")


# ---- streams ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("random_start", [False, True])
def test_streams_go_on_from_chunk_to_chunk(random_start):
    loader = StreamLoader(ring(1000), 999, 4, 16, random_start=random_start)
    batches = list(loader)
    assert len(batches) == len(loader) == 250 // 16
    tokens, target = (torch.cat([b[name] for b in batches], 1) for name in ("tokens", "target"))
    assert tokens.shape == (4, 240) and torch.equal(target, (tokens + 1) % 1000)
    assert torch.equal(tokens[:, 1:], target[:, :-1])
    assert torch.equal((tokens[1:, 0] - tokens[:-1, 0]) % 1000, torch.full((3,), 250))
    assert [bool(b["fresh"].all()) for b in batches] == [True] + [False] * 14
    assert not any(b["fresh"].any() for b in batches[1:])


def test_random_start_differs_between_epochs_and_seeds_only():
    def starts(seed: int, **options) -> list[int]:
        loader = StreamLoader(ring(), 999, 4, 16, random_start=True, seed=seed, **options)
        return [int(torch.cat([b["tokens"] for b in loader])[0, 0]) for _ in range(3)]

    assert len(set(starts(1))) == 3 and starts(1) == starts(1) and starts(1) != starts(2)
    assert len(set(starts(1, frozen=True))) == 1


@pytest.mark.parametrize("size, rows, seq_len", [(1000, 4, 16), (1003, 4, 50), (64, 8, 8), (67, 8, 8), (7, 7, 3), (101, 1, 10)])
def test_evaluation_predicts_every_token_once(size, rows, seq_len):
    loader = StreamLoader(ring(size), 5, rows, seq_len, whole=True)
    batches = list(loader)
    target = torch.cat([b["target"] for b in batches], 1)
    tokens = torch.cat([b["tokens"] for b in batches], 1)
    assert target[target != PADDING].tolist() == list(range(size))
    assert all(b["tokens"].shape[1] <= seq_len and (b["target"] != PADDING).any(1).all() for b in batches)
    held = target != PADDING
    held[0, 0] = False
    assert torch.equal(tokens[held], target[held] - 1) and int(tokens[0, 0]) == 5


@pytest.mark.parametrize("size, rows, seq_len, stride", [(1000, 4, 16, None), (1003, 5, 32, 8), (33, 3, 32, 32), (100, 2, 10, 1)])
def test_windows_predict_every_token_once(size, rows, seq_len, stride):
    loader = WindowLoader(ring(size), 5, rows, seq_len, stride=stride)
    batches = list(loader)
    target = torch.cat([b["target"].flatten() for b in batches])
    assert target[target != PADDING].tolist() == list(range(size))
    assert all(b["fresh"].all() and (b["target"] != PADDING).any(1).all() for b in batches)
    context = seq_len - (stride or seq_len)
    full = [row for b in batches for row in b["target"] if row[-1] != PADDING and int(row[-1]) >= seq_len]
    assert all((row != PADDING).nonzero()[0] >= min(context, 1) * context for row in full[:-1])


def test_shuffled_windows_cover_an_epoch_in_another_order():
    def epoch(loader: WindowLoader) -> torch.Tensor:
        return torch.cat([b["target"] for b in loader])

    loader = WindowLoader(ring(160), 0, 2, 16, shuffle=True, drop_last=True, random_start=True)
    first, second = epoch(loader), epoch(loader)
    assert torch.equal(first.flatten().sort().values, ring(160)) and not torch.equal(first, second)
    assert torch.equal((first[:, 1:] - first[:, :-1]) % 160, torch.ones(10, 15, dtype=torch.int64))


# ---- resume and shares --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["stream", "shuffled"])
def test_resume_goes_on_with_the_next_batch(order):
    options = {"order": order, "limit": 1000, "seed": 3}
    loader = make(**options).train_dataloader()
    epochs = [list(loader), list(loader)]
    stopped = make(**options).train_dataloader()
    iterator = iter(stopped)
    for _ in range(5):
        next(iterator)
    state = stopped.state_dict()
    assert state == {"epoch": 0, "batch": 5}
    resumed = make(**options).train_dataloader()
    resumed.load_state_dict(state)
    assert same(list(resumed), epochs[0][5:])
    assert same(list(resumed), epochs[1])


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("order", ["stream", "shuffled"])
def test_processes_together_see_the_batches_of_one(order, split):
    options = {"order": order, "limit": 1003, "eval_batch_size": 4}
    one = list(make(**options).loader(split))
    shares = []
    for rank in range(2):
        data = Text(**{**PYDOCS_CHAR, **options})
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, strategy=strategy, overfit_batches=0.0)  # type: ignore[assignment]
        data.setup()
        shares.append(list(data.loader(split)))
    joined = [{k: torch.cat([a[k], b[k]]) for k in a} for a, b in zip(*shares)]
    assert same(joined, one)


def test_fake_has_the_shapes_of_the_corpus():
    data = make(fake=True)
    batch = next(iter(data.train_dataloader()))
    assert len(data.texts["train"]) == 418_788
    assert batch["tokens"].shape == batch["target"].shape == (4, 16) and batch["fresh"].shape == (4,)
    assert int(batch["tokens"].max()) < 104 and isinstance(data.decode(batch["tokens"][0]), str)
    assert data.encode("\n").tolist() == [data.vocabulary.line_end]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seq_len": 0}, "dataset.seq_len=0 must be at least 1"),
        ({"eval_batch_size": 0}, "dataset.eval_batch_size=0"),
        ({"eval_stride": 4}, "must be null with dataset.order=stream"),
        ({"eval_stride": 17, "order": "shuffled"}, "must lie between 1 and dataset.seq_len=16"),
        ({"limit": 60}, "too short for dataset.batch_size=4 streams of 16 or more each: take at most 3 streams"),
        ({"limit": 10}, "streams of 16 or more each: take a smaller dataset.seq_len, a larger dataset.limit."),
        ({"limit": 10, "order": "shuffled"}, "shorter than a window of dataset.seq_len=16"),
        ({"limit": 40, "order": "shuffled"}, "batch_size=4 is larger"),
    ],
)
def test_bad_input(changes, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        make(**changes).train_dataloader()


def test_evaluation_streams_that_two_processes_cannot_share():
    data = make(limit=100, eval_batch_size=3)
    data.trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"dataset\.eval_batch_size=3 cannot be shared by 2 processes: take a multiple of it"):
        data.val_dataloader()


def test_more_evaluation_streams_than_tokens():
    with pytest.raises(UserError, match=r"the val text of 4 tokens is too short for dataset\.eval_batch_size=8 streams"):
        make(limit=4).val_dataloader()
