"""Lightning's early stopping, on the task's own metric unless told otherwise."""

import pytorch_lightning as pl

from papermix.errors import UserError, nearest


class EarlyStopping(pl.callbacks.EarlyStopping):
    """Stops training when the monitored metric has not improved by ``min_delta`` for ``patience`` validations.

    Args:
        monitor: the validation metric; None: the task's.
        mode: its better direction, ``max`` or ``min``; None: the task's.
        patience: validations without improvement before the stop.
        min_delta: a smaller change is no improvement.
    """

    def __init__(self, monitor: str | None = None, mode: str | None = None, patience: int = 10, min_delta: float = 0.0) -> None:
        if mode not in (None, "min", "max"):
            raise UserError(f"callbacks.early_stopping.mode={mode!r} must be min or max.")
        if patience < 1:
            raise UserError(f"callbacks.early_stopping.patience={patience} must be at least 1.")
        self._given = (monitor, mode, patience, min_delta)
        self._ready = False
        super().__init__(monitor=monitor or "", mode=mode or "min", patience=patience, min_delta=min_delta)

    @property
    def state_key(self) -> str:
        """Known before the task is."""
        return "EarlyStopping"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take what is not given from the task."""
        if not self._ready:
            self._ready = True
            task = getattr(pl_module, "task", None)
            monitor, mode, patience, min_delta = self._given
            monitor, mode = monitor or getattr(task, "monitor", "val/loss"), mode or getattr(task, "mode", "min")
            super().__init__(
                monitor=str(monitor), mode=str(mode), patience=patience, min_delta=min_delta, check_on_train_epoch_end=False
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare."""
        names = sorted(trainer.callback_metrics)
        if self.monitor not in names and not self._should_skip_check(trainer):
            raise UserError(
                f"callbacks.early_stopping.monitor={self.monitor!r} is not measured{nearest(self.monitor, names)}; "
                f"there are {', '.join(names) or 'no metrics at all'}."
            )
        super().on_validation_end(trainer, pl_module)
