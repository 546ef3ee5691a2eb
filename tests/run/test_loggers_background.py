"""Loggers in the background: in order, tried again while their server is away, left alone when it stays away."""

import threading
from pathlib import Path
from typing import Any

import pytest

from papermix.run.dashboards import guard
from papermix.run.dashboards.about import Ledger
from papermix.run.dashboards.guard import Background, closing, is_away


class Record:
    """Keeps what it is told; fails when asked to."""

    experiment = "the library's own"

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.away: Exception | None = None
        self.tries = 0
        self.hold = threading.Event()
        self.hold.set()

    def _take(self, what: Any) -> None:
        self.hold.wait(30)
        self.tries += 1
        if self.away is not None:
            raise self.away
        self.got.append(what)

    def log_hyperparams(self, config: Any) -> None:
        self._take("config")

    def log_rows(self, rows: Any) -> None:
        self._take([(numbers["a"], step) for numbers, step, _ in rows])

    def log_picture(self, name: str, path: Path, step: int) -> None:
        self._take((name, path.name, step))

    def close(self, status: str) -> None:
        self._take(status)


@pytest.fixture
def record() -> Record:
    return Record()


@pytest.fixture
def logger(record: Record, tmp_path: Path) -> Background:
    return Background("test", str(tmp_path), lambda: record, timeout=20)


def flattened(got: list[Any]) -> list[Any]:
    """Lines that were sent together, apart."""
    return [line for part in got for line in (part if isinstance(part, list) else [part])]


def test_everything_comes_in_order(logger: Background, record: Record) -> None:
    record.hold.clear()
    logger.log_hyperparams({})
    for step in range(250):
        logger.log_metrics({"a": step / 2}, step)
    logger.log_picture("p", "x/p.png", 250)
    logger.log_metrics({"a": 0.0}, 251)
    record.hold.set()
    logger.close("finished")
    points = [(step / 2, step) for step in range(250)]
    assert flattened(record.got) == ["config", *points, ("p", "p.png", 250), (0.0, 251), "finished"]
    assert len(record.got) <= 8  # many lines at once
    logger.log_metrics({"a": 1.0}, 252)  # after the end nothing is sent
    assert record.got[-1] == "finished"


def test_what_is_away_comes_back(
    logger: Background, record: Record, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guard, "_LONGEST_PAUSE", 0.01)
    record.away = ConnectionError("gone for a while")
    logger.log_hyperparams({})
    for step in range(3):
        logger.log_metrics({"a": 1.0}, step)
    while record.tries < 8:  # more often than a failure that stays is tried
        threading.Event().wait(0.01)
    record.away = None
    logger.close("finished")
    assert flattened(record.got) == ["config", (1.0, 0), (1.0, 1), (1.0, 2), "finished"]
    assert capsys.readouterr().err == "warning: logger test failed and the run goes on: ConnectionError: gone for a while\n"


def test_what_stays_away_is_given_up_at_the_end(logger: Background, record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    record.away = TimeoutError("for ever")
    logger.log_hyperparams({})
    logger.close("failed")
    assert record.got == [] and capsys.readouterr().err.count("warning") == 1


def test_what_is_refused_is_passed_over(logger: Background, record: Record) -> None:
    logger.log_hyperparams({})
    assert logger.experiment == "the library's own"
    record.away = ValueError("no such name")
    logger.log_picture("p", "p.png", 1)
    while record.tries < 2:
        threading.Event().wait(0.01)
    record.away = None
    logger.log_metrics({"a": 1.0}, 2)
    logger.close("finished")
    assert flattened(record.got) == ["config", (1.0, 2), "finished"]


def test_a_record_that_cannot_be_begun_is_left_alone(logger: Background, record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    record.away = RuntimeError("no key")
    logger.log_hyperparams({})
    logger.close("finished")
    assert (record.tries, record.got) == (1, [])
    assert capsys.readouterr().err == "warning: logger test failed and the run goes on: RuntimeError: no key\n"


def test_silence_ends(record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = Background("test", str(tmp_path), lambda: record, timeout=0.2)
    record.hold.clear()
    logger.log_hyperparams({})
    logger.log_metrics({"a": 1.0}, 1)
    logger.close("finished")
    record.hold.set()
    assert "no answer within" in capsys.readouterr().err


def test_memory_is_bounded(logger: Background, record: Record, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(guard, "_ROOM", 10)
    record.hold.clear()
    logger.log_hyperparams({})
    for step in range(100):
        logger.log_metrics({"a": 1.0}, step)
    logger.log_picture("p", "p.png", 100)
    record.hold.set()
    logger.close("finished")
    got = flattened(record.got)
    assert got[-2:] == [("p", "p.png", 100), "finished"] and len(got) == 12
    assert "the rest is left out" in capsys.readouterr().err


def test_what_may_come_back() -> None:
    try:
        try:
            raise OSError("disk is full")
        except OSError as error:
            raise RuntimeError("cannot log") from error
    except RuntimeError as error:
        assert is_away(error)
    assert not is_away(ValueError("no such name")) and not is_away(None)


def test_loggers_are_told_how_the_work_ended(logger: Background, record: Record) -> None:
    logger.log_hyperparams({})
    with pytest.raises(ZeroDivisionError), closing([logger, object()]):
        _ = 1 / 0
    assert record.got == ["config", "failed"]


def test_a_ledger_knows_what_a_record_has(tmp_path: Path) -> None:
    path = tmp_path / "new/mlflow.json"
    Ledger(path).begin("abc")
    ledger = Ledger(path)
    assert ledger.id == "abc" and ledger.is_new("loss", 0)
    ledger.note([("loss", 3), ("loss", 2), ("lr", 1)])
    assert ledger.is_new("loss", 3)  # twice at one step in one process is no repetition
    again = Ledger(path)
    assert not again.is_new("loss", 3) and again.is_new("loss", 4) and not again.is_new("lr", 1)
    path.write_text("{half")
    assert Ledger(path).id is None
