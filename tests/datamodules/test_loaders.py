"""Positions, shares and worker processes of the loaders."""

import pytest
import pytorch_lightning as pl
import torch

from datamodules.augment import make_augment
from datamodules.loaders import Damaged, TensorLoader, WorkerLoader, mix
from papermix.errors import UserError

EVERYTHING = {"crop": 2, "flip": True, "cutout": 3, "jitter": 0.3, "randaugment": 9, "mixup": 0.4, "cutmix": 1.0}
LABELS = {"label": torch.arange(37) % 5}


class Noise:
    """Reads image ``index``: its number plus noise from torch's global generator."""

    def __init__(self, bad: tuple[int, ...] = ()):
        self.bad = bad

    def __call__(self, index: int) -> torch.Tensor | Damaged:
        if index in self.bad:
            return Damaged(f"{index}.png", "truncated")
        return (torch.rand(3, 8, 8) * 50 + index).to(torch.uint8)


def in_memory(**settings):
    image = torch.randint(0, 256, (37, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return TensorLoader({"image": image, **LABELS}, **settings)


def from_workers(workers=0, bad=(), **settings):
    return WorkerLoader(Noise(bad), LABELS, workers=workers, **settings)


def training(make=in_memory, **changes):
    augment = make_augment(EVERYTHING, (0.5,), (0.25,), 5, 8)
    return make(**{"batch_size": 8, "shuffle": True, "drop_last": True, "seed": 3, "transform": augment, **changes})


def same(a, b):
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x) for x, y in zip(a, b)
    )


def take(loader, count):
    batches = []
    while len(batches) < count:
        for batch in loader:
            batches.append(batch)
            if len(batches) == count:
                break
    return batches


@pytest.mark.parametrize(
    "make, options",
    [(in_memory, {}), (from_workers, {}), (from_workers, {"workers": 2})],
    ids=["memory", "no workers", "two workers"],
)
@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_resumed_loader_goes_on_bit_for_bit(make, options, stop):
    never_stopped = take(training(make), 9)
    first = training(make, **options)
    before = take(first, stop)
    state = first.state_dict()
    assert state == {"epoch": stop // 4, "batch": stop % 4}
    second = training(make)
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert same(before + take(second, 9 - stop), never_stopped)
    assert not torch.equal(never_stopped[0]["index"], never_stopped[4]["index"]), "the next epoch has another order"


def test_a_pass_broken_off_starts_again_and_set_epoch_moves_on():
    loader = training()
    first = take(loader, 2)
    assert same(take(loader, 2), first), "only load_state_dict continues in the middle"
    loader.batch_sampler.sampler.set_epoch(0)
    assert loader.state_dict() == {"epoch": 0, "batch": 2}
    loader.batch_sampler.sampler.set_epoch(1)
    assert loader.state_dict() == {"epoch": 1, "batch": 0}
    assert same(take(loader, 1), take(training(), 5)[4:])


def test_frozen_loader_repeats_its_first_epoch():
    batches = take(training(frozen=True), 8)
    assert same(batches[:4], batches[4:])


def test_order_depends_on_the_seed_and_covers_everything():
    a, b = training(seed=1), training(seed=2)
    assert not torch.equal(a.order(0), b.order(0)) and not torch.equal(a.order(0), a.order(1))
    assert torch.equal(a.order(0).sort().values, torch.arange(37))
    assert len({mix(1, 2), mix(2, 1), mix(12), mix("1", 2, 0)}) == 4


@pytest.mark.parametrize("make", [in_memory, from_workers])
@pytest.mark.parametrize("world", [2, 4])
def test_shares_together_are_the_batch_of_one_process(make, world):
    whole = list(training(make))
    shares = [list(training(make, rank=rank, world=world)) for rank in range(world)]
    joined = [{name: torch.cat([part[name] for part in parts]) for name in parts[0]} for parts in zip(*shares)]
    assert set(whole[0]) == {"image", "label", "label_soft", "index"}
    assert same(joined, whole)


@pytest.mark.parametrize("world", [1, 3, 4])
@pytest.mark.parametrize("examples", [4, 12, 13, 15, 16, 24, 37])
def test_evaluation_sees_every_example_once_on_any_number_of_processes(examples, world):
    loaders = [TensorLoader({"x": torch.arange(examples)}, 12, rank=rank, world=world) for rank in range(world)]
    assert len({len(loader) for loader in loaders}) == 1, "processes that wait for one another must do as many steps"
    seen = [batch["x"] for loader in loaders for batch in loader]
    assert all(len(x) for x in seen) and torch.cat(seen).sort().values.tolist() == list(range(examples))
    assert all(len(list(loader)) == len(loader) for loader in loaders)


@pytest.mark.parametrize("make", [in_memory, from_workers])
def test_the_global_generator_is_left_alone(make):
    before = torch.random.get_rng_state()
    list(training(make))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"batch_size": 40, "drop_last": True}, "dataset.batch_size=40 is larger than the train split of 37 examples"),
        ({"batch_size": 9, "world": 2}, "dataset.batch_size=9 (the global batch) cannot be shared by 2 processes: use 8 or 10"),
        ({"batch_size": 1, "world": 2}, "cannot be shared by 2 processes: use 2"),
        ({"batch_size": 0}, "dataset.batch_size=0 must be at least 1"),
        ({"batch_size": 38, "world": 38}, "the train split has 37 examples, too few for 38 processes"),
    ],
)
def test_batches_that_cannot_be_made_are_refused(settings, words):
    with pytest.raises(UserError) as error:
        in_memory(**settings)
    assert words in str(error.value)


def test_an_empty_split_is_named():
    with pytest.raises(UserError, match="the val split is empty"):
        TensorLoader({"x": torch.empty(0)}, 4, name="val")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_example_is_named(workers):
    with pytest.raises(UserError, match=r"^7\.png cannot be used \(truncated\): restore the file or set dataset\.skip_bad=true$"):
        list(from_workers(workers, bad=(7,), batch_size=8))


@pytest.mark.filterwarnings("ignore:damaged images")
def test_damaged_examples_are_left_out_and_counted_without_moving_the_others():
    def plain(**settings):
        augment = make_augment({"crop": 2, "flip": True, "jitter": 0.2}, (0.5,), (0.25,), 5, 8)
        return training(from_workers, transform=augment, **settings)

    whole, skipping = plain(), plain(bad=(7, 20), skip_bad=True)
    with pytest.warns(UserWarning, match="damaged examples skipped so far: 2, such as"):
        batches = [batch for _ in range(2) for batch in skipping]
    assert skipping.damaged == {"7.png": "truncated", "20.png": "truncated"}
    for expected, batch in zip(take(whole, 8), batches):
        keep = (expected["index"] != 7) & (expected["index"] != 20)
        assert same([batch], [{name: value[keep] for name, value in expected.items()}])


def test_a_batch_of_nothing_but_damage_stops_training_and_is_passed_over_in_evaluation():
    loader = from_workers(bad=tuple(range(8)), batch_size=8, skip_bad=True, drop_last=True)
    with pytest.raises(UserError, match=r"all 8 examples of a batch are damaged, such as 0\.png"):
        list(loader)
    loader = from_workers(bad=tuple(range(8)), batch_size=8, skip_bad=True)
    with pytest.warns(UserWarning, match="skipped so far: 8"):
        assert [len(batch["index"]) for batch in loader] == [8, 8, 8, 5]


class _Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, batch["index"].tolist()))
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class _SaveAt(pl.Callback):
    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("limit, step", [(1.0, 2), (1.0, 4), (1.0, 5), (3, 2), (3, 3), (3, 4)])
def test_lightning_saves_and_restores_the_position(tmp_path, limit, step):
    def fit(ckpt_path=None):
        model = _Recorder()
        trainer = pl.Trainer(
            max_epochs=3,
            limit_train_batches=limit,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[_SaveAt(tmp_path / "c.ckpt", step)],
        )
        trainer.fit(model, training(transform=None), ckpt_path=ckpt_path, weights_only=True)
        return model.seen

    whole = fit()
    epoch_length = 4 if limit == 1.0 else limit
    assert len({tuple(index) for _, _, index in whole}) == len(whole) == 3 * epoch_length
    assert fit(tmp_path / "c.ckpt") == whole[step:]
