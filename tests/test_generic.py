"""What holds for every option: it trains, resumes bit for bit in the middle of an epoch, and stops before a broken update."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from papermix.errors import UserError
from papermix.run.catalog import options
from papermix.run.checkpoint_io import read
from tests.machine import Killed, StopBefore, run, states_equal, weights
from tests.settings import TABLE, base_of, smallest

CASES = [(group, name) for group, table in TABLE.items() for name in table]


@pytest.mark.parametrize("group", list(TABLE))
def test_every_option_has_its_smallest_setting(group: str) -> None:
    wanted = {base_of(group, name) for name in options(group)}
    assert wanted == set(TABLE[group])


@pytest.mark.parametrize(("group", "name"), CASES)
def test_resumes_bit_for_bit(group: str, name: str, tmp_path: Path) -> None:
    overrides = smallest(**{group: name})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    never = run(overrides, whole)
    assert never["steps"] == 12
    with pytest.raises(Killed):
        run(overrides, cut, StopBefore(3))  # the checkpoint is that of step 2, in the middle of the first epoch
    at_two = weights(cut)
    with pytest.raises(Killed):
        run(overrides, cut, StopBefore(9))
    stopped = run(overrides, cut)
    a, b = read(whole / "checkpoints/last.ckpt"), read(cut / "checkpoints/last.ckpt")
    changed = [k for k, v in a["state_dict"].items() if v.is_floating_point() and not torch.equal(v, at_two[k])]
    assert changed, "no weight moved after the checkpoint, so equality would say nothing"
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "rng", "papermix_record"):
        assert states_equal(a[part], b[part]), part
    assert never["metrics"] == stopped["metrics"]
    assert (whole / "metrics.csv").read_text() == (cut / "metrics.csv").read_text()
    assert all(torch.isfinite(v).all() for v in a["state_dict"].values())


@pytest.mark.parametrize("name", list(TABLE["method"]))
def test_a_loss_that_is_not_finite_stops_before_the_update(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_modules.dense_tasks import SemanticSegmentation
    from lightning_modules.tasks import Classification, Task

    seen: list[object] = []

    def poisoned(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def loss(self: Task, *args: object, **kwargs: object) -> torch.Tensor:
            value = original(self, *args, **kwargs)
            batch = args[1]
            if self.training and not (seen and seen[-1] is batch):
                seen.append(batch)  # a method may ask for several losses of a batch
            return value * float("nan") if self.training and len(seen) == 4 else value

        return loss

    for task in (Classification, SemanticSegmentation):
        monkeypatch.setattr(task, "loss", poisoned(task.loss))
    with pytest.raises(UserError) as caught:
        run(smallest(method=name), tmp_path)
    assert "step" in str(caught.value) and "\n" not in str(caught.value)
    kept = read(tmp_path / "checkpoints/last.ckpt")
    assert kept["global_step"] == 2
    assert all(torch.isfinite(v).all() for v in kept["state_dict"].values())


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    overrides = smallest(model="mlp")
    first = run(overrides, tmp_path)
    before = weights(tmp_path)
    again = run(overrides, tmp_path)
    assert again["metrics"] == first["metrics"] and states_equal(before, weights(tmp_path))


def test_accumulation_equals_the_larger_batch(tmp_path: Path) -> None:
    common = [*smallest(model="mlp"), "model.norm=false", "trainer.max_epochs=1", "dataset.augment.crop=0"]
    large = [*common, "dataset.batch_size=16", "trainer.limit_train_batches=3"]
    small = [*common, "dataset.batch_size=8", "trainer.accumulate_grad_batches=2", "callbacks.checkpoints.every_n_steps=null"]
    run(large, tmp_path / "large")
    run(small, tmp_path / "small")
    a, b = weights(tmp_path / "large"), weights(tmp_path / "small")
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a if k.startswith("model."))
