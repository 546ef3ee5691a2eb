"""scripts/torture.py: what it does to real trainings, that it finds what is wrong, and what it says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from papermix.errors import UserError
from papermix.run.checkpoint_io import read, write
from scripts import torture
from scripts.torturing import compare
from scripts.torturing.faults import KINDS, last_line
from scripts.torturing.rounds import plan

ROOT = Path(__file__).resolve().parents[2]


def tortured(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """scripts/torture.py in a process of its own: it forks, which this one with its threads must not."""
    return subprocess.run([sys.executable, "scripts/torture.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=3000)


def test_a_disturbance() -> None:
    done = tortured("--rounds", "1", "--only", "flip")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 as promised" in done.stdout


@pytest.mark.slow
def test_fifty_disturbances() -> None:
    done = tortured("--seed", "7")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "50 of 50 as promised" in done.stdout or os.geteuid() != 0


def test_every_kind_has_its_share() -> None:
    assert sorted(plan(18, [])) == sorted([*KINDS, *KINDS])
    assert plan(3, ["cut"]) == ["cut"] * 3
    with pytest.raises(UserError, match=r"no kind 'fip' \(did you mean 'flip'\?\)"):
        torture.main(["--only", "fip"])


def folder(place: Path) -> Path:
    """Something like a run."""
    place.mkdir()
    write({"global_step": 3, "w": torch.tensor([0.0, 1.0]), "callbacks": {"Clock": {"seconds": 1.0}}}, place / "last.ckpt")
    (place / "metrics.csv").write_text("1,0,train/loss,0.5\n")
    (place / "result.json").write_text('{"metrics": {"a": 0.1}, "wall_seconds": 3}')
    return place


def test_every_difference_is_found(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b")
    (b / "result.json").write_text('{"metrics": {"a": 0.1}, "wall_seconds": 4}')
    assert compare.differences(a, b) == []
    state = read(b / "last.ckpt")
    state["w"][0] = -0.0  # equal as a number, not as bits
    write(state, b / "last.ckpt")
    (b / "metrics.csv").write_text("1,0,train/loss,0.5\n" * 2)
    (b / "result.json").write_text('{"metrics": {"a": 0.2}}')
    (b / ".config.yaml.tmp").write_text("")
    assert compare.differences(a, b) == [
        ".config.yaml.tmp was left behind", "last.ckpt: w differs", "metrics.csv differs", "result.json differs"
    ]  # fmt: skip


def test_what_is_finished_is_watched(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b")
    (b / "result.json").unlink()
    before = compare.finished([a, b])
    assert {Path(name).parent for name in before} == {a}
    os.utime(a / "metrics.csv", ns=(1, 1))
    assert compare.finished([a, b]) != before


def test_the_last_line_behind_a_progress_bar() -> None:
    assert last_line("epoch 1\rerror: no\n\n") == "error: no"
    assert last_line("") == "nothing"


def test_workers_end_with_a_killed_training() -> None:
    code = """
import os, signal, time, torch
from datamodules.loaders import WorkerLoader
class Read:
    def __len__(self): return 64
    def __call__(self, index): return torch.zeros(1, 2, 2)
loader = iter(WorkerLoader(Read(), {"label": torch.zeros(64)}, 8, workers=2))
next(loader)
print(open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    # the output ends when the last worker, which has inherited it, ends
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60)
    workers = done.stdout.split()
    assert len(workers) == 2
    for worker in workers:
        state = Path("/proc", worker, "status")
        assert not state.exists() or "State:\tZ" in state.read_text()
