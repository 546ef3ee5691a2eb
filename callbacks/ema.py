"""Exponential moving average of the weights (Polyak & Juditsky 1992), with which validation and test are done."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from callbacks.base import Callback
from papermix.errors import UserError
from papermix.sharding import like, local


class EMA(Callback):
    """Keeps ``average <- d * average + (1 - d) * weights`` after optimizer steps, and puts it in place for validation and test.

    All floating-point parameters of the method are averaged, with two exceptions that follow the model as it is:

    - buffers (BatchNorm's running statistics, fixed masks);
    - parameters marked ``is_mask`` (learned masks of a sparsity): a mean of masks is no mask, so the average is judged under the
      present mask and has the model's own density. Of a parametrized weight it is the dense original that is averaged.

    Averages of parameters in half precision are kept in float32.

    Args:
        decay: d, in [0, 1).
        warmup: use ``min(decay, (1 + n) / (10 + n))`` at the n-th update, so that the first weights are soon forgotten.
        every: optimizer steps between updates; the decay is raised to this power, so the time over which it averages stays.
    """

    def __init__(self, decay: float = 0.999, warmup: bool = True, every: int = 1) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"callbacks.ema.decay={decay} must lie in [0, 1).")
        if every < 1:
            raise UserError(f"callbacks.ema.every={every} must be at least 1.")
        self.decay, self.warmup, self.every = decay, warmup, every
        self.average: dict[str, Tensor] = {}
        self.updates = 0
        self._step = 0
        self._pairs: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._own: list[Tensor] = []
        self._half = False

    def _attach(self, pl_module: pl.LightningModule) -> None:
        """Pair every averaged parameter with its average, on the parameter's device."""
        parameters = {n: p for n, p in pl_module.named_parameters() if p.is_floating_point() and not getattr(p, "is_mask", False)}
        if self.average and self.average.keys() != parameters.keys():
            names = sorted(self.average.keys() ^ parameters.keys())
            raise UserError(
                f"The averaged weights in the checkpoint are of another model (they differ in {names[0]}); use its own config."
            )
        average = {}
        for name, parameter in parameters.items():
            kept = self.average.get(name, parameter.detach())
            dtype = torch.float32 if parameter.dtype in (torch.float16, torch.bfloat16) else parameter.dtype
            average[name] = like(kept, parameter).to(device=parameter.device, dtype=dtype, copy=True)
        self.average = average
        # of sharded weights each process averages its share
        self._pairs = ([local(p.detach()) for p in parameters.values()], [local(a) for a in average.values()])
        self._half = any(w.dtype != a.dtype for w, a in zip(*self._pairs))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start from the weights as they are, or from the checkpoint."""
        self._attach(pl_module)
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update, if the optimizer made a step."""
        step = trainer.global_step
        if step == self._step or step % self.every:
            return
        self._step = step
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        weights, average = self._pairs
        if self._half:
            weights = [w.to(a.dtype) for w, a in zip(weights, average)]
        torch._foreach_lerp_(average, weights, 1 - decay**self.every)

    @contextlib.contextmanager
    def averaged(self, pl_module: pl.LightningModule) -> Iterator[None]:
        """The method with the averaged weights in place, for the time of a ``with`` block."""
        self._swap_in(pl_module)
        try:
            yield
        finally:
            self._swap_out()

    @torch.no_grad()
    def _swap_in(self, pl_module: pl.LightningModule) -> None:
        if self._own or not self.average:
            return
        if not self._pairs[0] or self._pairs[0][0].device != self._pairs[1][0].device:
            self._attach(pl_module)
        weights, average = self._pairs
        self._own = [w.clone() for w in weights]
        torch._foreach_copy_(weights, average)

    @torch.no_grad()
    def _swap_out(self) -> None:
        if self._own:
            torch._foreach_copy_(self._pairs[0], self._own)
            self._own = []

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the average in place."""
        self._swap_in(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the model's own weights back."""
        self._swap_out()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the average in place."""
        self._swap_in(pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the model's own weights back."""
        self._swap_out()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Never leave with the average in the model's place."""
        self._swap_out()

    def state_dict(self) -> dict[str, Any]:
        """The averages and the number of updates."""
        return {"average": self.average, "updates": self.updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.average, self.updates = dict(state_dict["average"]), state_dict["updates"]
        self._pairs = ([], [])
