"""Numbers about the training itself: learning rate, gradient norm, throughput. Taken at log steps only."""

import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from callbacks.base import Callback, is_log_step, log_numbers
from papermix.sharding import full


class LearningRate(Callback):
    """Logs the learning rate of the step in progress as ``lr``; with several parameter groups or optimizers ``lr/<group>``.

    A group is called by its ``name``, else by its number; groups whose rates agree are not told apart.
    """

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Log before the schedule moves on."""
        if not (trainer.loggers and is_log_step(trainer)):
            return
        prefix = "lr" if len(trainer.optimizers) == 1 else f"lr/{trainer.optimizers.index(optimizer)}"
        rates = {str(group.get("name", i)): float(group["lr"]) for i, group in enumerate(optimizer.param_groups)}
        same = len(set(rates.values())) == 1
        log_numbers(
            trainer, {prefix: next(iter(rates.values()))} if same else {f"{prefix}/{name}": rate for name, rate in rates.items()}
        )


class GradientNorm(Callback):
    """Logs the Euclidean norm of an optimizer's whole gradient as ``gradient_norm``, after unscaling and before clipping."""

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure and log."""
        if not (trainer.loggers and is_log_step(trainer)):
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        name = "gradient_norm" if len(trainer.optimizers) == 1 else f"gradient_norm/{trainer.optimizers.index(optimizer)}"
        if gradients:
            log_numbers(trainer, {name: float(full(torch.nn.utils.get_total_norm(gradients)))})


class Throughput(Callback):
    """Logs ``samples_per_second`` (and ``tokens_per_second`` where batches hold tokens) since the last log step, over all
    processes.

    Left out are checkpoints, and everything from the start of a validation to the next batch; the wait for data is not.
    """

    def __init__(self) -> None:
        self._samples = self._tokens = 0
        self._since = self._left_out = 0.0
        self._pause: tuple[float, float] | None = None

    @staticmethod
    def _clocks(trainer: pl.Trainer) -> tuple[float, float]:
        """The time, and the time spent on checkpoints so far."""
        return time.perf_counter(), getattr(trainer.checkpoint_callback, "seconds", 0.0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._restart(trainer)

    def _restart(self, trainer: pl.Trainer) -> None:
        self._samples = self._tokens = 0
        now, saving = self._clocks(trainer)
        self._since = now - saving
        self._left_out = 0.0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A pause begins."""
        self._pause = self._clocks(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """A pause ends; checkpoints within it are not counted twice."""
        if self._pause is not None:
            now, saving = self._clocks(trainer)
            self._left_out += (now - saving) - (self._pause[0] - self._pause[1])
            self._pause = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and log at log steps."""
        tensors = batch if isinstance(batch, dict) else {}
        tokens = tensors.get("tokens")
        first = next((v for v in tensors.values() if isinstance(v, Tensor)), None)
        self._samples += 0 if first is None else len(first)
        self._tokens += 0 if tokens is None else tokens.numel()
        if trainer.fit_loop._should_accumulate() or trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        now, saving = self._clocks(trainer)
        seconds = now - saving - self._since - self._left_out
        if seconds > 0 and self._samples and trainer.loggers:
            rates = {"samples_per_second": self._samples * trainer.world_size / seconds}
            if self._tokens:
                rates["tokens_per_second"] = self._tokens * trainer.world_size / seconds
            log_numbers(trainer, rates, trainer.global_step)
        self._restart(trainer)
