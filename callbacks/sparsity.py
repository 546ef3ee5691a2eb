"""Drives a sparsity through training, with any method."""

import math
from logging import getLogger
from typing import Any

import pytorch_lightning as pl
import torch

from callbacks.base import Callback, log_numbers
from papermix.errors import UserError
from papermix.sparsity.base import Sparsity

log = getLogger(__name__)


class SparsityDriver(Callback):
    """Attach at setup, move before each batch, add the penalty before each optimizer step, harden at the end.

    Attached to ``method.model`` before the optimizer is made and before a checkpoint is loaded, so that masks are saved and
    restored with the weights. Logs ``sparsity/density`` (of the attached weights) at the start and whenever a mask moves.
    """

    def __init__(self, sparsity: Sparsity):
        self.sparsity = sparsity
        self.total_steps = 0
        if type(sparsity).penalty_backward is not Sparsity.penalty_backward:
            self.on_before_optimizer_step = self._add_penalty

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Attach, unless attached already (Lightning sets up for training, validation and testing)."""
        if not self.sparsity.parts:
            self.sparsity.attach(pl_module.model)  # type: ignore[arg-type]
            log.info("Sparsity acts on %d weights: %s", len(self.sparsity.parts), ", ".join(self.sparsity.parts))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Learn the length of training; refuse a model whose sparse layers were replaced since."""
        present = set(pl_module.modules())
        gone = [name for name, w in self.sparsity.weights.items() if any(module not in present for module, _ in w.places)]
        if gone:
            raise UserError(f"the sparse layers of {', '.join(gone)} were replaced after setup: exclude them (sparsity.exclude).")
        total = trainer.estimated_stepping_batches
        if not math.isfinite(total) or total < 1:
            raise UserError("the sparsity schedule must know how long training is: set trainer.max_epochs or trainer.max_steps.")
        self.total_steps = int(total)
        if trainer.global_step == 0:  # a continued run has this line already
            self._log_density(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Move the schedule."""
        # with several optimizers Lightning counts the steps of each
        step = trainer.global_step // max(1, len(trainer.optimizers))
        if self.sparsity.update(step, self.total_steps):
            self._log_density(trainer)

    def _add_penalty(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer) -> None:
        # once per step, also where a method has several optimizers
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if any(id(p) in stepped for part in self.sparsity.parts.values() for p in part.parameters()) or any(
            id(w.tensor) in stepped for w in self.sparsity.weights.values()
        ):
            self.sparsity.penalty_backward()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring the weights to their final density; say so if the schedule had not."""
        before = self.sparsity.density()
        if self.sparsity.harden():
            log.warning("Sparsity went from density %.4g to %.4g after the last step", before, self.sparsity.density())
            self._log_density(trainer)
        if self.sparsity.density() == 1:
            log.warning("Sparsity has zeroed no weight")

    def densities(self) -> dict[str, float]:
        """Density of each sparse weight, for the report at the end."""
        return self.sparsity.densities()

    def _log_density(self, trainer: pl.Trainer) -> None:
        log_numbers(trainer, {"sparsity/density": self.sparsity.density()})
