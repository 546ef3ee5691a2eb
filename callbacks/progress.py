"""The progress bar of a run: where it is, how fast, how long it will take, and the latest numbers."""

import math
import sys
import time
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.live import Live
from rich.text import Text

from callbacks.base import Callback


class Progress(Callback, pl.callbacks.ProgressBar):
    """A bar on a terminal, now and then a line elsewhere.

    The clock is all that is looked at in a step: tensors of ``pl_module.progress`` (name -> detached scalar) are read,
    which waits for a GPU, only when something is shown. The time left is judged by the whole time of the fit so far,
    validations included.

    Args:
        refresh: seconds between two pictures of the bar.
        line_every: seconds between two lines when the output is not a terminal; the end of an epoch has a line too.
        console: where to write; None: the terminal, or standard output.
    """

    def __init__(self, refresh: float = 0.1, line_every: float = 30.0, console: Console | None = None) -> None:
        super().__init__()
        self.refresh, self.line_every = refresh, line_every
        self._console = console
        self._live: Live | None = None
        self._enabled = True
        self._next = math.inf
        self._validation: dict[str, float] = {}
        self._began = self._rate_at = 0.0
        self._first = self._rate_batch = 0
        self._rate = self._paused = self._pause_began = 0.0

    def disable(self) -> None:
        """Show nothing (processes other than the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self._live is not None:
            self._live.console.print(*args)
        else:
            print(*args)

    # ---- hooks -------------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and the bar on a terminal."""
        self._began = self._rate_at = time.monotonic()
        self._first = self._rate_batch = trainer.fit_loop.total_batch_idx + 1
        if not self._enabled:
            return
        console = self._console or Console(file=sys.stdout)
        if console.is_terminal:
            self._live = Live(console=console, auto_refresh=False, transient=False, redirect_stderr=True)
            self._live.start()
            self._next = self._began
        else:
            self._next = self._began + self.line_every

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show, if it is time to."""
        now = time.monotonic()
        if now >= self._next:
            self._show(trainer, pl_module, now, "train", batch_idx + 1, trainer.num_training_batches)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The same in validation."""
        now = time.monotonic()
        if now >= self._next and not trainer.sanity_checking:
            batches = trainer.num_val_batches
            total = batches[dataloader_idx] if isinstance(batches, list) else batches
            self._show(trainer, pl_module, now, "validation", batch_idx + 1, total)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A validation is no part of the speed."""
        self._pause_began = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the metrics; they are shown until the next validation."""
        self._paused += time.monotonic() - self._pause_began
        if not trainer.sanity_checking and self._enabled:
            metrics = trainer.callback_metrics.items()
            self._validation = {name: float(value) for name, value in metrics if name.startswith("val/")}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the epoch as a whole."""
        if self._next < math.inf:
            done = trainer.fit_loop.batch_idx + 1
            self._show(trainer, pl_module, time.monotonic(), "train", done, trainer.num_training_batches)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the last picture standing."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the terminal back."""
        self._close()

    def _close(self) -> None:
        self._next = math.inf
        if self._live is not None:
            self._live.stop()
            self._live = None

    # ---- what is shown -----------------------------------------------------------------------------------------------------

    def _show(self, trainer: pl.Trainer, pl_module: Any, now: float, stage: str, batch: int, batches: float) -> None:
        seen = trainer.fit_loop.total_batch_idx + 1
        training = now - self._rate_at - self._paused
        if stage == "train" and seen > self._rate_batch and (training >= 0.5 or not self._rate or self._live is None):
            self._rate = (seen - self._rate_batch) / max(training, 1e-9)
            self._rate_at, self._rate_batch, self._paused = now, seen, 0.0
        total = self._total(trainer)
        done = seen - self._first
        left = (now - self._began) / done * (total - seen) if done and total < math.inf else math.nan
        numbers = {name: float(value) for name, value in getattr(pl_module, "progress", {}).items()}
        losses = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in self._validation.items())
        epochs = trainer.max_epochs
        epoch = f"epoch {trainer.current_epoch + 1}" + (f"/{epochs}" if epochs is not None and epochs > 0 else "")
        position = f"{stage} {batch}" + (f"/{int(batches)}" if batches < math.inf else "")
        speed = f"{self._rate:.4g} it/s" if self._rate < 1000 else f"{self._rate:.0f} it/s"
        if self._live is not None:
            self._next = now + self.refresh
            self._live.update(
                _picture(epoch, position, done + self._first, total, speed, _time(left), losses, metrics), refresh=True
            )
        else:
            self._next = now + self.line_every
            parts = [epoch, position, f"step {trainer.global_step}", losses, metrics, speed, f"{_time(left)} left"]
            self.print("  ".join(part for part in parts if part), flush=True)

    @staticmethod
    def _total(trainer: pl.Trainer) -> float:
        """Training batches of the whole fit; infinite when nobody knows."""
        per_epoch = trainer.num_training_batches
        by_epochs = trainer.max_epochs * per_epoch if trainer.max_epochs is not None and trainer.max_epochs >= 0 else math.inf
        by_steps = trainer.max_steps * trainer.accumulate_grad_batches if trainer.max_steps >= 0 else math.inf
        return min(by_epochs, by_steps)


def _picture(epoch: str, position: str, done: int, total: float, speed: str, left: str, losses: str, metrics: str) -> Text:
    """Two lines: the place with the bar, and the numbers. (Rich's tables and bars take five times as long to draw.)"""
    width = 30
    full = round(width * done / total) if 0 < total < math.inf else 0
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(epoch, "bold").append(f"  {position}  ")
    text.append("━" * full, "green").append("━" * (width - full), "bright_black")
    text.append(f"  {speed}", "cyan").append(f"  {left} left\n", "magenta")
    return text.append(losses, "green").append("  " if losses else "").append(metrics, "yellow")


def _time(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?:??"
    hours, rest = divmod(round(max(0.0, seconds)), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
