"""A real SLURM on this machine's loopback: one controller, several node daemons, everything in one folder, and gone at the end.

    python -m tests.slurm.cluster FOLDER     starts one and says how to use it, until Ctrl-C
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from papermix.run.launch import _die_with_launcher

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

CONFIG = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmctldTimeout=60
SlurmdTimeout=60
InactiveLimit=0
KillWait=20
MinJobAge=60
OverTimeLimit=0
SlurmdParameters=config_overrides
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL MaxTime=60 State=UP PriorityTier=9
"""


def missing() -> str:
    """What keeps a SLURM from being started here; '' when nothing does."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]
    if lacking:
        return f"{', '.join(lacking)} not found: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "SLURM's daemons are started as root"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Slurm:
    """Daemons of a small cluster, a context manager.

    Args:
        folder: where keys, states and logs lie.
        nodes: node daemons, ``node1`` to ``nodeN``, all on this machine.
        cores: cores that each says it has.

    Attributes:
        env: what its commands (``sbatch``, ``squeue``) need in their environment.
    """

    def __init__(self, folder: Path, nodes: int = 2, cores: int = 4) -> None:
        self.folder, self.nodes, self.cores = folder, nodes, cores
        self.env = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": SEARCH}
        self.daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Slurm":
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir()
        control, *ports = _free_ports(1 + self.nodes)
        lines = [
            f"NodeName=node{i} NodeAddr=127.0.0.1 NodeHostname={socket.gethostname()} Port={port} CPUs={self.cores} "
            f"Boards=1 SocketsPerBoard=1 CoresPerSocket={self.cores} ThreadsPerCore=1 RealMemory=8000 State=UNKNOWN"
            for i, port in enumerate(ports, start=1)
        ]
        text = CONFIG.format(host=socket.gethostname(), control=control, folder=self.folder, nodes="\n".join(lines))
        (self.folder / "slurm.conf").write_text(text)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        try:
            self._start("munged", "--foreground", "--force", *self._munge_options(), f"--key-file={key}")
            self._wait(lambda: (self.folder / "munge.socket").exists(), "munged")
            self._start("slurmctld", "-D")
            for i in range(1, self.nodes + 1):
                self._start("slurmd", "-D", "-N", f"node{i}")
            self._wait(lambda: self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T").split() == ["idle"] * self.nodes, "the nodes")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _munge_options(self) -> Iterator[str]:
        for option in ("socket", "pid-file", "log-file", "seed-file"):
            yield f"--{option}={self.folder / 'munge'}.{option.removesuffix('-file')}"

    def _start(self, *command: str) -> None:
        name = command[-1] if command[0] == "slurmd" else command[0]
        program = shutil.which(command[0], path=SEARCH)
        assert program
        with open(self.folder / f"{name}.out", "wb") as log:
            daemon = subprocess.Popen(
                [program, *command[1:]], env={**os.environ, **self.env}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=_die_with_launcher(),
            )  # fmt: skip
        self.daemons.append(daemon)

    def _wait(self, ready: "object", what: str) -> None:
        deadline = time.monotonic() + 60
        while not ready():  # type: ignore[operator]
            dead = [d for d in self.daemons if d.poll() is not None]
            if dead or time.monotonic() > deadline:
                logs = "\n".join(f"{p.name}: {p.read_text(errors='replace')[-800:]}" for p in self.folder.glob("*.out"))
                raise RuntimeError(f"{what} did not come up: {logs}")
            time.sleep(0.2)

    def run(self, *command: str) -> str:
        """Output of one of SLURM's commands, '' when it fails."""
        return subprocess.run(command, env={**os.environ, **self.env}, capture_output=True, text=True, timeout=60).stdout

    def jobs(self) -> dict[str, str]:
        """``job id -> state`` of all jobs that it still knows."""
        lines = self.run("squeue", "-h", "-r", "-t", "all", "-o", "%i %T").splitlines()
        return {line.split()[0]: line.split()[1] for line in lines}

    def stop(self) -> None:
        """Cancel all jobs, wait for their end, end the daemons."""
        if len(self.daemons) > 1 and all(d.poll() is None for d in self.daemons):
            self.run("scancel", "--user=root")
            deadline = time.monotonic() + 40
            while self.run("squeue", "-h") and time.monotonic() < deadline:
                time.sleep(0.3)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(15)
            daemon.kill()
            daemon.wait()
        self.daemons.clear()


if __name__ == "__main__":
    with Slurm(Path(sys.argv[1]).absolute()) as slurm:
        print(f"export SLURM_CONF={slurm.env['SLURM_CONF']}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(3600)
