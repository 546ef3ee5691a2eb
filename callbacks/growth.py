"""Widens a network through training, with any method."""

import math
import time
from itertools import accumulate
from logging import getLogger
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch.utils._pytree import tree_flatten

from callbacks.base import Callback, example, log_numbers, network_input
from callbacks.ema import EMA
from papermix.errors import UserError
from papermix.sparsity.growing import Growing
from papermix.sparsity.widening import cost
from papermix.surgery.watch import unchanged

log = getLogger(__name__)


class GrowthDriver(Callback):
    """Shrinks ``method.model`` at setup, widens it at the stages' first batches, folds its factors into the weights at the end.

    Stages begin with epochs where there are at least as many epochs as stages, otherwise in the middle of them. The learning
    rate's schedule knows nothing of stages. Parameters, optimizer states and what reduces gradients over processes are replaced
    together; a checkpoint of any stage is continued from.

    Logs ``growing/parameters`` when they change, and these, which are in the result, too:

    - ``growing/cost``: FLOPs of the run relative to training the full network for as long;
    - ``growing/change``: largest change of an output at a growth, on the batch at hand in eval mode, over all growths so far;
    - ``growing/loss_rise``: largest rise of the loss of that batch.
    """

    def __init__(self, sparsity: Growing):
        self.growing = sparsity
        self.starts: list[int] = []
        self.seconds = [0.0] * sparsity.stages
        self.steps = [0] * sparsity.stages
        self._clock = 0.0
        self.jumps: dict[str, float] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Shrink the model, unless that is done (Lightning sets up for training, validation and testing)."""
        if any(isinstance(callback, EMA) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise UserError(
                "an average of weights cannot follow a growing network: leave out callbacks ema, or use sparsity=none."
            )
        if self.growing.groups:
            return
        self.growing.attach(pl_module.model, example(trainer, pl_module))  # type: ignore[arg-type]
        names = ", ".join(f"{name} {w[0]}-{w[-1]}" for name, w in list(self.growing.widths.items())[:6])
        log.info("%d groups of channels grow in %d stages: %s", len(self.growing.groups), self.growing.stages, names)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Learn the length of training, and watch the optimizers."""
        total = trainer.estimated_stepping_batches
        if not math.isfinite(total) or total < 1:
            raise UserError("the growth schedule must know how long training is: set trainer.max_epochs or trainer.max_steps.")
        epoch: float = -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
        epochs = math.ceil(total / epoch)
        whole = epochs >= self.growing.stages
        lengths = self.growing.lengths(epochs if whole else int(total))
        self.starts = [int(epoch) * e if whole else e for e in accumulate(lengths, initial=0)][:-1]
        trained = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
        if self.starts[-1] > 0 and not any(id(p) in trained for p in self.growing.producers()):
            raise UserError(
                "a growing network learns while it grows, and this method trains none of its channels: use sparsity=none."
            )
        for optimizer in trainer.optimizers:
            self.growing.watch(optimizer)
        if trainer.global_step == 0:  # a continued run has these lines already
            self._publish(trainer, pl_module, {"growing/cost": cost(lengths, self.growing.flops)})

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Grow when the next stage begins."""
        # with several optimizers Lightning counts the steps of each
        step = trainer.global_step // max(1, len(trainer.optimizers))
        wanted = sum(start <= step for start in self.starts) - 1
        if wanted > self.growing.stage:
            before = _look(pl_module, batch)
            while self.growing.stage < wanted:
                self.growing.grow(trainer.optimizers)
            self._follow(trainer, pl_module)
            self._compare(trainer, pl_module, before, _look(pl_module, batch))
        self._clock = time.perf_counter()

    def _follow(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let go of what still knows the parameters as they were."""
        strategy = trainer.strategy
        if isinstance(strategy, DDPStrategy):
            strategy.model._remove_autograd_hooks()  # type: ignore[union-attr, operator]
            strategy.model = pl_module
            strategy.configure_ddp()
        if getattr(pl_module.model, "_compiled_call_impl", None) is not None:
            torch.compiler.reset()
        # a state carried over chunks of text has the width of before
        getattr(pl_module, "_carried", {}).clear()

    def _compare(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, before: list[torch.Tensor], after: list[torch.Tensor]
    ) -> None:
        """Report what a growth did to the outputs and the loss of a batch."""
        now = torch.stack([max((b - a).abs().max() for a, b in zip(before[1:], after[1:])), after[0] - before[0]]).float()
        change, rise = trainer.strategy.reduce(now, reduce_op="max").tolist()  # type: ignore[arg-type]
        for name, value in (("growing/change", change), ("growing/loss_rise", rise)):
            self.jumps[name] = max(value, self.jumps.get(name, -math.inf))
        self._publish(trainer, pl_module, self.jumps)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up the time of the stage."""
        self.seconds[self.growing.stage] += time.perf_counter() - self._clock
        self.steps[self.growing.stage] += 1

    def time_ratio(self) -> float:
        """Time of all training steps so far relative to as many steps at the last stage's pace; nan before that stage."""
        return sum(self.seconds) * self.steps[-1] / (self.seconds[-1] * sum(self.steps)) if self.steps[-1] else math.nan

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the stock network; say so if training ended before it was there."""
        self.growing.finish()
        if self.growing.stage < self.growing.stages - 1:
            log.warning("Training ended at stage %d of %d: the network is narrower", self.growing.stage + 1, self.growing.stages)
        log.info("Steps took %.3f of the time that the full network needs", self.time_ratio())

    def state_dict(self) -> dict[str, Any]:
        """Times and jumps so far."""
        return {"seconds": list(self.seconds), "steps": list(self.steps), "jumps": dict(self.jumps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.seconds, self.steps = list(state_dict["seconds"]), list(state_dict["steps"])
        self.jumps = dict(state_dict["jumps"])

    def _publish(self, trainer: pl.Trainer, pl_module: pl.LightningModule, numbers: dict[str, float]) -> None:
        """Log the numbers, for the result too where the method keeps one, and the present number of parameters."""
        method: Any = pl_module
        if hasattr(method, "publish"):
            method.publish(numbers)
        else:
            log_numbers(trainer, numbers, trainer.global_step)
        log_numbers(trainer, {"growing/parameters": sum(p.numel() for p in method.model.parameters())}, trainer.global_step)


def _look(pl_module: pl.LightningModule, batch: Any) -> list[torch.Tensor]:
    """The loss of a batch (0 without a task) and the network's outputs, in eval mode."""
    model: Any = pl_module.model
    task: Any = getattr(pl_module, "task", None)
    with unchanged(model):
        output = model(network_input(pl_module, batch))
        output = output[0] if getattr(model, "stateful", False) else output
        outputs = [t for t in tree_flatten(output)[0] if isinstance(t, torch.Tensor) and t.is_floating_point()]
        return [task.loss(output, batch) if hasattr(task, "loss") else outputs[0].new_zeros(()), *outputs]
