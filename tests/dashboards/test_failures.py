"""No failure of a dashboard stops or changes a training: servers down, killed, silent, disks full, anything that raises."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.dashboards.world import (
    BIN,
    COMMAND,
    ROOT,
    WANDB,
    At,
    FakeWandb,
    mlflow_server,
    outcome,
    silent_server,
    small_disk,
    stop,
    warnings_of,
)
from tests.machine import states_equal, weights

# nobody listens there
DOWN = "http://127.0.0.1:9"


@pytest.mark.parametrize("method", ["log_hyperparams", "log", "log_picture", "log_result", "close"])
@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
@pytest.mark.usefixtures("outputs")
def test_whatever_raises(
    kind: str, method: str, alone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"papermix.run.dashboards.{kind}")
    record = {"tensorboard": "TensorBoardRecord", "mlflow": "MLflowRecord"}[kind]
    name = {"tensorboard": "log_metrics", "mlflow": "log_rows"}[kind] if method == "log" else method

    def fail(self: Any, *args: Any) -> None:
        raise ValueError("the library has a bad day")

    monkeypatch.setattr(getattr(module, record), name, fail)
    assert states_equal(outcome([*COMMAND, f"logger=[csv,{kind}]"], tmp_path / "run"), alone)
    assert warnings_of(capfd) == [f"warning: logger {kind} failed and the run goes on: ValueError: the library has a bad day"]


def test_mlflow_server_is_down(alone: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert states_equal(outcome([*COMMAND, "logger=[csv,mlflow]", f"logger.mlflow.uri={DOWN}"], tmp_path / "run"), alone)
    (told,) = warnings_of(capfd)
    assert told.startswith("warning: logger mlflow failed and the run goes on: MlflowException: API request to http://127.0.0.1:9")


def test_mlflow_server_is_silent(alone: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with silent_server() as address:
        command = [*COMMAND, "logger=[csv,mlflow]", f"logger.mlflow.uri={address}", "logger.mlflow.timeout=1"]
        assert states_equal(outcome(command, tmp_path / "run"), alone)
        (told,) = warnings_of(capfd)
    assert told.startswith("warning: logger mlflow failed and the run goes on: ")


@pytest.mark.slow
def test_mlflow_server_is_killed(alone: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from mlflow.tracking import MlflowClient

    from papermix.run.folder import read_json

    place, database = tmp_path / "run", f"sqlite:///{tmp_path}/server.db"
    with mlflow_server(tmp_path / "server", database) as (address, process):

        def kill() -> None:
            begun.wait_for_points()
            stop(process)

        begun = Points(place)
        command = [*COMMAND, "logger=[csv,mlflow]", f"logger.mlflow.uri={address}"]
        assert states_equal(outcome(command, place, At(12, kill)), alone)
    (told,) = warnings_of(capfd)
    assert told.startswith("warning: logger mlflow failed and the run goes on: MlflowException")
    history = MlflowClient(database).get_metric_history(read_json(place / "mlflow.json")["id"], "train/loss")
    assert 0 < len(history) < 24


class Points:
    """Waits until a run's record has points."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def wait_for_points(self) -> None:
        import time

        from papermix.run.folder import read_json

        for _ in range(3000):
            if (read_json(self.place / "mlflow.json") or {}).get("last"):
                return
            time.sleep(0.02)
        raise AssertionError("the record has no points")


def test_disk_is_full_for_tensorboard(alone: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "run"
    with small_disk(place / "tensorboard", "16k"):
        assert states_equal(outcome([*COMMAND, "logger=[csv,tensorboard]"], place), alone)
    (told,) = warnings_of(capfd)
    assert told.startswith("warning: logger tensorboard failed and the run goes on: OSError: [Errno 28] No space left")


# no room for the lock, for the first row, for the curves
@pytest.mark.parametrize("room", [0, 20, 60])
def test_disk_is_full_for_mlflow(
    room: int, outputs: Path, alone: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    disk, database = tmp_path / "disk", (outputs / "mlflow.db").read_bytes()
    with small_disk(disk, f"{len(database) // 1024 + room}k"):
        (disk / "mlflow.db").write_bytes(database)
        command = [*COMMAND, "logger=[csv,mlflow]", f"logger.mlflow.outputs={disk}"]
        assert states_equal(outcome(command, tmp_path / "run"), alone)
    (told,) = warnings_of(capfd)
    assert (told.startswith("warning: logger mlflow failed and the run goes on: ") and "full" in told) or "No space" in told


def train(overrides: list[str], place: Path, **env: str) -> str:
    """Output of train.py as a process of its own, which ends within minutes."""
    # the servers are on this machine
    own = {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "train.py", *overrides, f"hydra.run.dir={place}"],
        cwd=ROOT, env={**os.environ, **own, **env}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def same(place: Path, alone: Any) -> bool:
    """Whether a run came to what the one without dashboards did."""
    return states_equal((weights(place), (place / "metrics.csv").read_text()), alone[:2])


@pytest.mark.slow
def test_wandb_cannot_be_reached(alone: Any, tmp_path: Path) -> None:
    place = tmp_path / "run"
    told = train([*COMMAND, "logger=[csv,wandb]", "logger.wandb.timeout=20"], place, **WANDB, WANDB_BASE_URL=DOWN)
    sentences = [line for line in told.splitlines() if line.startswith("warning: logger")]
    assert len(sentences) == 1 and "cannot reach its server" in sentences[0], told
    # the sentence says where what could not be sent lies
    kept = Path(sentences[0].rpartition("wandb sync ")[2])
    assert list(kept.glob("*.wandb"))
    assert same(place, alone)


@pytest.mark.slow
def test_wandb_is_silent(alone: Any, tmp_path: Path) -> None:
    place = tmp_path / "run"
    with silent_server() as address:
        told = train([*COMMAND, "logger=[csv,wandb]", "logger.wandb.timeout=2"], place, **WANDB, WANDB_BASE_URL=address)
    assert [line for line in told.splitlines() if line.startswith("warning: logger wandb")]
    assert same(place, alone)


@pytest.mark.slow
def test_wandb_server_goes_away(alone: Any, tmp_path: Path) -> None:
    place = tmp_path / "run"
    script = tmp_path / "run.py"
    with FakeWandb() as server:
        # the run itself closes the server's door, in the middle
        script.write_text(GOES_AWAY.format(command=COMMAND, place=str(place)))
        env = {**os.environ, **WANDB, "WANDB_BASE_URL": server.address, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert any(line.startswith("in the middle") for line in process.stdout)
        assert server.runs
        server.shutdown()
        server.server_close()
        (tmp_path / "gone").touch()
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0, out
        server.serve_forever = lambda: None  # type: ignore[method-assign]
    assert same(place, alone)


GOES_AWAY = """
import time
from pathlib import Path
import papermix.run
from tests.dashboards.world import At, outcome
def wait():
    print("in the middle", flush=True)
    while not Path("gone").exists():
        time.sleep(0.05)
outcome([*{command!r}, "logger=[csv,wandb]", "logger.wandb.timeout=3"], Path({place!r}), At(8, wait))
"""


@pytest.mark.parametrize("size", ["8k", "64k"])
@pytest.mark.slow
def test_wandb_disk_is_full(size: str, alone: Any, tmp_path: Path) -> None:
    place = tmp_path / "run"
    with small_disk(place / "wandb", size):
        train([*COMMAND, "logger=[csv,wandb]", "logger.wandb.mode=offline", "logger.wandb.timeout=3"], place)
    assert same(place, alone)
