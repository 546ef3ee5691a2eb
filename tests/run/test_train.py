"""train.py from the shell: killed, told to stop, continued, refused, swept over two processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from papermix.run.checkpoint_io import read
from tests.machine import states_equal
from tests.settings import smallest

ROOT = Path(__file__).resolve().parents[2]
SLOWLY = [*smallest(model="mlp"), "trainer.max_epochs=40", "callbacks=[checkpoints,rng,nonfinite,progress]", "dataset.limit=160"]


def start(arguments: list[str], **env: str) -> "subprocess.Popen[str]":
    """train.py as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(arguments: list[str], **env: str) -> tuple[int, str]:
    """(exit code, output) of train.py."""
    process = start(arguments, **env)
    out, _ = process.communicate(timeout=300)
    return process.returncode, out


def interrupted(arguments: list[str], place: Path, number: int) -> int:
    """Send a signal once the run has written a new checkpoint; returns the exit code."""
    last = place / "checkpoints" / "last.ckpt"
    before = last.stat().st_mtime_ns if last.exists() else 0
    process = start(arguments)
    while not (last.exists() and last.stat().st_mtime_ns > before) and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    process.communicate(timeout=120)
    return process.returncode


def test_killed_and_told_to_stop_the_same_command_continues(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = [*SLOWLY, f"hydra.run.dir={cut}"]
    assert interrupted(command, cut, signal.SIGKILL) == -signal.SIGKILL
    assert not (cut / "result.json").exists()
    assert interrupted(command, cut, signal.SIGTERM) in (143, 0)  # 0: it was done before the signal arrived
    code, out = finish([f"resume={cut}"])
    assert code == 0, out
    code, out = finish([*SLOWLY, f"hydra.run.dir={whole}"])
    assert code == 0, out
    a, b = read(whole / "checkpoints/last.ckpt"), read(cut / "checkpoints/last.ckpt")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "rng"):
        assert states_equal(a[part], b[part]), part
    assert (whole / "metrics.csv").read_text() == (cut / "metrics.csv").read_text()
    first, second = (json.loads((place / "result.json").read_text()) for place in (whole, cut))
    assert first["metrics"] == second["metrics"] and first["steps"] == second["steps"]
    wanted = {"metrics", "parameters", "density", "flops", "wall_seconds", "peak_memory_bytes", "seed", "paper", "git", "versions", "command"}
    assert wanted <= first.keys()
    code, out = finish(command)
    assert code == 0 and "finished already" in out


def test_a_sweep_of_two_runs_on_two_processes_each(tmp_path: Path) -> None:
    arguments = [*smallest(model="mlp"), "hardware=ddp_cpu", "hardware.threads=1", f"hydra.sweep.dir={tmp_path}", "-m", "seed=1,2"]
    code, out = finish(arguments)
    assert code == 0, out
    table = json.loads((tmp_path / "sweep.json").read_text())
    assert [r["status"] for r in table["runs"]] == ["finished", "finished"]
    results = [json.loads(p.read_text()) for p in tmp_path.glob("*/result.json")]
    assert len(results) == 2 and {r["processes"] for r in results} == {2} and {r["seed"] for r in results} == {1, 2}


WATCHED = """
import sys
from papermix.run.cli import main
try:
    main()
finally:
    heavy = {'torch', 'pytorch_lightning', 'timm', 'matplotlib', 'wandb', 'mlflow', 'sklearn', 'numpy'} & set(sys.modules)
    assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["optimizer.lrr=1"],
        ["dataset=digitz"],
        ["dataset=pydocs_char", "model=resnet20"],
        ["trainer.max_epochs=lots"],
        ["resume=/no/such/run"],
        ["-m", "seed=1,2", "optimizer.lr=0.1,high"],
        ["hydra.run.dir=README.md/run"],
    ],
)
def test_refused_without_importing_anything_heavy(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WATCHED, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr
    outputs = Path(os.environ["PAPERMIX_OUTPUTS"])
    assert not outputs.exists() or not [p for p in outputs.rglob("*") if p.is_file()], "a refused command leaves nothing behind"


def test_debug_shows_the_trace() -> None:
    done = subprocess.run([sys.executable, "-c", WATCHED, "optimizer.lrr=1", "debug=true"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr
