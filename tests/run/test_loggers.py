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


def test_failures_are_told_once_and_never_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guarded = Guarded("broken", str(tmp_path), Broken)
    for _ in range(20):
        guarded.log_metrics({"a": 1.0}, step=1)
        guarded.experiment.anything("goes")
    guarded.log_hyperparams({})
    guarded.log_result({})
    guarded.close("finished")
    assert guarded.state_dict() == {} and guarded.path is None
    assert capsys.readouterr().err == "warning: logger broken failed and the run goes on: ConnectionError: server is gone\n"
    assert Broken.calls == 5  # then it is left alone


def test_a_logger_that_cannot_be_made_is_a_failure_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def make():
        raise OSError("no such host")

    Guarded("remote", str(tmp_path), make).log_metrics({"a": 1.0})
    assert capsys.readouterr().err == "warning: logger remote failed and the run goes on: OSError: no such host\n"


def test_missing_package_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    for make, cure in (
        (loggers.tensorboard, r"papermix\[tensorboard\]"),
        (loggers.mlflow, r"papermix\[mlflow\]"),
        (loggers.wandb, "pip install wandb"),
    ):
        with pytest.raises(UserError, match=cure):
            make(str(tmp_path))


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mode='ofline' must be online or offline \(did you mean 'offline'"):
        loggers.wandb(str(tmp_path), mode="ofline")
    for make in (loggers.wandb, loggers.mlflow):
        with pytest.raises(UserError, match="timeout=0 must be a number of seconds above 0"):
            make(str(tmp_path), timeout=0)
