"""Several processes of one run inside a SLURM job: one task of srun per rank, on all machines of the job."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from papermix.errors import UserError
from papermix.run.launch import LAUNCHER, Stopped, clear_notes, failure_notes, log_file, rank_environment

# set in the environment of jobs that papermix has submitted
MARK = "PAPERMIX_SLURM_JOB"
_SRUN = "srun"


def inside_job() -> bool:
    """Whether this process is the head of a SLURM job that papermix has submitted."""
    return MARK in os.environ and LAUNCHER not in os.environ


def command(run_dir: Path, nodes: int, per_node: int) -> list[str]:
    """The srun command whose tasks are the ranks."""
    shape = [f"--nodes={nodes}", f"--ntasks={nodes * per_node}", f"--ntasks-per-node={per_node}"]
    # srun does not take this from the job by itself
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    shape += [f"--cpus-per-task={cores}"] if cores else []
    return [_SRUN, *shape, "--kill-on-bad-exit=1", "--unbuffered", sys.executable, "-m", "papermix.run.worker", str(run_dir)]


def launch(run_dir: Path, nodes: int, per_node: int) -> None:
    """Run the stage frozen in ``run_dir`` on ``nodes * per_node`` ranks of this job, and return when all have finished.

    Rank 0 writes where this process writes, rank N to ``logs/rank-N.log``. A signal to this process tells all ranks to save and stop.

    Raises:
        UserError: the sentence of the rank that failed first. Stopped: the ranks ended because of a signal.
    """
    for attempt in range(3):
        failure = _attempt(run_dir, nodes, per_node)
        # another process may have taken the port between our asking for it and rank 0's use of it
        if failure is None or attempt == 2 or "address already in use" not in failure.lower():
            break
    if failure is not None:
        raise UserError(failure)


# how gloo and NCCL say that a partner is gone
_LOST = re.compile(r"gloo|nccl|connection (closed|reset)", re.IGNORECASE)


def _attempt(run_dir: Path, nodes: int, per_node: int) -> str | None:
    """Start the ranks and wait for them; returns the sentence of the first that failed, None if all went well."""
    clear_notes(run_dir)
    env = {**os.environ, **rank_environment(per_node), LAUNCHER: _SRUN}
    # this process runs on the first machine of the job, as rank 0 does
    env |= {"WORLD_SIZE": str(nodes * per_node), "MASTER_ADDR": socket.gethostname() if nodes > 1 else "127.0.0.1"}
    if "OMP_NUM_THREADS" not in os.environ and "SLURM_CPUS_PER_TASK" in os.environ:
        env["OMP_NUM_THREADS"] = os.environ["SLURM_CPUS_PER_TASK"]
    told: list[int] = []
    step = subprocess.Popen(command(run_dir, nodes, per_node), env=env, stdin=subprocess.DEVNULL, process_group=0)
    with _telling(step, told):
        while (code := step.poll()) is None:
            time.sleep(0.1)
    notes = failure_notes(run_dir, nodes * per_node)
    number = next((n["signal"] for n in notes if n["signal"]), None) or (told[0] if told and (code or notes) else None)
    if number is not None:
        raise Stopped(notes[0]["sentence"] if notes else "stopped by a signal: the same command continues.", number)
    # a process that was killed leaves no note, and its partners complain of the connection
    alone = code > 128 and all(_LOST.search(note["sentence"]) for note in notes)
    if notes and not alone:
        return str(notes[0]["sentence"])
    if code:
        return _silent(run_dir, code)
    clear_notes(run_dir, remove=True)
    return None


def _silent(run_dir: Path, code: int) -> str:
    """The sentence about ranks that ended without one of their own."""
    number = code - 128 if code > 128 else -code if code < 0 else 0
    name = signal.Signals(number).name if number in signal.Signals._value2member_map_ else ""
    why = f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "") if name else f"ended with code {code}"
    return f"a process {why}: see job.log and {log_file(run_dir, 1).parent}; the same command continues."


@contextmanager
def _telling(step: "subprocess.Popen[bytes]", told: list[int]) -> Iterator[None]:
    """Pass signals on to the ranks while inside, always as SIGUSR1: a SIGTERM would make srun end them at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def tell(number: int, frame: FrameType | None) -> None:
        told.append(number)
        if step.poll() is None:
            step.send_signal(signal.SIGUSR1)

    before = {n: signal.signal(n, tell) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield
    finally:
        for n, handler in before.items():
            signal.signal(n, handler if handler is not None else signal.SIG_DFL)
        if step.poll() is None:
            step.kill()
            step.wait()


def become_rank(run_dir: Path) -> None:
    """In a task of srun: be the rank that SLURM says. Other processes are left as they are."""
    if os.environ.get(LAUNCHER) != _SRUN:
        return
    for ours, slurms in (("RANK", "SLURM_PROCID"), ("LOCAL_RANK", "SLURM_LOCALID"), ("NODE_RANK", "SLURM_NODEID")):
        os.environ[ours] = os.environ[slurms]
    hide_from_lightning()
    if os.environ["RANK"] != "0":
        log = os.open(log_file(run_dir, int(os.environ["RANK"])), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)


def hide_from_lightning() -> None:
    """Lightning would ask SLURM for the ranks, and put jobs back into the queue by itself."""
    os.environ.pop("SLURM_NTASKS", None)
    warnings.filterwarnings("ignore", ".*`srun` command is available")
