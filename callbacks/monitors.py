"""Numbers about the training itself: learning rate, gradient norm, throughput. Taken at log steps only."""

import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from callbacks.base import Callback, is_log_step, log_numbers


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
            log_numbers(trainer, {name: float(torch.nn.utils.get_total_norm(gradients))})


class Throughput(Callback):
    """Logs ``samples_per_second`` (and ``tokens_per_second`` where batches hold tokens) since the last log step, over all
    processes.

    The time of validations and of checkpoints is left out; the wait for data is not.
    """

    def __init__(self) -> None:
        self._samples = self._tokens = 0
        self._since = self._paused = self._pause_began = self._saving = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._restart(trainer)

    def _restart(self, trainer: pl.Trainer) -> None:
        self._samples = self._tokens = 0
        self._since, self._paused = time.perf_counter(), 0.0
        self._saving = getattr(trainer.checkpoint_callback, "seconds", 0.0)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note when a pause begins."""
        self._pause_began = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how long it was."""
        self._paused += time.perf_counter() - self._pause_began

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
        saving = getattr(trainer.checkpoint_callback, "seconds", 0.0) - self._saving
        seconds = time.perf_counter() - self._since - self._paused - saving
        if seconds > 0 and self._samples and trainer.loggers:
            rates = {"samples_per_second": self._samples * trainer.world_size / seconds}
            if self._tokens:
                rates["tokens_per_second"] = self._tokens * trainer.world_size / seconds
            log_numbers(trainer, rates, trainer.global_step)
        self._restart(trainer)
