"""What SLURM's own commands say: which jobs are in the queue, in which state, and how to put one back or to take one out."""

import shutil
import subprocess

from papermix.errors import UserError

# states after which a job does not come back
_OVER = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED")
_SECONDS = 60.0  # that a command may take: a busy controller is slow


def check_here() -> None:
    """Raise UserError when this machine cannot submit jobs."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "hardware=slurm: this machine has no SLURM (sbatch is not found): log in to the cluster, "
            "or use hardware=joblib for several runs at a time on this machine."
        )


def _run(*command: str) -> str | None:
    """Output of a command, None when it fails: the controller may be restarting."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def states() -> dict[str, tuple[str, str]] | None:
    """``job id -> (state, reason)`` of this user's jobs, those that have just ended included; None when SLURM does not answer."""
    text = _run("squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%r")
    if text is None:
        return None
    rows = [line.strip().split("|", 2) for line in text.splitlines() if line.count("|") >= 2]
    return {job: (state, reason) for job, state, reason in rows}


def is_over(state: str | None) -> bool:
    """Whether a job in this state (None: SLURM does not know it any more) has left the queue for good."""
    return state is None or state in _OVER


def state(job: str) -> str | None:
    """State of one job, None when it is not known."""
    return (states() or {}).get(job, (None, ""))[0]


def requeue(job: str) -> bool:
    """Put a running job back into the queue; whether that went well."""
    return _run("scontrol", "requeue", job) is not None


def cancel(jobs: list[str]) -> None:
    """Take jobs out of the queue; running ones are told to stop, and save their state."""
    if jobs:
        _run("scancel", *jobs)


def why_ended(state: str | None, job: str) -> str:
    """A job's end without a word of its own, as a clause."""
    reasons = {
        "TIMEOUT": "its time was over before it could save (hydra.launcher.timeout_min, signal_delay_s)",
        "OUT_OF_MEMORY": "it used more memory than it had asked for (hydra.launcher.mem_gb)",
        "NODE_FAIL": "its machine failed",
        "CANCELLED": "it was cancelled",
        "PREEMPTED": "it was pre-empted and not put back",
    }
    return f"SLURM job {job} ended: {reasons.get(state or '', (state or 'it has left the queue').lower().replace('_', ' '))}"
