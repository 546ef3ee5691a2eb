"""Another program on the same machine: processes that load its cores or its memory, started and stopped on a schedule.

python -m papermix.alert.interference compute     works while the last line of its input is 1, waits while it is 0, ends with it
"""

import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Literal

from papermix.errors import UserError, nearest

KINDS = ("compute", "memory")


class Interference:
    """Processes that can be switched on and off; they end with this object, or with the process that made it.

    Args:
        processes: the most that will work at once.
        kind: ``compute`` multiplies matrices in the caches, ``memory`` copies what fits into none.

    Raises:
        UserError: an unknown kind.
    """

    def __init__(self, processes: int, kind: Literal["compute", "memory"] = "compute"):
        if kind not in KINDS:
            raise UserError(f"load={kind} must be {' or '.join(KINDS)}{nearest(kind, KINDS)}.")
        root = str(Path(__file__).resolve().parents[2])
        command = [sys.executable, "-m", __name__, kind]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.running = 0
        self._workers = [subprocess.Popen(command, cwd=root, **pipes) for _ in range(processes)]  # type: ignore[call-overload]
        for worker in self._workers:
            worker.stdout.readline()  # it is ready

    def work(self, processes: int) -> None:
        """Let so many of the processes work, and the rest wait."""
        for i, worker in enumerate(self._workers):
            if (i < processes) != (i < self.running):
                worker.stdin.write(b"1\n" if i < processes else b"0\n")
                worker.stdin.flush()
        self.running = processes

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.stdin.close()
            worker.wait()
            worker.stdout.close()
        self._workers, self.running = [], 0

    def __enter__(self) -> "Interference":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def load(kind: str) -> None:
    """What a process does: read the switch, work a few milliseconds, read it again."""
    import os

    import numpy as np

    small = np.ones((96, 96), np.float32)
    large = np.ones(1 << 25, np.uint8) if kind == "memory" else None
    other = np.empty_like(large) if large is not None else None
    print("ready", flush=True)
    on, rest = False, b""
    while True:
        # without work it sleeps until it is told to
        if not on or select.select([0], [], [], 0)[0]:
            text = os.read(0, 4096)
            if not text:
                return
            *lines, rest = (rest + text).split(b"\n")
            on = lines[-1] == b"1" if lines else on
        if on and large is not None:
            np.copyto(other, large)  # type: ignore[arg-type]
        elif on:
            for _ in range(100):
                small @ small


if __name__ == "__main__":
    import os

    # each process is one core's load
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    load(sys.argv[1])
