"""What stands between the training and its loggers: a failing, slow or dead one is told in one sentence and stops nothing.

What is guarded (a "record") is any object with some of these methods; one that it lacks is not called: ``log_hyperparams(config)``,
``log_metrics(numbers, step)``, in the background ``log_rows([(numbers, step, time), ...])``, ``log_picture(name, path, step)``,
``log_result(result)``, ``state_dict()``, ``load_state_dict(state)``, ``close(status)``, and the attributes ``experiment`` (the
library's own object) and ``path`` (its file).
"""

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import DummyExperiment, Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

_PATIENCE = 5  # failures in a row after which a record is left alone
_ROOM = 20_000  # calls that wait for a server that is away; what comes later is not kept
_AT_ONCE = 100  # waiting lines of numbers that are sent together
_LONGEST_PAUSE = 30.0  # seconds between two tries to reach a server that is away


class Guarded(Logger):
    """A logger whose failures (network, disk, server) are told once and never stop the run; only the first process logs.

    Args:
        kind: its name in messages and checkpoints.
        folder: the run folder.
        make: builds the record at its first use; it may fail like any other call.
    """

    def __init__(self, kind: str, folder: str, make: Callable[[], Any]) -> None:
        super().__init__()
        self.kind, self.folder = kind, folder
        self._make = make
        self._record: Any = None
        self._failures = 0
        self._told = False

    # ---- how a record is called --------------------------------------------------------------------------------------------

    def _tell(self, why: BaseException | str) -> None:
        """Say what went wrong, the first time."""
        if self._told:
            return
        self._told = True
        lines = str(why).strip().splitlines()
        text = f"{type(why).__name__}: {lines[0] if lines else ''}" if isinstance(why, BaseException) else why
        warn(self.kind, f"failed and the run goes on: {text[:160]}")

    def _apply(self, name: str, *args: Any, default: Any = None) -> Any:
        """Call a method of the record, which is made first if need be. May raise."""
        if self._record is None:
            self._record = self._make()
        method = getattr(self._record, name, None)
        return default if method is None else method(*args)

    def _try(self, act: Callable[[], Any], default: Any) -> Any:
        if not leads() or self._failures >= _PATIENCE:
            return default
        try:
            result = act()
        except Exception as error:
            self._failures += 1
            self._tell(error)
            return default
        self._failures = 0
        return result

    def _call(self, name: str, *args: Any, default: Any = None) -> Any:
        return self._try(lambda: self._apply(name, *args, default=default), default)

    def _attribute(self, name: str) -> Any:
        """An attribute of the record; None when there is none."""

        def get() -> Any:
            self._apply("")
            return getattr(self._record, name, None)

        return self._try(get, None)

    # ---- Lightning's interface, and ours -----------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The kind of logger."""
        return self.kind

    @property
    def version(self) -> str:
        """Empty: a run folder has one record of each kind."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return self.folder

    @property
    def experiment(self) -> Any:
        """The library's own object, or one that swallows every call."""
        return self._attribute("experiment") or DummyExperiment()

    @property
    def path(self) -> Path | None:
        """The record's file, if it has one."""
        return self._attribute("path")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Tell what is run: the resolved config. It comes before everything else."""
        self._call("log_hyperparams", params)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Pass numbers on, under the optimizer steps done."""
        self._call("log_metrics", dict(metrics), step)

    def log_picture(self, name: str, path: Any, step: int) -> None:
        """Pass an image file on."""
        self._call("log_picture", name, Path(path), step)

    def log_result(self, result: Mapping[str, Any]) -> None:
        """Pass on what ``result.json`` holds."""
        self._call("log_result", dict(result))

    def finalize(self, status: str) -> None:
        """Lightning ends each of its own loops with this; a record is closed by :meth:`close`."""

    def close(self, status: str) -> None:
        """End the record of this run. ``status`` is finished, pruned, stopped or failed."""
        self._call("close", status)

    def state_dict(self) -> dict[str, Any]:
        """The record's place, or {}."""
        return self._call("state_dict", default={})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring the record back to a place; {}: to its start."""
        self._call("load_state_dict", dict(state))


class Background(Guarded):
    """A guarded logger whose record is written by a thread of its own, in order: a slow or silent server never holds up the training.

    While the network, the server or the disk is away, what is to be sent waits here and is tried again until the end of the run.

    Args:
        timeout: seconds that the end of the run (and whoever asks for ``experiment``) waits for an answer; six times as long when
            answers come, but slowly.
    """

    def __init__(self, kind: str, folder: str, make: Callable[[], Any], timeout: float = 20.0) -> None:
        super().__init__(kind, folder, make)
        self.timeout = timeout
        self._waiting: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._changed = threading.Condition()
        self._begun = threading.Event()  # the first call has ended, well or not
        self._thread: threading.Thread | None = None
        self._closing = self._over = False
        self._progress = 0.0

    def _call(self, name: str, *args: Any, default: Any = None) -> Any:
        """Leave a call to the thread."""
        if not leads() or self._over:
            return default
        with self._changed:
            if len(self._waiting) >= _ROOM and name == "log_metrics":
                self._tell("what it has not taken yet fills the memory set aside for it; the rest is left out")
                return default
            self._waiting.append((name, args))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"logger-{self.kind}", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return default

    def _attribute(self, name: str) -> Any:
        if leads() and self._thread is not None:
            self._begun.wait(self.timeout)
        try:
            return getattr(self._record, name, None)
        except Exception as error:
            self._tell(error)
            return None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Pass numbers on, with the time at which they came up."""
        self._call("log_metrics", dict(metrics), step, time.time())

    def state_dict(self) -> dict[str, Any]:
        """{}: what these records have is noted in a file of the run folder."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`state_dict`."""

    def close(self, status: str) -> None:
        """End the record; waits for the thread as long as ``timeout`` says, and goes on without it then."""
        if self._thread is None:
            return
        self._call("close", status)
        started = time.monotonic()
        with self._changed:
            self._closing, self._progress = True, started
            self._changed.notify_all()
        while self._thread.is_alive():
            self._thread.join(0.05)
            now = time.monotonic()
            if now - self._progress > self.timeout or now - started > 6 * self.timeout:
                self._tell(f"no answer within {now - started:.0f} seconds")
                break
        self._over = True

    # ---- the thread --------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._over:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                batch = list(_next(self._waiting))
            if not batch:
                return
            try:
                self._send(batch)
            except Exception as error:
                self._tell(error)
                self._failures += 1
                if not self._goes_on_after(error, batch[0][0]):
                    break
            else:
                self._failures = 0
                self._drop(len(batch))
            self._begun.set()
        with self._changed:
            self._over = True
            self._waiting.clear()
        self._begun.set()

    def _send(self, batch: Sequence[tuple[str, tuple[Any, ...]]]) -> None:
        name, args = batch[0]
        if name == "log_metrics":
            self._apply("log_rows", [args for _, args in batch])
        else:
            self._apply(name, *args)

    def _goes_on_after(self, error: Exception, name: str) -> bool:
        """Wait for what is away, or pass over what was refused; False when the record is to be left alone."""
        if is_away(error):
            if self._closing:
                return False
            self._begun.set()
            with self._changed:
                self._changed.wait_for(lambda: self._closing, timeout=min(2.0**self._failures, _LONGEST_PAUSE))
            return True
        self._drop(1)
        return name != "log_hyperparams" and self._failures < _PATIENCE

    def _drop(self, count: int) -> None:
        with self._changed:
            for _ in range(min(count, len(self._waiting))):
                self._waiting.popleft()
        self._progress = time.monotonic()


def warn(kind: str, text: str) -> None:
    """Say what is the matter with a logger."""
    print(f"warning: logger {kind} {text}", file=sys.stderr, flush=True)


def leads() -> bool:
    """Whether this process is the one that logs."""
    return getattr(rank_zero_only, "rank", 0) in (0, None)


def _next(waiting: deque[tuple[str, tuple[Any, ...]]]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The first of the waiting calls, with those that can be sent together with it."""
    if waiting and waiting[0][0] != "log_metrics":
        return iter([waiting[0]])
    return islice(takewhile(lambda call: call[0] == "log_metrics", waiting), _AT_ONCE)


def is_away(error: BaseException | None) -> bool:
    """Whether something behind an error (network, server, disk, database lock) may be back later."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        # requests' errors are OSErrors; the other two stand for packages that need not be installed
        if isinstance(error, OSError) or type(error).__name__ in ("OperationalError", "CommError"):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def closing(loggers: Sequence[Any]) -> Iterator[None]:
    """Close loggers that can be closed when the work inside has ended, told how it ended."""
    from papermix.run.launch import stop_signal

    status = "finished"
    try:
        yield
    except BaseException as error:
        status = "failed" if stop_signal(error) is None else "stopped"
        raise
    finally:
        for logger in loggers:
            if hasattr(logger, "close"):
                logger.close(status)
