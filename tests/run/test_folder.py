"""Run folders: one config, one run at a time, files whole or not at all."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from papermix.errors import UserError
from papermix.run import folder


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    folder.write_json(path, {"a": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        folder.write_json(path, {"a": 2})
    assert folder.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_adopt_refuses_another_config(tmp_path: Path) -> None:
    config = {"seed": 1, "optimizer": {"lr": 0.1}, "paths": {"run": str(tmp_path)}}
    folder.adopt(tmp_path, config)
    folder.adopt(tmp_path, config)
    with pytest.raises(UserError, match=r"optimizer\.lr=0\.1 there, 0\.2 here.*hydra\.run\.dir=DIR"):
        folder.adopt(tmp_path, {**config, "optimizer": {"lr": 0.2}})
    with pytest.raises(UserError, match="scheduler"):
        folder.adopt(tmp_path, {**config, "scheduler": {"warmup": 1}})


def test_a_moved_run_is_the_same_run(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    folder.adopt(old, {"seed": 1, "logger": {"csv": {"folder": str(old)}}, "paths": {"run": str(old)}})
    old.rename(new)
    folder.adopt(new, {"seed": 1, "logger": {"csv": {"folder": str(new)}}, "paths": {"run": str(new)}})


def test_volatile_keys_may_change(tmp_path: Path) -> None:
    folder.adopt(tmp_path, {"seed": 1, "tags": [], "traceback": False})
    folder.adopt(tmp_path, {"seed": 1, "tags": ["again"], "traceback": True})


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from papermix.run.folder import locked\nwith locked(Path({str(tmp_path)!r})): pass"
    with folder.locked(tmp_path):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "another run is working in" in done.stderr
    assert f"(process {os.getpid()} on {socket.gethostname()})" in done.stderr
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_killed_run_leaves_behind_does_not_hold_its_folder(tmp_path: Path) -> None:
    """A data-loader worker is a fork, and outlives its killed parent by seconds."""
    code = f"""
import os, signal, sys, time
from pathlib import Path
from papermix.run.folder import locked
with locked(Path({str(tmp_path)!r})):
    child = os.fork()
    if child == 0:
        time.sleep(600)
    Path({str(tmp_path / "pid")!r}).write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code])
    child = int((tmp_path / "pid").read_text())
    try:
        assert done.returncode == -signal.SIGKILL
        os.kill(child, 0)  # it lives
        with folder.locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    with folder.locked(tmp_path):
        pass
    assert "has no locks" in capfd.readouterr().err


def test_a_file_that_is_right_already_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    folder.write_atomic(path, "a: 1\n")
    os.utime(path, ns=(1, 1))
    folder.write_atomic(path, "a: 1\n")
    assert path.stat().st_mtime_ns == 1
    folder.write_atomic(path, "a: 2\n")
    assert path.read_text() == "a: 2\n"


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a run folder: it has no config\.yaml"):
        folder.read_config(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [1,")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        folder.read_config(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write into .*file/run.*hydra\.run\.dir=DIR"):
        folder.make(tmp_path / "file" / "run")
