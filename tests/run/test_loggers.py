"""Loggers: exact on resume, harmless when they fail, one record for each run folder."""

import errno
import math
from pathlib import Path

import pytest
import torch

from papermix.errors import UserError
from papermix.run import loggers
from papermix.run.loggers import CSVLogger, Guarded


def test_csv_lines_are_exact(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "run/metrics.csv")
    value = torch.tensor(1 / 3).item()
    logger.log_metrics({"train/loss": value, "epoch": 2}, step=7)
    logger.log_metrics({"lr": 0.1, "bad": math.nan}, step=8)
    text = (tmp_path / "run/metrics.csv").read_text()
    assert text == f"step,epoch,name,value\n7,2,train/loss,{value!r}\n8,2,lr,0.1\n8,2,bad,nan\n"
    assert torch.tensor(float(text.splitlines()[1].split(",")[3])) == torch.tensor(1 / 3)


def test_csv_goes_back_to_a_state(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = CSVLogger(path)
    logger.log_metrics({"a": 1.0, "epoch": 0}, step=1)
    state, text = logger.state_dict(), path.read_bytes()
    logger.log_metrics({"a": 2.0, "epoch": 1}, step=1)
    CSVLogger(path).load_state_dict(state)
    assert path.read_bytes() == text
    # a file that lost its end (or came without a length) keeps the whole lines up to the step
    path.write_bytes(text + b"2,0,a,2.0\n3,0,a,3.0\n4,0,a")
    CSVLogger(path).load_state_dict({"length": 10_000, "step": 2})
    assert path.read_bytes() == text + b"2,0,a,2.0\n"
    CSVLogger(path).load_state_dict({"step": 1})
    assert path.read_bytes() == text
    CSVLogger(path).load_state_dict({})
    assert path.read_bytes() == b""
    CSVLogger(tmp_path / "none.csv").load_state_dict(state)
    assert not (tmp_path / "none.csv").exists()


def test_csv_leaves_no_half_line_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    logger = CSVLogger(path)
    logger.log_metrics({"a": 1.0}, step=1)
    text = path.read_bytes()
    real = open

    class Full:
        def __init__(self, file) -> None:
            self.file, self.room = file, 4

        def __enter__(self):
            return self

        def __exit__(self, *args) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            done, self.room = self.file.write(data[: self.room]), 0
            return done

        def __getattr__(self, name: str):
            return getattr(self.file, name)

    monkeypatch.setattr(loggers, "open", lambda *a, **k: Full(real(*a, **k)), raising=False)
    with pytest.raises(OSError, match="No space"):
        logger.log_metrics({"a": 2.0}, step=2)
    assert path.read_bytes() == text


class Broken:
    """Fails at every call."""

    calls = 0

    def __getattr__(self, name: str):
        Broken.calls += 1
        raise ConnectionError("server is gone\nand will not come back")


def test_failures_are_told_once_and_never_stop_the_run(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    guarded = Guarded("broken", str(tmp_path), Broken)
    for _ in range(20):
        guarded.log_metrics({"a": 1.0}, step=1)
        guarded.save()
        guarded.experiment.anything("goes")
    guarded.finalize("success")
    assert guarded.state_dict() == {}
    told = [str(w.message) for w in recwarn if "Logger" in str(w.message)]
    assert told == ["Logger broken failed and the run goes on: ConnectionError: server is gone"]
    assert Broken.calls == 5  # then it is left alone


def test_a_logger_that_cannot_be_made_is_a_failure_too(tmp_path: Path) -> None:
    def make():
        raise OSError("no such host")

    with pytest.warns(UserWarning, match="Logger remote failed and the run goes on: OSError: no such host"):
        Guarded("remote", str(tmp_path), make).log_metrics({"a": 1.0})


def test_missing_package_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    for make, cure in (
        (loggers.tensorboard, r"papermix\[tensorboard\]"),
        (loggers.mlflow, r"papermix\[mlflow\]"),
        (loggers.wandb, "pip install wandb"),
    ):
        with pytest.raises(UserError, match=cure):
            make(str(tmp_path))


def picture(folder: Path) -> Path:
    from matplotlib.figure import Figure

    path = folder / "picture.png"
    Figure(figsize=(1, 1), dpi=10).savefig(path)
    return path


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in (1, 2):  # the second logger continues the folder of the first
        logger = loggers.tensorboard(str(tmp_path))
        logger.log_hyperparams({"model": {"depth": 20}})
        logger.log_metrics({"loss": 1.0 / step}, step=step)
        logger.log_picture("val/predictions", picture(tmp_path), step)
        logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 0.5)]
    assert [e.step for e in events.Images("val/predictions")] == [1, 2]


def test_wandb_offline(tmp_path: Path) -> None:
    identities = []
    for step in (1, 2):
        logger = loggers.wandb(str(tmp_path), mode="offline")
        logger.log_hyperparams({"model": {"depth": 20}})
        logger.log_metrics({"loss": 1.0 / step}, step=step)
        identities.append(logger.experiment.id)
        logger.experiment.finish()
    assert identities[0] == identities[1] == (tmp_path / "wandb.id").read_text().strip()
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{identities[0]}/*.wandb"))
    with pytest.raises(UserError, match="mode='off'"):
        loggers.wandb(str(tmp_path), mode="off")


def test_mlflow_continues_its_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for step in (1, 2):
        logger = loggers.mlflow(str(folder))
        logger.log_hyperparams({"model": {"depth": 20}})
        logger.log_metrics({"val/loss": 1.0 / step}, step=step)
        logger.log_picture("val/predictions", picture(tmp_path), step)
        client = logger.experiment
        logger.finalize("failed" if step == 1 else "success")
    identity = (folder / "mlflow.id").read_text().strip()
    history = client.get_metric_history(identity, "val/loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5)]
    run = client.get_run(identity)
    assert (run.info.status, run.info.run_name, run.data.params["model/depth"]) == ("FINISHED", "run", "20")
    assert list((folder / "mlflow").rglob("picture.png"))
    experiment = client.get_experiment_by_name("papermix")
    assert len(client.search_runs([experiment.experiment_id])) == 1
