"""Learning rate, gradient norm, throughput, early stopping: the right numbers at the right steps."""

from pathlib import Path

import pytest
import torch

from callbacks.checkpoints import Checkpoints
from callbacks.early_stopping import EarlyStopping
from callbacks.monitors import GradientNorm, LearningRate, Throughput
from papermix.errors import UserError
from papermix.run.loggers import csv
from tests.callbacks.world import Small, fit, trainer


def logged(folder: Path, name: str) -> dict[int, float]:
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    return {int(step): float(value) for step, _, key, value in rows if key == name}


def test_learning_rate_of_the_step(tmp_path: Path) -> None:
    """The schedule multiplies by 0.7 after every fifth step; lines are at every second step, counted from 1."""
    fit(Small(), trainer(tmp_path, [LearningRate()], [csv(str(tmp_path))], max_epochs=2))
    assert logged(tmp_path, "lr") == pytest.approx({step: 0.1 * 0.7 ** ((step - 1) // 5) for step in range(2, 13, 2)})


def test_learning_rate_by_group(tmp_path: Path) -> None:
    class Groups(Small):
        def configure_optimizers(self):
            return torch.optim.SGD(
                [
                    {"params": self.model.first.parameters(), "lr": 0.1, "name": "body"},
                    {"params": self.model.last.parameters(), "lr": 0.2},
                ]
            )

    fit(Groups(), trainer(tmp_path, [LearningRate()], [csv(str(tmp_path))], max_epochs=1))
    assert set(logged(tmp_path, "lr/body").values()) == {0.1}
    assert set(logged(tmp_path, "lr/1").values()) == {0.2}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradient_norm_before_clipping(tmp_path: Path, accumulate: int) -> None:
    norms: list[float] = []

    class Norms(Small):
        def on_before_optimizer_step(self, optimizer) -> None:
            norms.append(torch.cat([p.grad.flatten() for p in self.model.parameters()]).norm().item())

    keys = {"gradient_clip_val": 1e-3, "max_epochs": 1, "accumulate_grad_batches": accumulate, "log_every_n_steps": 1}
    fit(Norms(), trainer(tmp_path, [GradientNorm()], [csv(str(tmp_path))], **keys))
    assert len(norms) == 6 // accumulate
    assert min(norms) > 1e-3
    assert logged(tmp_path, "gradient_norm") == pytest.approx(dict(enumerate(norms, 1)), rel=1e-5)


def test_throughput_leaves_pauses_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves 2 s in a training step, 100 s in a validation step, 1000 s after a validation, 10 s in a checkpoint."""
    now = [0.0]
    monkeypatch.setattr("callbacks.monitors.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("callbacks.checkpoints.time.monotonic", lambda: now[0])

    class Slow(Small):
        def training_step(self, batch, batch_idx):
            now[0] += 2
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx) -> None:
            now[0] += 100
            super().validation_step(batch, batch_idx)

        def on_validation_end(self) -> None:
            now[0] += 1000

        def on_save_checkpoint(self, checkpoint) -> None:
            now[0] += 10

    callbacks = [Throughput(), Checkpoints(str(tmp_path), every_n_steps=1)]
    fit(Slow(), trainer(tmp_path, callbacks, [csv(str(tmp_path))], val_check_interval=3))
    rates = logged(tmp_path, "samples_per_second")
    assert rates == dict.fromkeys(range(2, 19, 2), 4.0)


def test_early_stopping_takes_the_tasks_metric(tmp_path: Path) -> None:
    class Flat(Small):
        def validation_step(self, batch, batch_idx) -> None:
            self.log("val/accuracy", torch.tensor(0.5))

    stopping = EarlyStopping(patience=2)
    runner = trainer(tmp_path, [stopping], max_epochs=50)
    fit(Flat(), runner)
    assert (stopping.monitor, stopping.mode) == ("val/accuracy", "max")
    assert runner.current_epoch == 3
    with pytest.raises(UserError, match=r"monitor='val/acc'.*did you mean 'val/accuracy'"):
        fit(Flat(), trainer(tmp_path, [EarlyStopping("val/acc")]))
    with pytest.raises(UserError, match="patience=0"):
        EarlyStopping(patience=0)
