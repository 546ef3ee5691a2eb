"""Sweeps on a real SLURM: two nodes on loopback, two-process runs, pre-emption, the end of the time, crashes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import Slurm, missing

ROOT = Path(__file__).resolve().parents[2]
TINY = ["dataset=digits", "model=mlp", "hardware.threads=1", "callbacks=[checkpoints,rng,nonfinite]"]
QUEUE = ["hardware=slurm_cpu", "hydra.launcher.timeout_min=10", "hydra.launcher.signal_delay_s=30"]
HERE = ["hardware=cpu"]

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(missing()), reason=missing())]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with Slurm(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster
    assert not cluster.daemons


class Sweep:
    """A sweep in a process of its own, as one types it."""

    def __init__(self, slurm: Slurm, place: Path, *overrides: str, where: list[str] = QUEUE) -> None:
        self.slurm, self.place = slurm, place
        command = [sys.executable, str(ROOT / "train.py"), "-m", *where, *overrides, *TINY, f"hydra.sweep.dir={place}"]
        env = {**os.environ, **slurm.env, "OMP_NUM_THREADS": "1", "PAPERMIX_OUTPUTS": str(place.parent / "outputs")}
        self.process = subprocess.Popen(
            command, env=env, cwd=place.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def until(self, ready: Callable[[], Any], seconds: float = 240) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := ready()):
            assert time.monotonic() < deadline and self.process.poll() is None, self.end()
            time.sleep(0.1)
        return found

    def end(self, seconds: float = 400) -> str:
        """Its output, once it has ended."""
        try:
            return self.process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(self.process.communicate()[0]) from None

    def rows(self) -> list[dict[str, Any]]:
        """The rows of its table by number."""
        return sorted(json.loads((self.place / "sweep.json").read_text())["runs"], key=lambda r: r["number"])

    def checkpoint(self) -> Path | None:
        """The checkpoint of its (only) run, once there is one."""
        return next(iter(self.place.glob("*/checkpoints/last.ckpt")), None)


def weights(place: Path) -> dict[str, Any]:
    from papermix.run.checkpoint_io import read

    (path,) = place.glob("*/checkpoints/last.ckpt")
    return read(path)["state_dict"]


def ranks(name: str) -> list[int]:
    """The processes that are ranks of the run whose folder's name holds ``name``."""
    found = []
    for pid in (entry for entry in os.listdir("/proc") if entry.isdigit()):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if words[1:3] == ["-m", "papermix.run.worker"] and name in words[3]:
                found.append(int(pid))
    return found


def assert_equal_weights(one: Path, other: Path) -> None:
    import torch

    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() and len(first) > 2
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_a_sweep_of_four_two_process_runs_over_two_nodes(slurm: Slurm, tmp_path: Path) -> None:
    two = ["hardware.devices=1", "hardware.num_nodes=2", "trainer.max_epochs=1"]
    sweep = Sweep(slurm, tmp_path / "sweep", *two, "optimizer.lr=0.03,0.1", "seed=1,2", "hydra.launcher.array_parallelism=2")
    output = sweep.end()
    assert sweep.process.returncode == 0, output
    rows = sweep.rows()
    assert [r["status"] for r in rows] == ["finished"] * 4 and "pending" in output
    for r in rows:
        assert json.loads((Path(r["folder"]) / "result.json").read_text())["processes"] == 2
    arrays = {job.partition("_")[0] for job in slurm.jobs()}
    assert len([job for job in slurm.jobs() if "_" in job]) >= 4 and len(arrays) >= 1
    # the same command has nothing left to do, and asks the queue for nothing
    before = set(slurm.jobs())
    again = Sweep(slurm, tmp_path / "sweep", *two, "optimizer.lr=0.03,0.1", "seed=1,2", "hydra.launcher.array_parallelism=2")
    assert "4 runs, best first" in again.end() and set(slurm.jobs()) <= before


def test_a_preempted_run_ends_with_the_weights_of_one_that_was_not(slurm: Slurm, tmp_path: Path) -> None:
    long = ["hardware.devices=2", "trainer.max_epochs=40"]
    sweep = Sweep(slurm, tmp_path / "sweep", *long)
    checkpoint = sweep.until(sweep.checkpoint)
    # once by the administrator's word
    (job,) = (j for j, state in slurm.jobs().items() if state == "RUNNING")
    slurm.run("scontrol", "requeue", job)
    sweep.until(lambda: slurm.jobs()[job] in ("PENDING", "REQUEUED"))
    stamp = checkpoint.stat().st_mtime
    sweep.until(lambda: checkpoint.stat().st_mtime > stamp)
    # once by a job of a partition with more rights, that wants all machines
    slurm.run("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")
    sweep.until(lambda: slurm.jobs()[job] in ("PENDING", "REQUEUED", "PREEMPTED"))
    output = sweep.end()
    assert sweep.process.returncode == 0, output
    (row,) = sweep.rows()
    assert row["status"] == "finished"
    log = (Path(row["folder"]) / "job.log").read_text()
    assert log.count("continuing after step") == 2, log

    plain = Sweep(slurm, tmp_path / "plain", *long, where=HERE)
    output = plain.end()
    assert plain.process.returncode == 0, output
    assert Path(row["folder"]).name == Path(plain.rows()[0]["folder"]).name
    assert_equal_weights(tmp_path / "sweep", tmp_path / "plain")


def test_a_run_that_is_out_of_time_queues_again_and_then_says_so(slurm: Slurm, tmp_path: Path) -> None:
    endless = ["hardware.devices=2", "trainer.max_epochs=50000", "hydra.launcher.timeout_min=2", "hydra.launcher.max_num_timeout=1"]
    sweep = Sweep(slurm, tmp_path / "sweep", *endless)
    output = sweep.end(800)
    assert sweep.process.returncode == 1 and "1 of 1 runs stopped" in output, output
    (row,) = sweep.rows()
    assert row["status"] == "stopped" and "its time was over" in row["error"] and "the same command continues it" in row["error"]
    log = Path(row["folder"]) / "job.log"
    assert log.read_text().count("continuing after step") == 1
    # the same command goes on, and Ctrl-C takes its job out of the queue
    again = Sweep(slurm, tmp_path / "sweep", *endless)
    again.until(lambda: log.read_text().count("continuing after step") == 2)
    again.process.send_signal(signal.SIGINT)
    output = again.end(200)
    assert again.process.returncode == 130 and "stopped" in output, output
    assert not slurm.run("squeue", "-h")


def test_a_crash_is_named_and_the_others_go_on(slurm: Slurm, tmp_path: Path) -> None:
    sweep = Sweep(slurm, tmp_path / "sweep", "hardware.devices=2", "optimizer.lr=0.1,1e30,0.03", "trainer.max_epochs=15")
    killed = "optimizer.lr=0.03"
    sweep.until(lambda: list((tmp_path / "sweep").glob(f"*{killed}*/checkpoints/last.ckpt")))
    os.kill(ranks(killed)[0], signal.SIGKILL)
    output = sweep.end()
    assert sweep.process.returncode == 1 and "2 of 3 runs failed" in output, output
    good, diverged, dead = sweep.rows()
    assert good["status"] == "finished"
    assert diverged["status"] == "failed" and "NaN" in diverged["error"], diverged
    assert dead["status"] == "failed" and "SIGKILL" in dead["error"], dead
    assert "run 2 of 3 failed (optimizer.lr=1e+30)" in output
    # the same command tries them again: the one that was killed goes on
    again = Sweep(slurm, tmp_path / "sweep", "hardware.devices=2", "optimizer.lr=0.1,1e30,0.03", "trainer.max_epochs=15")
    assert "1 of 3 runs failed" in again.end()
    assert [r["status"] for r in again.rows()] == ["finished", "failed", "finished"]


def test_weights_are_shared_out_over_two_nodes(slurm: Slurm, tmp_path: Path) -> None:
    shared_out = ["hardware=fsdp_cpu", "hydra/launcher=slurm", *QUEUE[1:], "hardware.devices=1", "hardware.num_nodes=2"]
    sharded = Sweep(slurm, tmp_path / "sharded", "trainer.max_epochs=2", where=shared_out)
    output = sharded.end()
    assert sharded.process.returncode == 0, output
    whole = Sweep(slurm, tmp_path / "whole", "trainer.max_epochs=2", where=["hardware=ddp_cpu", *shared_out[1:]])
    output = whole.end()
    assert whole.process.returncode == 0, output
    found = [sweep.rows()[0]["metrics"]["test/loss"] for sweep in (sharded, whole)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_killed_sweep_finds_its_jobs_again(slurm: Slurm, tmp_path: Path) -> None:
    long = ["trainer.max_epochs=40"]
    sweep = Sweep(slurm, tmp_path / "sweep", *long)
    sweep.until(sweep.checkpoint)
    sweep.process.kill()
    sweep.process.communicate()
    assert "RUNNING" in slurm.jobs().values()
    known = set(slurm.jobs())
    again = Sweep(slurm, tmp_path / "sweep", *long)
    output = again.end()
    assert again.process.returncode == 0, output
    assert set(slurm.jobs()) <= known and again.rows()[0]["status"] == "finished"


def test_what_slurm_refuses_is_one_sentence(slurm: Slurm, tmp_path: Path) -> None:
    sweep = Sweep(slurm, tmp_path / "sweep", "hydra.launcher.partition=nowhere")
    output = sweep.end()
    assert sweep.process.returncode == 1
    error = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(error) == 1 and "invalid partition specified: nowhere" in error[0], output
