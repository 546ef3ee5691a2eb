"""Sparsities of several rounds in whole runs: resume, optimizer and schedule of each round, results, pictures."""

import csv
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from callbacks.mask_picture import MaskPicture, sparse_weights, tiles
from papermix.errors import UserError
from papermix.run.checkpoint_io import read
from papermix.run.stage import build_method
from papermix.sparsity.magnitude import Magnitude
from papermix.sparsity.mask import finalize, plain_state
from tests.machine import Killed, StopBefore, prepare, run, states_equal, weights
from tests.settings import TINY

# three rounds of four steps
BASE = [*TINY, "dataset=digits", "dataset.batch_size=8", "dataset.limit=160", "model=mlp", "model.hidden=[16]", "scheduler=multistep"]
SEARCHES = {
    "cs": ["sparsity=continuous", "sparsity.rounds=2", "sparsity.retrain=rewind", "sparsity.rewind=1 steps", "sparsity.lr=3.0"],
    "cs_adamw": ["sparsity=continuous", "sparsity.rounds=3", "sparsity.lr=3.0", "optimizer=adamw"],
    "cs_avagrad": ["sparsity=continuous", "sparsity.rounds=2", "sparsity.retrain=finetune", "sparsity.lr=10.0", "optimizer=avagrad"],
    "imp": ["sparsity=iterative_magnitude", "sparsity.rounds=2", "sparsity.rate=0.5", "sparsity.rewind=0.5"],
    "iss": ["sparsity=stochastic", "sparsity.rounds=3", "model=small_cnn", "model.widths=[4,8]", "model.convs=[1,1]"],
}
OVERRIDES = {name: [*(o for o in BASE if not (name == "iss" and o.startswith("model"))), *own] for name, own in SEARCHES.items()}


class Rates(pl.Callback):
    """Keeps the learning rates and the number of steps in the optimizer's memory, as each step finds them."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.sizes: list[int] = []

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.sizes.append(len(optimizer.state))


@pytest.mark.parametrize("name", list(OVERRIDES))
def test_resumes_bit_for_bit_across_rounds(name: str, tmp_path: Path) -> None:
    overrides = [o for o in OVERRIDES[name] if "every_n_steps=2" not in o]
    overrides += ["callbacks.checkpoints.every_n_steps=1"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    rates = Rates()
    never = run(overrides, whole, rates)
    assert rates.rates[:4] * 3 == pytest.approx(rates.rates) and len(set(rates.rates)) > 1
    assert [i for i, size in enumerate(rates.sizes) if size == 0] == [0, 4, 8]
    # before the rewind point's step, at a boundary (taken before its first step), right behind one
    for stop in (2, 4, 9):
        with pytest.raises(Killed):
            run(overrides, cut, StopBefore(stop))
        assert read(cut / "checkpoints/last.ckpt")["global_step"] == stop
    stopped = run(overrides, cut)
    a, b = read(whole / "checkpoints/last.ckpt"), read(cut / "checkpoints/last.ckpt")
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert states_equal(a[part], b[part]), part
    assert states_equal(a["callbacks"]["SparsityDriver"], b["callbacks"]["SparsityDriver"])
    assert never["metrics"] == stopped["metrics"]
    assert (whole / "metrics.csv").read_text() == (cut / "metrics.csv").read_text()
    assert 0 < never["density"] < 1 or name == "iss"


def test_the_result_is_that_of_the_plain_network(tmp_path: Path) -> None:
    """The last checkpoint, baked, gives the outputs of the finished run; the next stage starts from it, its mask kept."""
    overrides = OVERRIDES["cs"]
    result = run(overrides, tmp_path / "search")
    state = {k.removeprefix("model."): v for k, v in weights(tmp_path / "search").items() if k.startswith("model.")}
    plain = build_method(prepare([*overrides, "sparsity=none"][-1:] + BASE, tmp_path / "plain")).model.eval()
    plain.load_state_dict(plain_state(state))
    kept = sum(int(plain.state_dict()[k].count_nonzero()) for k in ("stage1.1.weight", "head.weight"))
    assert result["density"] == pytest.approx(kept / (64 * 16 + 160)) and kept < 64 * 16 + 160
    checkpoint = tmp_path / "search/checkpoints/last.ckpt"
    after = run([*BASE, "sparsity=ticket", f"init_from={checkpoint}"], tmp_path / "ticket")
    assert after["density"] == pytest.approx(result["density"])
    trained = {k: v for k, v in plain_state(weights(tmp_path / "ticket")).items() if k.startswith("model.")}
    for key in ("stage1.1.weight", "head.weight"):
        assert torch.equal(trained[f"model.{key}"] != 0, plain.state_dict()[key] != 0)
        assert not torch.equal(trained[f"model.{key}"], plain.state_dict()[key])


def test_numbers_and_picture(tmp_path: Path) -> None:
    run([*OVERRIDES["cs"], "callbacks=[checkpoints,rng,curves,mask_picture]"], tmp_path)
    with open(tmp_path / "metrics.csv") as file:
        rows = [(int(r["step"]), r["name"], float(r["value"])) for r in csv.DictReader(file) if r["name"].startswith("sparsity/")]
    soft = [value for _, name, value in rows if name == "sparsity/soft_density"]
    assert soft[0] == pytest.approx(1, abs=1e-6) and soft[-1] < 1
    assert {name for _, name, _ in rows} == {"sparsity/density", "sparsity/soft_density", "sparsity/mask_gap"}
    assert (tmp_path / "pictures/masks.png").stat().st_size > 10_000


def test_pictures_of_other_layers(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 5), torch.nn.Linear(7, 2))
    assert sparse_weights(model) == {}
    sparsity = Magnitude(density=0.5)
    sparsity.attach(model)
    sparsity.harden()
    found = sparse_weights(model)
    assert list(found) == ["0.weight", "1.weight"] and int(found["1.weight"].count_nonzero()) == 7
    side = tiles(found["0.weight"], None)
    assert side.shape == (3, 5, 10) and torch.equal(side[1, :, 5:], found["0.weight"][1, 1])
    image = torch.arange(2 * 18).view(2, 18)
    assert torch.equal(tiles(image, 2)[1, :, 3:], image[1, 9:].view(3, 3))
    assert tiles(found["1.weight"], 1) is None and tiles(image, None) is None
    assert sparse_weights(finalize(model)) == {}
    with pytest.raises(UserError, match=r"mask_picture\.count=0"):
        MaskPicture(0)


def test_a_schedule_without_length_cannot_restart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot restart in 3 rounds"):
        run([*OVERRIDES["cs"], "scheduler=plateau"], tmp_path)


@pytest.mark.parametrize("recipe", ["digits", "cifar10_resnet20", "cifar10_vgg16", "imagenet_resnet50"])
def test_recipes_build_and_step(recipe: str, tmp_path: Path) -> None:
    short = ["scheduler.warmup=0.1", "scheduler.milestones=[0.3,0.6,0.9]", "trainer.max_epochs=10"]
    small = {
        "digits": [],
        "cifar10_resnet20": ["model.width=4", "trainer.max_epochs=32"],
        "cifar10_vgg16": ["model.width=4", "trainer.max_epochs=32"],
        "imagenet_resnet50": ["dataset.image_size=32", "dataset.workers=0", "model.name=test_resnet", *short],
    }[recipe]
    overrides = [f"experiment=continuous_sparsification/{recipe}", *TINY[:3], "dataset.batch_size=4", *small]
    overrides += ["trainer.limit_train_batches=1", "trainer.limit_val_batches=0", "test=none", "callbacks=[]", "logger=[]"]
    result = run(overrides, tmp_path)
    assert result["steps"] == {"digits": 40, "imagenet_resnet50": 10}.get(recipe, 32)
    assert result["paper"] == "continuous_sparsification"
