"""Drives a sparsity through training, with any method."""

import math
from logging import getLogger
from typing import Any

import pytorch_lightning as pl
import torch

from callbacks.base import Callback, log_numbers
from papermix.errors import UserError
from papermix.optimizers.schedules import restarting
from papermix.sparsity.base import Sparsity

log = getLogger(__name__)


class SparsityDriver(Callback):
    """Attach at setup, move before each batch, add the penalty before each optimizer step, harden at the end.

    Attached to ``method.model`` before the optimizer is made and before a checkpoint is loaded, so that masks are saved and
    restored with the weights. A sparsity of several rounds gets an optimizer without memory and the whole learning-rate schedule
    in each. Logs ``sparsity/density`` (of the attached weights), and what else the sparsity tells, at the start and whenever a
    mask moves.
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
            if self.sparsity.rounds > 1 and getattr(pl_module, "scheduler_factory", None) is not None:
                pl_module.scheduler_factory = restarting(pl_module.scheduler_factory, self.sparsity.rounds)  # type: ignore[arg-type, assignment]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The strategy has set the model up."""
        self.sparsity.follow()

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
        self.sparsity.steps_per_epoch = -(-int(trainer.num_training_batches) // trainer.accumulate_grad_batches)
        if self.total_steps % self.sparsity.rounds:
            log.warning("Training has %d steps, which %d rounds cannot share equally", self.total_steps, self.sparsity.rounds)
        if trainer.global_step == 0:  # a continued run has this line already
            self._log_density(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Move the schedule."""
        # with several optimizers Lightning counts the steps of each
        step = trainer.global_step // max(1, len(trainer.optimizers))
        before = self.sparsity.round
        moved = self.sparsity.update(step, self.total_steps)
        if self.sparsity.round != before:
            for optimizer in trainer.optimizers:
                optimizer.state.clear()
            log.info("Round %d of %d starts at density %.4g", self.sparsity.round + 1, self.sparsity.rounds, self.sparsity.density())
        if moved:
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
        if self.sparsity.numbers():  # what a soft mask was, before it is hard
            self._log_density(trainer)
        if self.sparsity.harden():
            log.warning("Sparsity went from density %.4g to %.4g after the last step", before, self.sparsity.density())
            self._log_density(trainer)
        if self.sparsity.density() == 1:
            log.warning("Sparsity has zeroed no weight")

    def densities(self) -> dict[str, float]:
        """Density of each sparse weight, for the report at the end."""
        return self.sparsity.densities()

    def state_dict(self) -> dict[str, Any]:
        """What of the sparsity's state is not in the model's."""
        return self.sparsity.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.sparsity.load_state_dict(state_dict)

    def _log_density(self, trainer: pl.Trainer) -> None:
        numbers = {"density": self.sparsity.density(), **self.sparsity.numbers()}
        log_numbers(trainer, {f"sparsity/{name}": value for name, value in numbers.items()})
