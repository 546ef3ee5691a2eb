"""Stops a run whose loss is no longer a number, before the optimizer spoils the weights, and says where it began."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from callbacks.base import Callback
from papermix.errors import UserError
from papermix.sharding import full, local, parts


class NonFinite(Callback):
    """Raises UserError before the optimizer update when the loss is NaN or infinite, naming step, epoch, batch and the
    first bad tensor.

    On the CPU the loss is looked at before the backward pass. On a GPU it is copied to the host while the backward pass is being
    queued, and looked at just before the update: the host then waits for the forward pass at most, and the GPU never waits.
    A method that forms its gradients without a backward pass of Lightning's is watched by its gradients instead.

    A bad tensor is searched for by running the batch once more: the inputs first, then, in forward order, each layer's own
    parameters and outputs, then the loss. No checkpoint is written with a parameter that is not finite, so the last one
    stays good.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._pending: Tensor | None = None
        self._event: Any = None
        self._seen = False

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Look at the loss (CPU), or send for it (GPU)."""
        self._seen = True
        loss = loss.detach()
        if loss.device.type == "cuda":
            # losses of several backward passes before one update add up; a bad one stays bad
            self._sum = loss if self._sum is None else self._sum + loss
            self._pending = torch.empty((), dtype=loss.dtype, pin_memory=True).copy_(self._sum, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        elif not math.isfinite(loss.item()):
            self._stop(trainer, pl_module, loss)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Look at what was sent for; without a loss, at the gradients."""
        if self._pending is not None:
            self._event.synchronize()
            loss, self._pending, self._sum = self._pending, None, None
            if not math.isfinite(loss.item()):
                self._stop(trainer, pl_module, loss)
        elif not self._seen:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            if gradients and not math.isfinite(full(torch.nn.utils.get_total_norm(gradients)).item()):
                self._stop(trainer, pl_module, None)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to save weights that are not finite."""
        name = _first_bad_parameter(pl_module)
        if parts(pl_module):
            # each process has looked at its shares, and all must stop together
            found: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(found, name)
            name = next((each for each in found if each is not None), None)
        if name is not None:
            raise UserError(
                f"{name} is not finite after step {trainer.global_step} (epoch {trainer.current_epoch}): no checkpoint of it was "
                "written and the last good one is kept; lower optimizer.lr or set trainer.gradient_clip_val."
            )

    def _stop(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor | None) -> None:
        batch = trainer.fit_loop.epoch_loop._results.batch
        batch_idx = trainer.fit_loop.batch_idx
        culprit = first_bad(pl_module, batch, batch_idx) or ("the loss" if loss is not None else "a gradient")
        kind = "the gradient is not finite" if loss is None else f"the loss is {'NaN' if loss.isnan().item() else 'infinite'}"
        raise UserError(
            f"At step {trainer.global_step} (epoch {trainer.current_epoch}, batch {batch_idx}) {kind}, first seen in {culprit}; "
            "nothing was updated and the last good checkpoint is kept; lower optimizer.lr, set trainer.gradient_clip_val, or "
            "look at that batch."
        )


def first_bad(pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> str | None:
    """Describe the first tensor that is NaN or infinite when ``batch`` is run again: an input, a parameter or an output of
    a layer.

    Of a sharded network only the inputs and this process's shares of the parameters are looked at. Nothing is updated or logged.
    None: all tensors are finite this time (or the batch cannot be run again).
    """
    for name, value in batch.items() if isinstance(batch, dict) else []:
        if _bad(value):
            rows = [i for i in range(len(value)) if _bad(value[i])] if value.dim() else []
            index = batch.get("index")
            sample = (
                f" of sample {int(index[rows[0]])}" if rows and isinstance(index, Tensor) and len(index) == len(value) else ""
            )
            return f"the input '{name}'{sample}"
    if parts(pl_module):
        # one process alone cannot run the batch again
        return _named(_first_bad_parameter(pl_module))
    found: list[str] = []

    def before(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any) -> None:
            for own, parameter in module.named_parameters(prefix=name, recurse=False):
                if _bad(parameter):
                    found.append(f"the parameter {own}")

        return hook

    def after(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            if any(_bad(t) for t in _tensors(output)):
                found.append(f"the output of {name} ({type(module).__name__})")

        return hook

    handles = []
    for name, module in pl_module.named_modules():
        if name:
            handles += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after(name))]
    try:
        with torch.no_grad(), _silent(pl_module), contextlib.suppress(Exception):
            if pl_module.automatic_optimization:
                pl_module.training_step(batch, batch_idx)
            else:  # a training step of that kind would update the weights
                pl_module.model(batch[pl_module.task.input])  # type: ignore[operator, union-attr, index]
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    return _named(_first_bad_parameter(pl_module))


def _named(name: str | None) -> str | None:
    return None if name is None else f"the parameter {name}"


def _bad(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all().item()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _first_bad_parameter(module: nn.Module) -> str | None:
    parameters = {name: local(p.detach()) for name, p in module.named_parameters() if p.is_floating_point() and local(p).numel()}
    if not parameters:
        return None
    # the largest absolute value of each is one fused pass; infinity and NaN survive it
    norms = torch._foreach_norm(list(parameters.values()), float("inf"))
    finite = torch.stack([torch.isfinite(n).to("cpu") for n in norms])
    bad = (~finite).nonzero()
    return list(parameters)[int(bad[0])] if len(bad) else None


@contextlib.contextmanager
def _silent(pl_module: pl.LightningModule) -> Iterator[None]:
    """Logging calls of the module do nothing meanwhile."""

    def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    pl_module.__dict__.update(log=nothing, log_dict=nothing)
    try:
        yield
    finally:
        for name in ("log", "log_dict"):
            del pl_module.__dict__[name]
