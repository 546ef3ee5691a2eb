"""Growing in Lightning's trainer: at the right steps, continued across a growth, over two processes, with other options."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from callbacks.growth import GrowthDriver
from papermix.errors import UserError
from papermix.run import stage
from papermix.run.check import resolved
from papermix.run.checkpoint_io import read
from papermix.run.compose import compose
from papermix.sparsity.growing import MULTIPLIER, Growing
from tests.machine import Killed, StopBefore, prepare, run, states_equal, weights
from tests.settings import TINY, smallest

GROW = ["sparsity=growing", "sparsity.stages=3", "sparsity.start=0.25", "trainer.max_epochs=4"]
IMAGES = ["dataset=digits", "dataset.batch_size=8", "dataset.limit=160"]
MLP = [*TINY, *IMAGES, "model=mlp", "model.hidden=[16]", *GROW]


def stock_of(overrides: list[str]) -> list[str]:
    """The same run without growing."""
    return [override for override in overrides if not override.startswith("sparsity")]


class Sizes(pl.Callback):
    """Parameters and learning rate at every step."""

    def __init__(self) -> None:
        self.parameters: list[int] = []
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer) -> None:
        own = {id(p) for p in module.model.parameters()}
        assert {id(p) for group in optimizer.param_groups for p in group["params"]} == own, "the optimizer has other parameters"
        self.parameters.append(sum(p.numel() for p in module.model.parameters()))
        self.rates.append(optimizer.param_groups[0]["lr"])


def logged(place: Path, name: str) -> list[tuple[int, float]]:
    with open(place / "metrics.csv") as file:
        return [(int(row["step"]), float(row["value"])) for row in csv.DictReader(file) if row["name"] == name]


def test_grows_at_epochs_under_one_schedule(tmp_path: Path) -> None:
    seen, fixed = Sizes(), Sizes()
    result = run(MLP, tmp_path / "growing", seen)
    stock = run(stock_of(MLP), tmp_path / "fixed", fixed)
    # 64 inputs, widths 4, 8, 16; epochs 1, 1, 2
    sizes = [64 * w + 2 * w + 10 * w + 10 for w in (4, 8, 16)]
    assert seen.parameters == [sizes[0]] * 6 + [sizes[1]] * 6 + [sizes[2]] * 12
    assert seen.rates == fixed.rates and len(set(seen.rates)) == 24
    assert result["parameters"] == stock["parameters"] == sizes[2]
    plain, grown = weights(tmp_path / "fixed"), weights(tmp_path / "growing")
    assert {k: v.shape for k, v in plain.items()} == {k: v.shape for k, v in grown.items()}
    flops = [2 * (64 + 10) * w for w in (4, 8, 16)]
    assert result["metrics"]["growing/cost"] == pytest.approx((flops[0] + flops[1] + 2 * flops[2]) / (4 * flops[2]))
    assert logged(tmp_path / "growing", "growing/parameters") == [(0, sizes[0]), (6, sizes[1]), (12, sizes[2])]
    assert result["metrics"]["growing/change"] < 1e-4 and result["metrics"]["growing/loss_rise"] < 1e-4
    naive = run([*MLP, "sparsity=growing_naive", "sparsity.stages=3"], tmp_path / "naive")
    assert naive["metrics"]["growing/change"] > 0.1


@pytest.mark.parametrize(
    "options",
    [
        ["model=resnet_cifar", "model.depth=8", "model.width=4", "optimizer=avagrad"],
        ["model=mlp", "model.hidden=[16,16]", "model.norm=false", "optimizer=adam"],
        ["model=timm", "model.name=test_resnet", "sparsity=net2net", "sparsity.stages=3"],
    ],
    ids=lambda options: options[0],
)
def test_continues_bit_for_bit_across_growths(options: list[str], tmp_path: Path) -> None:
    overrides = [*TINY, *IMAGES, *GROW, *options]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    never = run(overrides, whole)
    for step in (6, 9, 13):  # at a growth, inside the second stage, inside the last
        with pytest.raises(Killed):
            run(overrides, cut, StopBefore(step))
    stopped = run(overrides, cut)
    a, b = read(whole / "checkpoints/last.ckpt"), read(cut / "checkpoints/last.ckpt")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "rng"):
        assert states_equal(a[part], b[part]), part
    assert never["metrics"] == stopped["metrics"] and never["steps"] == 24
    assert (whole / "metrics.csv").read_text() == (cut / "metrics.csv").read_text()


@pytest.mark.parametrize("case", [{"model": "lstm_lm"}, {"dataset": "shapes_semantic"}], ids=str)
def test_grows_other_kinds_of_networks(case: dict[str, str], tmp_path: Path) -> None:
    overrides = [*smallest(**case), "sparsity=growing", "sparsity.stages=2"]
    result = run(overrides, tmp_path / "growing")
    stock = run([*stock_of(overrides), "trainer.max_epochs=1"], tmp_path / "fixed")
    assert result["parameters"] == stock["parameters"] and result["metrics"]["growing/cost"] < 1
    assert result["metrics"]["growing/change"] < 1e-4


def test_fewer_epochs_than_stages_grow_within_epochs(tmp_path: Path) -> None:
    seen = Sizes()
    run([*MLP, "trainer.max_epochs=1", "trainer.limit_train_batches=20"], tmp_path, seen)
    sizes = sorted(set(seen.parameters))
    # 20 steps in shares of 1 : 1.2 : 1.44
    assert [seen.parameters.count(size) for size in sizes] == [5, 7, 8]


def test_two_processes_equal_one_and_continue(tmp_path: Path) -> None:
    overrides = [*TINY, *IMAGES, *GROW, "model=mlp", "model.hidden=[16,12]", "model.norm=false"]
    for name in ("whole", "cut"):
        prepare([*overrides, "hardware=ddp_cpu", "hardware.threads=1"], tmp_path / name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(2):
        own = {"LOCAL_RANK": str(rank), "RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        command = [sys.executable, "-W", "ignore", "-m", "tests.callbacks.growth_ranks", str(tmp_path)]
        env = {**os.environ, **own, "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        ranks.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for process in ranks:
        out, _ = process.communicate()
        assert process.returncode == 0, out[-3000:]
    run(overrides, tmp_path / "one")
    one, two, cut = (weights(tmp_path / name) for name in ("one", "whole", "cut"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.allclose(value.double(), two[key].double(), atol=1e-5), key
    assert states_equal(two, cut)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"average of weights cannot follow a growing network"):
        run([*MLP, "callbacks=[checkpoints,rng,ema]"], tmp_path / "ema")
    with pytest.raises(UserError, match="nothing would train them"):
        run([*MLP, "method=linear_probe", "method.normalize=false"], tmp_path / "frozen")


def test_drives_any_module_and_says_when_training_was_too_short(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Plain(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

        def training_step(self, batch, batch_idx):
            if self.global_step == 9:
                self.trainer.should_stop = True
            return (self.model(batch) - batch[:, :2]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    method, driver = Plain(), GrowthDriver(Growing(stages=3, start=0.5))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False}
    trainer = pl.Trainer(accelerator="cpu", default_root_dir=tmp_path, max_epochs=3, callbacks=[driver], **quiet)
    trainer.fit(method, DataLoader(list(torch.randn(8, 4, 8)), batch_size=None))  # type: ignore[arg-type]
    assert "stage 2 of 3" in caplog.text
    assert method.model[0].weight.shape == (12, 8) and not any(MULTIPLIER in key for key in method.state_dict())
    assert driver.steps == [8, 2, 0]


def test_a_sparsity_names_its_driver() -> None:
    config = resolved(compose(MLP))
    assert isinstance(stage.build_callbacks(config)[0], GrowthDriver)
