"""The driver of sparsities in Lightning's trainer."""

import csv

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from callbacks.sparsity import SparsityDriver
from papermix.errors import UserError
from papermix.sparsity.magnitude import Magnitude


class Method(pl.LightningModule):
    """Regression of a fixed linear map; records the density at each step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        self.seen: list[int] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(int(self.model[0].weight.count_nonzero()))
        return (self.model(batch) - batch[:, :2]).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def data() -> DataLoader:
    batches = list(torch.randn(8, 4, 8, generator=torch.Generator().manual_seed(0)))
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def trainer(path, driver, **options) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "logger": False}
    return pl.Trainer(default_root_dir=path, **{"max_epochs": 2, "callbacks": [driver], **quiet, **options})


def make(**options) -> tuple[Method, SparsityDriver]:
    return Method(), SparsityDriver(Magnitude(**{"density": 0.25, "start": 0.25, "end": 0.75, "updates": 2, **options}))


def test_moves_by_optimizer_step_and_logs_changes(tmp_path) -> None:
    method, driver = make()
    logger = CSVLogger(tmp_path, name="", version="")
    trainer(tmp_path, driver, logger=logger, accumulate_grad_batches=2, enable_checkpointing=False).fit(method, data())
    # 16 batches, 8 steps: updates at steps 2, 4 and 6, of which the first keeps all
    k1 = round(128 * (0.25 + 0.75 / 8))
    assert method.seen == [128] * 8 + [k1] * 4 + [32] * 4
    with open(tmp_path / "metrics.csv") as file:
        logged = [float(row["sparsity/density"]) for row in csv.DictReader(file) if row.get("sparsity/density")]
    assert logged == [1.0, (k1 + round(32 * 0.34375)) / 160, 0.25]
    assert driver.densities() == {"0.weight": 0.25, "2.weight": 0.25}


def test_last_update_comes_after_the_last_step(tmp_path, caplog) -> None:
    method, driver = make(start=1.0, end=1.0, updates=1)
    trainer(tmp_path, driver, enable_checkpointing=False).fit(method, data())
    assert method.seen == [128] * 16 and driver.sparsity.density() == 0.25
    assert "from density 1 to 0.25" in caplog.text


def test_resume_is_exact(tmp_path) -> None:
    whole, driver = make(start=0.1, updates=5)
    saver = pl.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1)
    trainer(tmp_path, driver, callbacks=[driver, saver]).fit(whole, data())
    rest, driver = make(start=0.1, updates=5)
    second = trainer(tmp_path, driver, enable_checkpointing=False)
    second.fit(rest, data(), ckpt_path=tmp_path / "epoch=0-step=8.ckpt")
    assert rest.seen == whole.seen[8:] and rest.seen[0] > rest.seen[-1]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[key]), key
    # testing afterwards does not attach again
    keys = list(rest.state_dict())
    driver.setup(second, rest, "test")
    assert list(rest.state_dict()) == keys


class Pull(Magnitude):
    """A penalty with a known gradient: 1 for every weight."""

    calls = 0

    def penalty_backward(self) -> None:
        type(self).calls += 1
        for weight in self.weights.values():
            assert weight.tensor.grad is not None
            weight.tensor.grad += 1.0


def test_penalty_once_per_step_of_its_optimizer(tmp_path) -> None:
    class Two(Method):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.extra = nn.Linear(8, 2)
            self.gradients: list[torch.Tensor] = []

        def training_step(self, batch, batch_idx):
            for optimizer, module in zip(self.optimizers(), (self.model, self.extra)):
                optimizer.zero_grad()
                self.manual_backward(0 * module(batch).sum())
                optimizer.step()
            self.gradients.append(self.model[0].parametrizations.weight.original.grad.clone())

        def configure_optimizers(self):
            return [torch.optim.SGD(m.parameters(), lr=0.0) for m in (self.model, self.extra)]

    method, driver = Two(), SparsityDriver(Pull(density=0.5, start=0.5, end=0.5, updates=1))
    trainer(tmp_path, driver, max_epochs=1, enable_checkpointing=False).fit(method, data())
    assert Pull.calls == 8 and all(torch.equal(g, torch.ones(16, 8)) for g in method.gradients)
    assert driver.sparsity.density() == 0.5
    assert not callable(SparsityDriver(Magnitude()).on_before_optimizer_step)


def test_errors(tmp_path) -> None:
    method, driver = make()
    with pytest.raises(UserError, match="how long training is"):
        trainer(tmp_path, driver, max_epochs=-1, enable_checkpointing=False).fit(method, data())

    class Replaces(Method):
        def setup(self, stage):
            self.model[2] = nn.Linear(16, 2)

    _, driver = make()
    with pytest.raises(UserError, match=r"sparse layers of 2.weight were replaced"):
        trainer(tmp_path, driver, enable_checkpointing=False).fit(Replaces(), data())
