"""Checkpoint files: written whole or not at all, every changed byte noticed, nothing executed."""

import errno
import os
from pathlib import Path

import pytest
import torch

from papermix.errors import UserError
from papermix.run import checkpoint_io
from papermix.run.checkpoint_io import VerifiedCheckpointIO, find_last, read, verify, write


def state(step: int = 3, value: float = 1.0, **more) -> dict:
    return {"global_step": step, "epoch": 1, "w": torch.full((7,), value), "list": [1, 2.5, "x", None, (1, 2)], **more}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep/er/a.ckpt"
    write(state(), path)
    assert verify(path) == {"step": 3, "epoch": 1, "partial": False}
    back = read(path)
    assert torch.equal(back.pop("w"), torch.ones(7))
    assert back == {"global_step": 3, "epoch": 1, "list": [1, 2.5, "x", None, (1, 2)]}
    # torch alone reads it as well
    assert torch.equal(torch.load(path, weights_only=True)["w"], torch.ones(7))
    assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]


def test_every_byte_and_every_length_is_guarded(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    write(state(), path)
    whole = path.read_bytes()
    places = {*range(0, len(whole), 37), *range(len(whole) - 120, len(whole))}
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"a\.ckpt (is damaged|has no checksum)"):
            verify(path)
        path.write_bytes(whole[:place])
        with pytest.raises(UserError, match=r"a\.ckpt (is damaged|has no checksum)"):
            read(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(UserError, match="no checksum"):
        read(path)


def test_file_without_checksum_or_missing(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "plain.ckpt")
    with pytest.raises(UserError, match="no checksum"):
        read(tmp_path / "plain.ckpt")
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "nowhere.ckpt")


class Hostile:
    """Unpickled without care, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    write(state(evil=Hostile(tmp_path / "pwned")), tmp_path / "a.ckpt")
    for load in (
        read,
        VerifiedCheckpointIO().load_checkpoint,
        lambda p: VerifiedCheckpointIO().load_checkpoint(p, weights_only=False),
    ):
        with pytest.raises(UserError, match=r"a\.ckpt holds Python objects \(.*mkdir\)"):
            load(tmp_path / "a.ckpt")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("after", [0, 100, 1000])
def test_full_disk_keeps_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    path = tmp_path / "last.ckpt"
    write(state(1), path)
    before = path.read_bytes()

    class Full:
        """A file on a disk with ``after`` bytes left."""

        def __init__(self, file) -> None:
            self.file, self.left = file, after

        def __enter__(self):
            return self

        def __exit__(self, *args) -> None:
            self.file.close()

        def write(self, data) -> int:
            self.left -= len(data)
            if self.left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

        def __getattr__(self, name: str):
            return getattr(self.file, name)

    real = open
    monkeypatch.setattr(
        checkpoint_io, "open", lambda p, mode="r": Full(real(p, mode)) if "w" in mode else real(p, mode), raising=False
    )
    with pytest.raises(UserError, match=f"disk of {tmp_path} is full.*free some space"):
        write(state(2), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"No checkpoint can be written to .*file"):
        write(state(), tmp_path / "file/last.ckpt")


def test_rubbish_of_a_killed_write_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".last.ckpt.tmp").write_bytes(b"half")
    write(state(), tmp_path / "last.ckpt")
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_find_last_takes_the_newest_readable(tmp_path: Path) -> None:
    assert find_last(tmp_path) is None
    assert find_last(tmp_path / "nowhere") is None
    write(state(5), tmp_path / "best-step=000005-val_accuracy=0.5000.ckpt")
    write(state(9), tmp_path / "last-previous.ckpt")
    write(state(10), tmp_path / "last.ckpt")
    write(state(12, partial=True), tmp_path / "best-step=000012-val_accuracy=0.6000.ckpt")
    found = find_last(tmp_path)
    assert found is not None
    assert (found.path.name, found.step, found.epoch, found.skipped) == ("last.ckpt", 10, 1, "")
    for path, then in (("last.ckpt", "last-previous.ckpt"), ("last-previous.ckpt", "best-step=000005-val_accuracy=0.5000.ckpt")):
        whole = (tmp_path / path).read_bytes()
        (tmp_path / path).write_bytes(whole[: len(whole) // 2])
        found = find_last(tmp_path)
        assert found is not None
        assert found.path.name == then
        assert path in found.skipped
        assert f"continuing from {then} of step {found.step}" in found.skipped
    (tmp_path / "best-step=000005-val_accuracy=0.5000.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match=r"No checkpoint in .* can be read"):
        find_last(tmp_path)


def test_last_wins_at_equal_steps(tmp_path: Path) -> None:
    write(state(5), tmp_path / "best-step=000005-val_accuracy=0.5000.ckpt")
    write(state(5), tmp_path / "last.ckpt")
    found = find_last(tmp_path)
    assert found is not None
    assert found.path.name == "last.ckpt"
