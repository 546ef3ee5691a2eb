"""The average is the recurrence, is what validation and test see, and continues with the run."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from callbacks.checkpoints import Checkpoints
from callbacks.ema import EMA
from callbacks.rng import RandomState
from papermix.errors import UserError
from papermix.run.checkpoint_io import VerifiedCheckpointIO
from tests.callbacks.world import Killed, Points, Small, fit, same, trainer, weights


class Watched(Small):
    """Keeps the weights after every optimizer step and those that evaluations saw."""

    def __init__(self, **keys) -> None:
        super().__init__(**keys)
        self.steps: list[dict[str, Tensor]] = []
        self.evaluated: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        self.steps.append(weights(self))

    def validation_step(self, batch, batch_idx) -> None:
        if batch_idx == 0:
            self.evaluated.append(weights(self))
        super().validation_step(batch, batch_idx)

    def test_step(self, batch, batch_idx) -> None:
        if batch_idx == 0:
            self.evaluated.append(weights(self))
        super().test_step(batch, batch_idx)


@pytest.mark.parametrize(("warmup", "every", "accumulate"), [(False, 1, 1), (True, 1, 1), (True, 3, 1), (True, 1, 2)])
def test_equals_the_recurrence(tmp_path: Path, warmup: bool, every: int, accumulate: int) -> None:
    module = Watched()
    average = {name: p.detach().clone() for name, p in module.named_parameters()}
    ema = EMA(0.9, warmup=warmup, every=every)
    runner = trainer(tmp_path, [ema], max_epochs=2, accumulate_grad_batches=accumulate)
    fit(module, runner)
    after = module.steps[accumulate - 1 :: accumulate]
    seen = []
    for n, state in enumerate(after[every - 1 :: every], 1):
        d = (min(0.9, (1 + n) / (10 + n)) if warmup else 0.9) ** every
        average = {name: d * a + (1 - d) * state[name] for name, a in average.items()}
        seen.append(average)
    assert ema.updates == len(seen) == 12 // (every * accumulate)
    for name, value in average.items():
        torch.testing.assert_close(ema.average[name], value, rtol=1e-5, atol=1e-6)
    # validation and test run with the average and the model's own buffers
    middle = seen[len(seen) // 2 - 1]
    for name, value in module.evaluated[0].items():
        expected = middle.get(name, after[len(after) // 2 - 1][name])
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    own = weights(module)
    runner.test(module, Points(16, seed=1, shuffle=False), verbose=False)
    for name, value in average.items():
        torch.testing.assert_close(module.evaluated[-1][name], value, rtol=1e-5, atol=1e-6)
    assert same(own, weights(module))
    assert not same(own, module.evaluated[-1])


def test_does_not_touch_training(tmp_path: Path) -> None:
    assert same(weights(fit(Small(), trainer(tmp_path))), weights(fit(Small(), trainer(tmp_path, [EMA(0.9)]))))


def test_continues_exactly(tmp_path: Path) -> None:
    def run(module, ckpt=None) -> EMA:
        ema = EMA(0.95, every=2)
        callbacks = [ema, RandomState(), Checkpoints(str(tmp_path), every_n_steps=1)]
        fit(module, trainer(tmp_path, callbacks, plugins=[VerifiedCheckpointIO()]), ckpt)
        return ema

    whole = run(Small())
    with pytest.raises(Killed):
        run(Small(die_at=9))
    second = run(Small(), str(tmp_path / "last.ckpt"))
    assert whole.updates == second.updates == 9
    assert same(whole.average, second.average)
    # a test in another process takes the average from the checkpoint
    module = Watched()
    trainer(tmp_path, [EMA(0.95)], plugins=[VerifiedCheckpointIO()]).test(
        module, Points(16, seed=1, shuffle=False), ckpt_path=str(tmp_path / "last.ckpt"), verbose=False
    )
    assert same(whole.average, {name: module.evaluated[0][name] for name in whole.average})


class Masked(nn.Module):
    """A learned mask over a weight, the way a sparsity makes one."""

    def __init__(self, size: torch.Size) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.randn(size))
        self.scores.is_mask = True

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (self.scores > 0)


def test_masks_follow_the_model_and_originals_are_averaged(tmp_path: Path) -> None:
    module = Watched()
    parametrize.register_parametrization(module.model.first, "weight", Masked(module.model.first.weight.shape))
    mask = (module.model.first.parametrizations.weight[0].scores > 0).float()
    ema = EMA(0.9)
    fit(module, trainer(tmp_path, [ema], max_epochs=1))
    name = "model.first.parametrizations.weight"
    assert f"{name}.original" in ema.average
    assert f"{name}.0.scores" not in ema.average
    with ema.averaged(module):
        assert torch.equal(module.model.first.weight, ema.average[f"{name}.original"] * mask)
    assert not torch.equal(module.model.first.weight, ema.average[f"{name}.original"] * mask)


def test_half_precision_averages_in_float32(tmp_path: Path) -> None:
    module = Small().bfloat16()
    ema = EMA(0.5, warmup=False)
    ema._attach(module)
    with torch.no_grad():
        module.model.last.bias.fill_(1.0)
    start = ema.average["model.last.bias"].clone()
    ema._step = -1
    ema.on_train_batch_end(type("T", (), {"global_step": 1})(), module, None, None, 0)
    assert ema.average["model.last.bias"].dtype == torch.float32
    assert torch.equal(ema.average["model.last.bias"], 0.5 * start + 0.5)
    with ema.averaged(module):
        assert module.model.last.bias.dtype == torch.bfloat16


def test_bad_settings_and_another_model() -> None:
    with pytest.raises(UserError, match=r"decay=1\.0"):
        EMA(1.0)
    with pytest.raises(UserError, match="every=0"):
        EMA(every=0)
    ema = EMA()
    ema.load_state_dict({"average": {"other": torch.zeros(1)}, "updates": 1})
    with pytest.raises(UserError, match="of another model"):
        ema._attach(Small())
