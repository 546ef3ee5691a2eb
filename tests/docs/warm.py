"""Runs the commands of a page: a process that has imported torch once, and forks for each command.

Reads a line of JSON for each command (``argv``, ``log``, ``seconds``) and answers with its exit status. The working directory is a copy
of the repository; ``train.py`` and the scripts are run as files, as ``python FILE`` would.
"""

import contextlib
import json
import os
import runpy
import signal
import sys
import time

sys.path[0] = os.getcwd()

import matplotlib.pyplot  # noqa: E402, F401
import pytorch_lightning  # noqa: E402, F401
import timm  # noqa: E402, F401
import torchmetrics  # noqa: E402, F401

import papermix.run  # noqa: E402, F401  (environment that must be set before torch is loaded)


def child(argv: list[str], log: str) -> None:
    """Run a file with arguments, all output into ``log``; does not return."""
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(handle, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = list(argv)
    status = 0
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(argv: list[str], log: str, seconds: float) -> int:
    """Exit status of a command; 124 when it took too long."""
    pid = os.fork()
    if pid == 0:
        child(argv, log)
    end, code = time.monotonic() + seconds, None
    while code is None and time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if done else None
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what it has started ends with it
    if code is None:
        os.waitpid(pid, 0)
    return 124 if code is None else code


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), flush=True)
