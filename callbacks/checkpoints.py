"""Checkpoints from which a run continues exactly where it was, at validation, at epoch ends and between any two batches."""

import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn

from callbacks.base import Callback
from papermix.errors import UserError, nearest

_AGREE_EVERY = 8  # batches between two agreements of several processes on "save now" (an all-reduce each)
_BEST = re.compile(r"best-step=(\d+)-(.+)=([^=]+)\.ckpt")


class Preempted(UserError):
    """The run was told to stop, has saved its state, and continues when it is started again.

    Attributes:
        signal: number of the signal that stopped it.
        step: optimizer steps done; ``path``: the checkpoint.
    """

    def __init__(self, number: int, step: int, path: Path) -> None:
        super().__init__(f"{signal.Signals(number).name}: saved step {step} to {path}; the same command continues the run.")
        self.signal, self.step, self.path = number, step, path


class Checkpoints(Callback, pl.callbacks.Checkpoint):
    """Keeps ``last.ckpt`` and the ``top_k`` best checkpoints by a validation metric, and stops in good order on a signal.

    Saves at the end of each validation, after each epoch without one, at the end of the fit, and between batches when
    ``every_n_steps`` or ``every_minutes`` say so. A checkpoint between batches is taken just before the next batch is
    fetched: all of the last step is done by then (its lines in the logs, its validation), so a continued run repeats
    nothing and leaves nothing out. The best ones are hard links to what was ``last.ckpt`` at that moment: they cost no
    second write, and are called ``best-step=000120-val_accuracy=0.9812.ckpt``; the folder itself is the list of the best,
    so it may be moved.

    Loggers that have ``state_dict`` and ``load_state_dict`` are kept in the checkpoint under ``loggers``.

    Args:
        folder: where the files go.
        monitor: the validation metric that is compared; None: the task's (``pl_module.task.monitor``).
        mode: its better direction, ``max`` or ``min``; None: the task's.
        top_k: how many of the best to keep.
        every_n_steps: optimizer steps between two checkpoints inside epochs; None: none.
        every_minutes: the same in minutes of wall time.
        signals: signals that mean "stop soon": the batch in progress is finished, the state saved, and :class:`Preempted` raised.
            During a validation that is its end. A second SIGINT (Ctrl-C) stops at once.

    Attributes:
        seconds: wall time spent saving so far.
    """

    def __init__(
        self,
        folder: str,
        monitor: str | None = None,
        mode: str | None = None,
        top_k: int = 1,
        every_n_steps: int | None = None,
        every_minutes: float | None = None,
        signals: tuple[str, ...] | list[str] = ("SIGTERM", "SIGUSR1", "SIGINT"),
    ) -> None:
        super().__init__()
        if mode not in (None, "min", "max"):
            raise UserError(f"callbacks.checkpoints.mode={mode!r} must be min or max.")
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"callbacks.checkpoints.every_n_steps={every_n_steps} must be at least 1, or null for never.")
        if top_k < 0:
            raise UserError(f"callbacks.checkpoints.top_k={top_k} must be at least 0.")
        if every_minutes is not None and every_minutes <= 0:
            raise UserError(f"callbacks.checkpoints.every_minutes={every_minutes} must be above 0, or null for never.")
        names = [s.name for s in signal.Signals if s.name not in ("SIGKILL", "SIGSTOP")]  # those cannot be caught
        for name in signals:
            if name not in names:
                raise UserError(f"callbacks.checkpoints.signals: no signal that can be caught is called {name!r}{nearest(name, names)}.")
        self.folder = Path(folder)
        self.monitor, self.mode, self.top_k = monitor, mode, top_k
        self.every_n_steps = every_n_steps
        self.every_seconds = None if every_minutes is None else 60 * every_minutes
        self.signals = [signal.Signals[name] for name in signals]
        self.seconds = 0.0
        self._signal = 0
        self._due = False
        self._saved_at = -1  # batches seen (over all epochs) at the latest save
        self._saved_step = -1
        self._fitted = -1  # batches seen when the fit that was saved had ended
        self._clock = time.monotonic()
        self._loaded = False
        self._trained = False
        self._owns_last = False

    # ---- where the files are -----------------------------------------------------------------------------------------------

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "last.ckpt"

    @property
    def best_model_path(self) -> str:
        """The best checkpoint so far, or ''; the name is Lightning's, for ``ckpt_path="best"``."""
        best = self.best()
        return str(best[0][2]) if best else ""

    def best(self) -> list[tuple[float, int, Path]]:
        """``(value, step, path)`` of the best checkpoints in the folder, best first; at equal values the earlier one."""
        found = []
        for path in self.folder.glob("best-step=*.ckpt"):
            match = _BEST.fullmatch(path.name)
            if match and (self.monitor is None or match[2] == self.monitor.replace("/", "_")):
                found.append((float(match[3]), int(match[1]), path))
        sign = -1 if self.mode == "max" else 1
        return sorted(found, key=lambda f: (sign * f[0], f[1]))

    # ---- when to save ------------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take what is not given from the task."""
        task = getattr(pl_module, "task", None)
        self.monitor = self.monitor or getattr(task, "monitor", None)
        self.mode = self.mode or getattr(task, "mode", None) or "min"

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that starts afresh does not append to what one that was killed before its first checkpoint left."""
        if not self._loaded and not trainer.strategy.restore_checkpoint_after_setup:
            for logger in _stateful(trainer):
                logger.load_state_dict({})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to the signals, and to the moment between two batches."""
        self._trained, self._clock = True, time.monotonic()
        if threading.current_thread() is threading.main_thread():
            # a signal that this process was started to ignore (a background job's Ctrl-C) stays ignored
            for number in (n for n in self.signals if signal.getsignal(n) != signal.SIG_IGN):
                signal.signal(number, self._on_signal)  # instead of Lightning's, which broadcasts inside the signal handler
        loop = trainer.fit_loop.epoch_loop
        fetching = type(loop)._on_before_fetch.__get__(loop)

        def before_fetch() -> None:
            self._between_batches(trainer)
            fetching()

        loop._on_before_fetch = before_fetch  # type: ignore[method-assign]

    def _on_signal(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT == self._signal:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            print("stopping after this batch; once more to stop at once", file=sys.stderr, flush=True)
        self._signal = number

    def _between_batches(self, trainer: pl.Trainer) -> None:
        loop = trainer.fit_loop.epoch_loop
        if loop.batch_progress.current.ready % trainer.accumulate_grad_batches:
            return  # summed gradients are not kept
        if trainer.world_size == 1:
            number, due = self._signal, self._due or self._late()
        elif loop.total_batch_idx % _AGREE_EVERY == 0:
            number, due = self._agree(trainer)
        else:
            number, due = 0, False
        if self.every_n_steps is not None:
            step = trainer.global_step
            due = due or (step > 0 and step % self.every_n_steps == 0 and step != self._saved_step)
        if number or due:
            self._save(trainer, between=True)
            if number:
                raise Preempted(number, trainer.global_step, self.last)

    def _agree(self, trainer: pl.Trainer) -> tuple[int, bool]:
        """The same answer in all processes: any process may have the signal, the clock is that of the first."""
        due = self._due or (trainer.is_global_zero and self._late())
        mine = torch.tensor([self._signal, int(due)], device=trainer.strategy.root_device)
        torch.distributed.all_reduce(mine, op=torch.distributed.ReduceOp.MAX)
        number, due = mine.tolist()
        return number, bool(due)

    def _late(self) -> bool:
        return self.every_seconds is not None and time.monotonic() - self._clock >= self.every_seconds

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, and keep it if it is one of the best."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._rank = name = self._rank_among_best(trainer)
        if trainer.fit_loop._should_accumulate():
            # the summed gradients are not kept, so this is no place to continue from (the file says so: ``partial``)
            self._due = True
            if name:
                trainer.save_checkpoint(self.folder / name)
        else:
            self._save(trainer)
            if name and trainer.is_global_zero:
                _link(self.last, self.folder / name)
        self._rank = ""
        if trainer.is_global_zero:
            self._drop_surplus()
        if self._signal and not self._due and trainer.world_size == 1:
            raise Preempted(self._signal, trainer.global_step, self.last)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """An epoch without validation is saved before the first batch of the next, when its last lines are in the logs."""
        if self._saved_at != trainer.fit_loop.total_batch_idx + 1:
            self._due = True

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the finished state, unless it is what this run continued from."""
        seen = trainer.fit_loop.total_batch_idx + 1
        if self._trained and seen != self._fitted:
            self._fitted = seen
            self._save(trainer, again=True)
        self._trained = False

    # ---- saving ------------------------------------------------------------------------------------------------------------

    def _save(self, trainer: pl.Trainer, between: bool = False, again: bool = False) -> None:
        """Write ``last.ckpt``; the one before is kept under another name, to fall back to."""
        seen = trainer.fit_loop.total_batch_idx + 1
        self._due, self._clock = False, time.monotonic()
        if seen == self._saved_at and not again:
            return
        self._between = between
        previous = self.folder / "last-previous.ckpt"
        verify = getattr(trainer.strategy.checkpoint_io, "verify", None)
        # a damaged last.ckpt must not push out the good one that this run continued from
        if trainer.is_global_zero and self.last.exists() and (self._owns_last or _whole(verify, self.last)):
            _link(self.last, previous)
        trainer.save_checkpoint(self.last)
        if trainer.is_global_zero and verify is not None:
            verify(self.last)
        self._owns_last = True
        self._saved_at, self._saved_step = seen, trainer.global_step
        self.seconds += time.monotonic() - self._clock
        self._clock = time.monotonic()

    def _rank_among_best(self, trainer: pl.Trainer) -> str:
        """The file name that the state in hand deserves, or '' when it is not among the best."""
        if self.top_k < 1 or self.monitor is None:
            return ""
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            names = sorted(trainer.callback_metrics)
            raise UserError(
                f"callbacks.checkpoints.monitor={self.monitor!r} is not measured{nearest(self.monitor, names)}; "
                f"there are {', '.join(names) or 'no metrics at all'}."
            )
        number = float(value)
        if number != number:
            return ""
        # files are compared by what their names say, so that the folder alone decides
        text = f"{number:.4f}" if number == 0 or 1e-2 <= abs(number) < 1e6 else f"{number:.4e}"
        best = self.best()
        if len(best) >= self.top_k:
            worst = best[self.top_k - 1][0]
            if not (float(text) > worst if self.mode == "max" else float(text) < worst):
                return ""
        return f"best-step={trainer.global_step:06d}-{self.monitor.replace('/', '_')}={text}.ckpt"

    def _drop_surplus(self) -> None:
        for _, _, path in self.best()[self.top_k :]:
            path.unlink(missing_ok=True)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the loggers' places, and the name that this state deserves among the best."""
        checkpoint["rank"] = self._rank
        checkpoint["partial"] = trainer.fit_loop._should_accumulate()
        checkpoint["fitted"] = self._fitted
        checkpoint["loggers"] = {str(logger.name): logger.state_dict() for logger in _stateful(trainer)}
        loop = trainer.fit_loop.epoch_loop
        fetcher = trainer.fit_loop._data_fetcher
        if self._between and fetcher is not None and loop._should_check_val_fx(fetcher):
            # on a restart here Lightning skips a validation that is not due, and counts a step for it
            checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1

    _between = False
    _rank = ""  # file name of the state in hand among the best, while it is being saved

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Bring the loggers back to where they were, and the best files: a damaged one is none, one that a kill prevented is made."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._loaded = True
        self._fitted = int(checkpoint.get("fitted", -1))
        verify = getattr(trainer.strategy.checkpoint_io, "verify", None)
        for _, _, path in self.best() if trainer.is_global_zero else []:
            if not _whole(verify, path):
                path.unlink(missing_ok=True)
        if trainer.is_global_zero and trainer.ckpt_path:
            if (name := checkpoint.get("rank")) and not (self.folder / name).exists() and self.top_k:
                _link(Path(trainer.ckpt_path), self.folder / name)
            self._drop_surplus()
        self._saved_step = int(checkpoint["global_step"])
        for logger in _stateful(trainer):
            logger.load_state_dict({"step": self._saved_step, **checkpoint.get("loggers", {}).get(str(logger.name), {})})


def _stateful(trainer: pl.Trainer) -> list[Any]:
    return [logger for logger in trainer.loggers if hasattr(logger, "state_dict") and hasattr(logger, "load_state_dict")]


def _whole(verify: Any, path: Path) -> bool:
    try:
        if verify is not None:
            verify(path)
        return True
    except UserError:
        return False


def _link(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``, by a hard link where the file system has them, else by a copy; atomic."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise UserError(
            f"No checkpoint can be written to {target.parent} ({error.strerror}); free space or choose another folder."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
