"""Ranks are started with the right environment, end together, and report the sentence of the one that failed first."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from papermix.errors import UserError
from papermix.run.launch import Stopped, launch, stop_signal

ROOT = Path(__file__).resolve().parents[2]


def rank_script(folder: Path, body: str) -> list[str]:
    """A command whose ranks run ``body`` with ``rank`` and ``folder`` in hand."""
    script = folder / "rank.py"
    script.write_text(
        "import os, sys, time, signal\n"
        "from pathlib import Path\n"
        "from papermix.errors import UserError\n"
        "from papermix.run.launch import as_rank\n"
        f"folder = Path({str(folder)!r})\n"
        "rank = int(os.environ['RANK'])\n"
        "with as_rank(folder):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    )
    return [sys.executable, str(script)]


def gone(pid: int, seconds: float = 20.0) -> bool:
    """Whether a process ends in time (a zombie has ended)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 30
    while not all(p.exists() and p.read_text() for p in paths):
        assert time.monotonic() < deadline, f"{paths} did not appear"
        time.sleep(0.02)


def test_environment_and_output_of_each_rank(
    tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    body = """
        names = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "EXTRA")
        (folder / f"env-{rank}").write_text(" ".join(os.environ[n] for n in names))
        print(f"rank {rank} speaks")
    """
    launch(tmp_path, 2, env={"EXTRA": "yes"}, command=rank_script(tmp_path, body))
    first, second = ((tmp_path / f"env-{r}").read_text().split() for r in range(2))
    assert first[0] == "0" and second[0] == "1"
    assert first[1:] == second[1:]
    assert first[1:4] == ["0", "2", "127.0.0.1"] and first[6] == "yes"
    assert int(first[5]) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert capfd.readouterr().out == "rank 0 speaks\n"
    assert (tmp_path / "logs" / "rank-1.log").read_text() == "rank 1 speaks\n"
    assert not (tmp_path / ".ranks").exists()


def test_the_first_failure_is_reported_and_the_others_end(tmp_path: Path) -> None:
    body = """
        (folder / f"pid-{rank}").write_text(str(os.getpid()))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as deaf as a rank inside a collective
        if rank == 1:
            while not all((folder / f"pid-{r}").exists() for r in range(3)):
                time.sleep(0.01)
            raise UserError("the data of rank 1 is missing: mount it.")
        time.sleep(600)
    """
    with pytest.raises(UserError, match="the data of rank 1 is missing: mount it"):
        launch(tmp_path, 3, command=rank_script(tmp_path, body))
    assert all(gone(int((tmp_path / f"pid-{r}").read_text()), 1) for r in range(3))
    assert "UserError" in (tmp_path / "logs" / "rank-1.log").read_text()


def test_a_late_complaint_about_a_lost_partner_is_not_the_cause(tmp_path: Path) -> None:
    body = """
        if rank == 1:
            raise ValueError("cause")
        while not (folder / ".ranks" / "rank-1.error").exists():
            time.sleep(0.01)
        raise RuntimeError("Connection closed by peer")
    """
    with pytest.raises(UserError, match=r"ValueError.*cause"):
        launch(tmp_path, 2, command=rank_script(tmp_path, body))


def test_a_killed_rank_is_named(tmp_path: Path) -> None:
    body = """
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    """
    with pytest.raises(UserError, match=r"process 1 of 2 was ended by SIGKILL \(out of memory\?\)"):
        launch(tmp_path, 2, command=rank_script(tmp_path, body))


def test_a_port_taken_meanwhile_is_replaced(tmp_path: Path) -> None:
    body = """
        tries = folder / f"tries-{rank}"
        count = int(tries.read_text()) + 1 if tries.exists() else 1
        tries.write_text(str(count))
        if rank == 0 and count == 1:
            raise RuntimeError("EADDRINUSE, message: address already in use")
    """
    launch(tmp_path, 2, command=rank_script(tmp_path, body))
    assert (tmp_path / "tries-0").read_text() == "2"


LAUNCHER = """
import sys
from pathlib import Path
from papermix.errors import UserError
from papermix.run.launch import Stopped, launch
try:
    launch(Path(sys.argv[1]), 2, command=[sys.executable, str(Path(sys.argv[1]) / "rank.py")])
except KeyboardInterrupt:
    sys.exit(130)
except Stopped as error:
    print(error)
    sys.exit(error.exit_code)
finally:
    assert "torch" not in sys.modules
"""


def start_launcher(folder: Path) -> "subprocess.Popen[str]":
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", LAUNCHER, str(folder)], env=env, stdout=subprocess.PIPE, text=True)


def test_no_rank_outlives_a_killed_launcher(tmp_path: Path) -> None:
    rank_script(tmp_path, '(folder / f"pid-{rank}").write_text(str(os.getpid()))\ntime.sleep(600)\n')
    launcher = start_launcher(tmp_path)
    pids = [tmp_path / f"pid-{r}" for r in range(2)]
    wait_for(*pids)
    launcher.kill()
    launcher.communicate()
    assert all(gone(int(p.read_text())) for p in pids)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)])
def test_signals_reach_every_rank_once(tmp_path: Path, number: signal.Signals, code: int) -> None:
    body = f"""
        class Told(Exception):
            signal = {int(number)}
        heard = []
        signal.signal({int(number)}, lambda n, f: heard.append(n))
        (folder / f"ready-{{rank}}").write_text("yes")
        while not heard:
            time.sleep(0.01)
        time.sleep(0.2)
        (folder / f"heard-{{rank}}").write_text(str(len(heard)))
        raise Told("saved")
    """
    rank_script(tmp_path, body)
    launcher = start_launcher(tmp_path)
    wait_for(*(tmp_path / f"ready-{r}" for r in range(2)))
    launcher.send_signal(number)
    launcher.communicate()
    assert launcher.returncode == code
    assert [(tmp_path / f"heard-{r}").read_text() for r in range(2)] == ["1", "1"]


def test_signal_behind_an_error() -> None:
    try:
        try:
            raise Stopped("stopped", signal.SIGUSR1)
        except UserError as inner:
            raise RuntimeError("outer") from inner
    except RuntimeError as error:
        assert stop_signal(error) == signal.SIGUSR1
    assert stop_signal(KeyboardInterrupt()) == signal.SIGINT
    assert stop_signal(ValueError("no")) is None


def test_two_real_ranks_take_one_ddp_step_under_lightning(tmp_path: Path) -> None:
    body = """
        import torch, pytorch_lightning as pl
        class Line(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.w = torch.nn.Parameter(torch.zeros(1))
            def training_step(self, batch, i):
                return (self.w * (self.global_rank + 1)).sum()
            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=1.0)
        trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_steps=1, logger=False, enable_checkpointing=False,
                             enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder)
        line = Line()
        trainer.fit(line, torch.utils.data.DataLoader(torch.zeros(4, 1), batch_size=1))
        (folder / f"w-{rank}").write_text(f"{trainer.world_size} {line.w.item():.3f}")
        from papermix.run.worker import leave
        leave()
    """
    launch(tmp_path, 2, env={"OMP_NUM_THREADS": "1"}, command=rank_script(tmp_path, body))
    # the mean of the gradients 1 and 2, in both, and no further processes of Lightning's own
    assert [(tmp_path / f"w-{r}").read_text() for r in range(2)] == ["2 -1.500", "2 -1.500"]
