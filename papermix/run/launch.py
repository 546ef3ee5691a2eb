"""Several processes of one run on this machine, started by us: the same in single runs and in sweeps, and none is left behind.

Lightning would start them by running ``sys.argv`` once more, which under a sweep composes the wrong config. Here each process
("rank") computes the config that is frozen in the run folder. Torch is never imported by the process that launches.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from papermix.errors import UserError
from papermix.run.explain import explain, is_expected
from papermix.run.folder import read_json, write_atomic

_ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = "PAPERMIX_LAUNCHER"  # who has started a rank: the process id of the launcher, or srun
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_GRACE = 3.0  # seconds between asking a rank to end and killing it, once another one has failed
_SAVING = 30.0  # the same when all were told to stop: they may be writing their state
_PR_SET_PDEATHSIG = 1


class Stopped(UserError):
    """The work was stopped by a signal from outside; the same command continues it.

    Attributes:
        signal: its number.
        exit_code: what a shell expects of a process that this signal ended.
    """

    def __init__(self, sentence: str, number: int = signal.SIGTERM) -> None:
        super().__init__(sentence)
        self.signal = int(number)
        self.exit_code = 128 + self.signal

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.signal)


def stop_signal(error: BaseException | None) -> int | None:
    """Number of the signal behind an exception or behind what caused it; None when no signal told the work to stop."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return int(signal.SIGINT)
        number = getattr(error, "signal", None)
        if isinstance(number, int):
            return int(number)
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def check_alone(environment: Mapping[str, str] = os.environ) -> None:
    """Raise UserError in the first of several processes of train.py that a user's torchrun, srun or mpirun has started; the others end."""
    names = {
        "torchrun": ("WORLD_SIZE", "RANK"),
        "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
        "mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    }
    for program, (size, rank) in names.items():
        count = environment.get(size, "1")
        if LAUNCHER in environment or not count.isdigit() or int(count) < 2:
            continue
        if environment.get(rank) != "0":
            sys.exit(1)
        raise UserError(
            f"{program} has started {count} processes of train.py, which starts its own: run it once, without {program}, with "
            "hardware.devices=N for N processes on this machine, or with -m hardware=slurm."
        )


# ---- the launcher's side -------------------------------------------------------------------------------------------------------


def launch(run_dir: Path, processes: int, *, env: Mapping[str, str] | None = None, command: Sequence[str] | None = None) -> None:
    """Run the stage frozen in ``run_dir`` on ``processes`` ranks, and return when all have finished.

    Rank 0 writes to this terminal, rank N to ``logs/rank-N.log``. SIGINT, SIGTERM and SIGUSR1 are passed on to all ranks; a second
    one ends them at once. When a rank fails, the others are ended within seconds.

    Args:
        run_dir: the run folder, with ``config.yaml``.
        processes: how many ranks.
        env: environment variables for the ranks, on top of this process's own.
        command: what each rank runs; None: ``python -m papermix.run.worker RUN_DIR``. It should use :func:`as_rank`.

    Raises:
        UserError: the sentence of the rank that failed first.
        Stopped: the ranks ended because of a SIGTERM or SIGUSR1. KeyboardInterrupt: because of a SIGINT.
    """
    command = [sys.executable, "-m", "papermix.run.worker", str(run_dir)] if command is None else list(command)
    for attempt in range(3):
        failure = _Ranks(run_dir, processes, env or {}, command).run()
        # another process may have taken the port between our asking for it and rank 0's use of it
        if failure is None or attempt == 2 or "address already in use" not in failure.lower():
            break
    if failure is not None:
        raise UserError(failure)


class _Ranks:
    """The rank processes of one launch."""

    def __init__(self, run_dir: Path, processes: int, env: Mapping[str, str], command: list[str]) -> None:
        self.run_dir, self.processes, self.command = Path(run_dir), processes, command
        self.env = {**rank_environment(processes), **env}
        self.procs: list[subprocess.Popen[bytes]] = []
        self.signals: list[int] = []

    def run(self) -> str | None:
        """Start the ranks and wait for them; returns the sentence of the first that failed, None if all went well."""
        clear_notes(self.run_dir)
        try:
            with self._passing_signals_on():
                for rank in range(self.processes):
                    self.procs.append(self._start(rank))
                failed = self._wait()
        finally:
            for proc in self.procs:
                _end_group(proc, signal.SIGKILL)
                proc.wait()
        sentence, number = self._first_failure(failed) if failed else (None, None)
        number = number or (self.signals[0] if self.signals and failed else None)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number is not None:
            raise Stopped(sentence or "stopped by a signal: the same command continues.", number)
        if sentence is None:
            clear_notes(self.run_dir, remove=True)
        return sentence

    def _start(self, rank: int) -> "subprocess.Popen[bytes]":
        env = {**os.environ, **self.env, "RANK": str(rank), "LOCAL_RANK": str(rank), LAUNCHER: str(os.getpid())}
        with contextlib.ExitStack() as stack:
            # rank 0 speaks for all
            out = None if rank == 0 else stack.enter_context(open(log_file(self.run_dir, rank), "ab"))
            return subprocess.Popen(
                self.command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                # a group of its own: Ctrl-C in the terminal reaches the ranks once, through us, and a group can be killed whole
                process_group=0,
                preexec_fn=_die_with_launcher(),
            )

    def _wait(self) -> list[int]:
        """Wait until all have ended or one has failed; returns the ranks found dead with a failure, in the order they were seen."""
        while True:
            codes = [proc.poll() for proc in self.procs]
            failed = [rank for rank, code in enumerate(codes) if code]
            if failed:
                self._end_all()
                return failed
            if all(code == 0 for code in codes):
                return []
            if len(self.signals) > 1:
                self._end_all()
                return list(range(self.processes))
            time.sleep(0.05)

    def _end_all(self) -> None:
        """Ask those still running to end, then end them: a rank whose partner is gone may wait for it for ever."""
        if not self.signals:
            for proc in self.procs:
                _send(proc, signal.SIGTERM)
        deadline = time.monotonic() + (_SAVING if self.signals else _GRACE)
        while len(self.signals) < 2 and time.monotonic() < deadline and any(proc.poll() is None for proc in self.procs):
            time.sleep(0.05)

    def _first_failure(self, failed: list[int]) -> tuple[str, int | None]:
        """(sentence, number of the signal behind it) of the rank that failed first; what other ranks say is mostly about that."""
        notes = {rank: read_json(_notes(self.run_dir) / f"rank-{rank}.error") for rank in range(self.processes)}
        silent = [rank for rank in failed if notes[rank] is None]
        told = sorted((note for note in notes.values() if note is not None), key=lambda note: note["time"])
        if told and not (silent and self.procs[silent[0]].returncode < 0 and not self.signals):
            return told[0]["sentence"], told[0]["signal"]
        rank = silent[0] if silent else failed[0]
        code = self.procs[rank].returncode
        log = f"see {log_file(self.run_dir, rank)}" if rank else "see its output above"
        if code < 0:
            name = signal.Signals(-code).name
            why = " (out of memory?)" if -code == signal.SIGKILL else ""
            return f"process {rank} of {self.processes} was ended by {name}{why}: {log}; the same command continues.", None
        return f"process {rank} of {self.processes} ended with code {code}: {log}.", None

    @contextlib.contextmanager
    def _passing_signals_on(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may handle signals
            return

        def forward(number: int, frame: FrameType | None) -> None:
            self.signals.append(number)
            for proc in self.procs:
                _send(proc, number)

        before = {number: signal.signal(number, forward) for number in _FORWARDED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def rank_environment(processes: int) -> dict[str, str]:
    """What Lightning and torch.distributed look for in processes that others have started."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    path = os.environ.get("PYTHONPATH")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "NODE_RANK": "0",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # torch would take all cores in each process
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // processes)),
        # the ranks find this project wherever they are started
        "PYTHONPATH": f"{_ROOT}{os.pathsep}{path}" if path else str(_ROOT),
    }


def _die_with_launcher() -> Callable[[], None] | None:
    """What a rank does between fork and exec so that the kernel ends it with its launcher (Linux); None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    launcher = os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != launcher:
            os._exit(1)

    return prepare


def _send(proc: "subprocess.Popen[bytes]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if proc.returncode is None:
            proc.send_signal(number)


def _end_group(proc: "subprocess.Popen[bytes]", number: int) -> None:
    """Signal a rank and what it has started (the workers of its data loaders)."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(proc.pid, number)


def _notes(run_dir: Path) -> Path:
    return run_dir / ".ranks"


def clear_notes(run_dir: Path, remove: bool = False) -> None:
    """Make ready for the notes that failing ranks leave: old ones go, and with ``remove`` their folder."""
    for place in (_notes(run_dir), run_dir / "logs"):
        place.mkdir(parents=True, exist_ok=True)
    for old in _notes(run_dir).iterdir():
        old.unlink()
    if remove:
        _notes(run_dir).rmdir()


def failure_notes(run_dir: Path, processes: int) -> list[dict[str, Any]]:
    """What failing ranks have noted (``time``, ``sentence``, ``signal``), the first failure first."""
    notes = [read_json(_notes(run_dir) / f"rank-{rank}.error") for rank in range(processes)]
    return sorted((note for note in notes if note is not None), key=lambda note: note["time"])


def log_file(run_dir: Path, rank: int) -> Path:
    """Where a rank other than the first writes what it prints."""
    return run_dir / "logs" / f"rank-{rank}.log"


# ---- the rank's side -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def as_rank(run_dir: Path) -> Iterator[None]:
    """Do a rank's work inside: a failure is noted for the launcher and ends the process, and so does the launcher's death.

    Outside of a launch of ours it does nothing.
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        yield
        return
    rank = int(os.environ["RANK"])
    if launcher.isdigit():
        watch_parent(int(launcher))  # a cluster ends its ranks itself
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code in (None, 0):
            raise
        trace = "" if is_expected(error) else f" (the stack trace is in {log_file(run_dir, rank)})"
        note = {"time": time.time(), "sentence": explain(error) + trace, "signal": stop_signal(error)}
        with contextlib.suppress(OSError):  # a full disk must not hide what happened
            write_atomic(_notes(run_dir) / f"rank-{rank}.error", json.dumps(note))
            with open(log_file(run_dir, rank), "a", encoding="utf-8") as log:
                traceback.print_exception(error, file=log)
        sys.stdout.flush()
        sys.stderr.flush()
        # a cluster kills all ranks when one has failed, and one that was told to stop may still be writing its state
        stopped = not launcher.isdigit() and note["signal"] is not None
        os._exit(0 if stopped else 1)  # an ordinary exit may wait for partners in a collective


def watch_parent(parent: int, then: Callable[[], None] | None = None) -> None:
    """End this process (or call ``then``) within a second of the death of its parent, whose process id is given."""
    end = then or (lambda: os._exit(1))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        end()

    threading.Thread(target=watch, name="watch-parent", daemon=True).start()
