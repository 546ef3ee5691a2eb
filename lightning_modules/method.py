"""What all methods share: metrics, cheap logging, the optimizer and its schedule. A method adds what it computes from a batch."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_modules.tasks import Task


class Method(pl.LightningModule):
    """Base of all training procedures.

    Args:
        model: the network.
        task: loss and metrics of the data.
        optimizer: makes an optimizer from the module whose parameters it trains (keywords go to ``param_groups``).
        scheduler: makes a learning-rate schedule from ``(optimizer, total_steps, steps_per_epoch)``; None: constant.

    Attributes:
        progress: the latest training numbers (name -> detached scalar), for progress bars.
        latest: the latest value of everything logged for the result (name -> number); in the checkpoint.
        fresh: names of the model's parts that start anew even when ``init_from`` has weights for them.
    """

    fresh: tuple[str, ...] = ()
    # models are known by what they can do (timm's interface), not by a type
    model: Any

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizer: Callable[..., torch.optim.Optimizer],
        scheduler: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.task = task
        heads = self.heads()
        if heads:
            model.reset_heads(heads)  # type: ignore[operator]
        self.optimizer_factory = optimizer
        self.scheduler_factory = scheduler
        self.metrics = nn.ModuleDict({"val_metrics": task.metrics(), "test_metrics": task.metrics()})
        self.progress: dict[str, Tensor] = {}
        self.latest: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._logged_at = 0
        self._schedule: Any = None

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the hook in progress about fifty times a step; torch's way looks for parameters and modules every time
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # ---- what a method may change -------------------------------------------------------------------------------------------

    def heads(self) -> dict[str, int]:
        """Name -> channels of the maps that a dense model must give; empty for models of another kind."""
        return dict(getattr(self.task, "heads", {}))

    def forward(self, x: Tensor) -> Any:
        """The model's output."""
        return self.model(x)

    def predict(self, batch: dict[str, Tensor], split: str) -> Any:
        """The output that the task's metrics judge, for a batch of ``train``, ``val`` or ``test``."""
        return self.model(batch[self.task.input])

    def inherit(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What of a checkpoint's tensors, of any method, the model starts from (``init_from``), by their names in the model."""
        return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}

    # ---- training numbers ---------------------------------------------------------------------------------------------------

    def record(self, **values: Tensor) -> None:
        """Add scalars of this step to the means that are logged as ``train/<name>`` every ``trainer.log_every_n_steps`` steps.

        No tensor is read back from the device here, so the step does not wait.
        """
        for name, value in values.items():
            value = value.detach()
            self.progress[name] = value
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._count += 1

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the means since the last line, at every n-th optimizer step."""
        step, every = self.global_step, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and step % every == 0 and step != self._logged_at:
            self._flush()

    def _flush(self) -> None:
        if self._count:
            values = torch.stack([v.double() for v in self._sums.values()]) / self._count
            if self.trainer.world_size > 1:
                values = self.trainer.strategy.reduce(values, reduce_op="mean")
            numbers = {f"train/{k}": v for k, v in zip(self._sums, values.tolist())}
            self.publish(numbers)
        self._sums, self._count, self._logged_at = {}, 0, self.global_step

    def publish(self, numbers: dict[str, float]) -> None:
        """Report numbers, the same in all processes: to the loggers, the result, and whatever monitors a metric."""
        for logger in self.loggers:
            logger.log_metrics({**numbers, "epoch": self.current_epoch}, step=self.global_step)
        self.trainer.callback_metrics.update({k: torch.tensor(v) for k, v in numbers.items()})
        self.latest |= numbers

    def on_train_end(self) -> None:
        """Log what the last interval left."""
        self._flush()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the running means, so that a continued run logs what a run never stopped does."""
        checkpoint["papermix_record"] = {"sums": dict(self._sums), "count": self._count, "logged_at": self._logged_at}
        checkpoint["papermix_latest"] = dict(self.latest)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the running means."""
        kept = checkpoint.get("papermix_record")
        if kept is not None:
            self._sums = {k: v.to(self.device) for k, v in kept["sums"].items()}
            self._count, self._logged_at = kept["count"], kept["logged_at"]
            self.latest = dict(checkpoint["papermix_latest"])

    # ---- evaluation ---------------------------------------------------------------------------------------------------------

    def _evaluate(self, batch: dict[str, Tensor], split: str) -> Any:
        output = self.predict(batch, split)
        self.task.update(self.metrics[f"{split}_metrics"], output, batch)  # type: ignore[arg-type]
        return output

    def _report(self, split: str) -> dict[str, Tensor]:
        metrics: Any = self.metrics[f"{split}_metrics"]
        values = {f"{split}/{k}": v.float() for k, v in metrics.compute().items()}
        self.publish({k: v.item() for k, v in values.items()})
        metrics.reset()
        return values

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        """Add a validation batch to the metrics; the output is for callbacks to look at."""
        return self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log ``val/*``; a schedule that waits for a plateau is told."""
        value = self._report("val")[self.task.monitor]
        if getattr(self._schedule, "needs_metric", False) and self.trainer.training:
            self._schedule.step(value)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        """Add a test batch to the metrics; the output is for callbacks to look at."""
        return self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log ``test/*``."""
        self._report("test")

    # ---- optimizer ----------------------------------------------------------------------------------------------------------

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer over the model's trainable parameters."""
        return self.optimizer_factory(self.model)

    def configure_optimizers(self) -> Any:
        """The optimizer over the model, and its schedule, moved at every optimizer step."""
        optimizer = self.make_optimizer()
        if self.scheduler_factory is None:
            return optimizer
        total = self.trainer.estimated_stepping_batches  # infinite when nothing ends the run: the schedule says so
        self.trainer.fit_loop.setup_data()  # Lightning may not have looked at the loader yet
        per_epoch = -(-int(self.trainer.num_training_batches) // self.trainer.accumulate_grad_batches)
        schedule = self.scheduler_factory(optimizer, total_steps=total, steps_per_epoch=per_epoch)
        self._schedule = schedule
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
