"""A loss that is no number stops the run before the update, and its origin is named."""

from pathlib import Path

import pytest
import torch

from callbacks.checkpoints import Checkpoints
from callbacks.nonfinite import NonFinite, first_bad
from papermix.errors import UserError
from papermix.run.checkpoint_io import VerifiedCheckpointIO, find_last, read
from tests.callbacks.world import Points, Small, fit, same, trainer, weights


class Bad(Small):
    """Goes wrong at batch 8 in the way that is asked for."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.before: dict = {}

    def on_train_batch_start(self, batch, batch_idx) -> None:
        if self.trainer.fit_loop.total_batch_idx == 8:
            if self.how == "input":
                batch["image"][3, 0, 1, 2] = float("nan")
            if self.how == "parameter":
                self.model.norm.bias.data[2] = float("inf")
            self.before = weights(self)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.trainer.fit_loop.total_batch_idx == 8:
            if self.how == "loss":
                return loss * float("inf")
            if self.how == "layer":
                hook = self.model.norm.register_forward_hook(lambda m, a, out: out / 0)
                loss = super().training_step(batch, batch_idx)
                assert hook
        return loss


@pytest.mark.parametrize(
    ("how", "culprit"),
    [
        ("input", r"NaN, first seen in the input 'image' of sample \d+"),
        (
            "parameter",
            r"NaN, first seen in the parameter model\.norm\.bias|infinite, first seen in the parameter model\.norm\.bias",
        ),
        ("layer", r"first seen in the output of model\.norm \(BatchNorm1d\)"),
        ("loss", r"the loss is infinite, first seen in the loss"),
    ],
)
def test_stops_before_the_update_and_names_the_culprit(tmp_path: Path, how: str, culprit: str) -> None:
    module = Bad(how)
    callbacks = [NonFinite(), Checkpoints(str(tmp_path), every_n_steps=1)]
    with pytest.raises(UserError, match=rf"At step 8 \(epoch 1, batch 2\) .*{culprit}"):
        fit(module, trainer(tmp_path, callbacks, plugins=[VerifiedCheckpointIO()]))
    parameters = {name for name, _ in module.named_parameters()}
    now = weights(module)
    assert same({n: module.before[n].nan_to_num() for n in parameters}, {n: now[n].nan_to_num() for n in parameters})
    # the last good checkpoint is the one before the bad batch
    found = find_last(tmp_path)
    assert found is not None
    assert found.step == 8
    assert all(v.isfinite().all() for v in read(found.path)["state_dict"].values())


class Manual(Small):
    """Forms its gradients itself, without any backward pass of Lightning's."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = self.model(batch["image"]).sum() * (float("nan") if batch_idx == 4 else 1.0)
        parameters = list(self.model.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
            parameter.grad = gradient
        optimizer.step()


def test_gradients_formed_by_a_method_are_watched(tmp_path: Path) -> None:
    module = Manual()
    with pytest.raises(UserError, match=r"At step 4 \(epoch 0, batch 4\) the gradient is not finite"):
        fit(module, trainer(tmp_path, [NonFinite()]))
    assert all(p.isfinite().all() for p in module.parameters())


def test_no_checkpoint_of_spoilt_weights(tmp_path: Path) -> None:
    """A finite loss with an infinite gradient spoils the weights: the save after it is refused, the file before stays."""

    class Spoilt(Small):
        def on_before_optimizer_step(self, optimizer) -> None:
            if self.trainer.global_step == 4:
                self.model.last.weight.grad.fill_(float("inf"))

    callbacks = [NonFinite(), Checkpoints(str(tmp_path), every_n_steps=1)]
    with pytest.raises(UserError, match=r"model\.last\.weight is not finite after step 5.*last good one is kept"):
        fit(Spoilt(), trainer(tmp_path, callbacks, plugins=[VerifiedCheckpointIO()]))
    assert read(tmp_path / "last.ckpt")["global_step"] == 4


def test_sound_runs_are_not_changed(tmp_path: Path) -> None:
    assert same(weights(fit(Small(), trainer(tmp_path))), weights(fit(Small(), trainer(tmp_path, [NonFinite()]))))


def test_search_finds_nothing_in_a_sound_batch() -> None:
    module = Small()
    module.model.drop.p = 0.0
    assert first_bad(module, next(iter(Points())), 0) is None
