"""Checkpoint files that are written whole or not at all, and that are checked before a byte of them is believed.

A file is what ``torch.save`` writes followed by a seal: a JSON note (step, epoch, whether it was taken between two batches
whose gradients are summed), its length (4 bytes, little-endian), the SHA-256 of everything before (32 bytes) and a magic
word (8 bytes). ``torch.load`` and zip tools ignore what follows the archive, so the file stays readable without this
project.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning.plugins import CheckpointIO

from papermix.errors import UserError

MAGIC = b"PMIXCKPT"
_TAIL = 4 + 32 + len(MAGIC)
# the checkpoint before the newest one
PREVIOUS = "last-previous.ckpt"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Found(NamedTuple):
    """A readable checkpoint: its path, the optimizer step and epoch it was written at, and a sentence about skipped ones or
    ''.
    """

    path: Path
    step: int
    epoch: int
    skipped: str


class _Hashing:
    """A file to write to that hashes what passes; it keeps the first OSError for later, as torch's C++ writer cannot carry it."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self.file.write(data)
                self.digest.update(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """The file is flushed once, at the end."""


def write(checkpoint: dict[str, Any], path: str | os.PathLike) -> None:
    """Write ``checkpoint`` to ``path`` atomically: temporary file in the same folder, seal, fsync, rename, fsync of the folder.

    Raises:
        UserError: the disk is full or the folder cannot be written; an older file at ``path`` is left as it was.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.tmp"  # a fixed name: what a killed run left is overwritten, not added to
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            out = _Hashing(file)
            torch.save(checkpoint, out)  # type: ignore[arg-type]
            note = json.dumps(
                {
                    "step": int(checkpoint.get("global_step", 0)),
                    "epoch": int(checkpoint.get("epoch", 0)),
                    "partial": bool(checkpoint.get("partial", False)),
                }
            ).encode()
            out.write(note + len(note).to_bytes(4, "little"))
            if out.error is not None:
                raise out.error
            file.write(out.digest.digest() + MAGIC)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def verify(path: str | os.PathLike) -> dict[str, int]:
    """Return the note ``{"step", "epoch", "partial"}`` of a file whose checksum is right.

    Raises:
        UserError: the file is missing, was cut short, has a changed byte, or carries no checksum.
    """
    path = Path(path)
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _TAIL))
            tail = file.read()
            if len(tail) < _TAIL or tail[-len(MAGIC) :] != MAGIC:
                raise UserError(
                    f"{path} has no checksum: it was cut short or not written by papermix; use another checkpoint of that folder."
                )
            length = int.from_bytes(tail[:4], "little")
            file.seek(0)
            left = size - _TAIL + 4
            while left and (block := file.read(min(left, 1 << 22))):
                digest.update(block)
                left -= len(block)
            if digest.digest() != tail[4:36]:
                raise UserError(f"{path} is damaged (its checksum does not match); use another checkpoint of that folder.")
            file.seek(size - _TAIL - length)
            return json.loads(file.read(length))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path and its permissions.") from error


def read(path: str | os.PathLike, map_location: Any = "cpu") -> dict[str, Any]:
    """Verify and load a checkpoint; only tensors, numbers, strings and containers of them are accepted.

    Raises:
        UserError: see :func:`verify`; or the file holds Python objects, which could run code when loaded.
    """
    from pickle import UnpicklingError

    verify(path)
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:class|global)[^\w]*([\w.]+)", str(error))
        culprit = f" ({found[1] or found[2]})" if found else ""
        raise UserError(
            f"{path} holds Python objects{culprit}, which could run code when loaded; "
            "use a checkpoint of tensors, numbers, strings, lists and dicts only."
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a PyTorch checkpoint; use another file.") from error


def find_last(folder: str | os.PathLike) -> Found | None:
    """The readable checkpoint of the highest step among last, last-previous and the best ones of ``folder``, or None.

    At equal steps ``last.ckpt`` wins, then ``last-previous.ckpt``. Partial ones, from which no run continues exactly, do
    not count. Damaged files are passed over and named in ``Found.skipped``.

    Raises:
        UserError: there are checkpoints, and none of them is readable.
    """
    folder = Path(folder)
    first = [folder / "last.ckpt", folder / PREVIOUS]
    found: list[tuple[int, int, Path, dict[str, int]]] = []
    damaged = []
    candidates = [*(p for p in first if p.is_file()), *sorted(folder.glob("best-*.ckpt"))]
    for rank, path in enumerate(candidates):
        try:
            note = verify(path)
        except UserError as error:
            damaged.append((path.name, str(error)))
        else:
            if not note["partial"]:
                found.append((note["step"], -rank, path, note))
    if not found:
        if damaged:
            names = ", ".join(name for name, _ in damaged)
            raise UserError(f"No checkpoint in {folder} can be read ({names} damaged); delete the folder to start afresh.")
        return None
    step, _, path, note = max(found)
    skipped = ""
    if damaged:
        names = ", ".join(name for name, _ in damaged)
        skipped = f"Skipped {names} in {folder} (damaged or cut short); continuing from {path.name} of step {step}."
    return Found(path, step, note["epoch"], skipped)


def _sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` survive a power cut; systems that cannot sync a folder are left to themselves."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _unwritable(folder: Path, error: OSError) -> UserError:
    if error.errno in _FULL:
        return UserError(
            f"The disk of {folder} is full, the checkpoint was not written and the previous one is kept; "
            "free some space and run the same command again."
        )
    return UserError(f"No checkpoint can be written to {folder} ({error.strerror or error}); choose a folder that you may write.")


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning's way to files, through :func:`write`, :func:`read` and :func:`verify`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """See :func:`write`."""
        write(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Callable | Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """See :func:`read`; ``weights_only=False`` is not honoured."""
        return read(path, map_location if map_location is not None else "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the file; a missing one is fine."""
        Path(path).unlink(missing_ok=True)

    def verify(self, path: Any) -> None:
        """Raise UserError when the file at ``path`` is not whole."""
        verify(path)
