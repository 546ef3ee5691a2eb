"""Run folders: one config each, one process tree at a time, files written whole or not at all."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from papermix.errors import UserError
from papermix.run.names import VOLATILE


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a power cut, sees the old one or the new one. One process at a time.

    A file that holds the text already is left alone: what is finished is not touched again.
    """
    with contextlib.suppress(OSError, ValueError):
        if path.read_text(encoding="utf-8") == text:
            return
    temporary = path.with_name(f".{path.name}.tmp")  # a fixed name: what a killed run left is overwritten, not added to
    try:
        with open(temporary, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not say where
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=True) + "\n")


def read_json(path: Path) -> Any | None:
    """The JSON in a file; None if it is missing or unreadable (a result that cannot be read is computed again)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_config(folder: Path) -> dict[str, Any]:
    """The config frozen in a run folder. Raises UserError when there is none."""
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is not a run folder: it has no config.yaml.") from None
    except (OSError, yaml.YAMLError) as e:
        raise UserError(f"{path} cannot be read ({str(e).splitlines()[0]}): restore it, or start the run anew in another folder.") from e
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no config: restore it, or start the run anew in another folder.")
    return config


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Freeze a resolved config in a folder."""
    write_atomic(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def make(folder: Path) -> None:
    """Create a run folder and see that it can be written. Raises UserError otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)
    except OSError as e:
        raise UserError(f"cannot write into {folder} ({e.strerror}): set paths.outputs=DIR or hydra.run.dir=DIR to a folder you may write.") from e


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process, and for no process that it starts. Raises UserError when another run is working in it.

    The lock is a POSIX record lock: it goes when this process dies, however it dies, and NFS (4, or 3 with its lock daemon) and other
    shared file systems keep it across machines. On one that has no locks a note says so, and the run goes on.
    """
    # a forked data-loader worker may outlive a killed run by seconds: it would go on holding a lock of flock's kind
    with open(folder / ".lock", "a+", encoding="utf-8") as f:
        try:
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                f.seek(0)
                holder = f.read(200).strip()
                raise UserError(
                    f"another run is working in {folder}{holder and f' ({holder})'}: wait for it, stop it, or choose another folder with "
                    "hydra.run.dir=DIR (hydra.sweep.dir=DIR in a sweep)."
                ) from None
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            print(f"note: the file system of {folder} has no locks: see to it that no other run works in that folder.", file=sys.stderr)
        with contextlib.suppress(OSError):  # who holds it is for the message alone: a full disk may leave it out
            f.truncate(0)
            f.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            f.flush()
        yield


def leave_nothing(folder: Path) -> None:
    """Remove a folder, locked by this process, in which nothing has been written."""
    if [p.name for p in folder.iterdir()] == [".lock"]:
        (folder / ".lock").unlink()
        folder.rmdir()


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    if isinstance(node, dict) and node:
        return {k: v for key, value in node.items() for k, v in _flat(value, f"{path}.{key}" if path else str(key)).items()}
    return {path: node}


def adopt(folder: Path, config: dict[str, Any]) -> None:
    """Freeze the config in a new folder, or see that the folder holds the same one (volatile keys and the place may differ).

    Raises UserError that names the first key that differs: a different config never writes into a run.
    """
    if not (folder / "config.yaml").exists():
        write_config(folder, config)
        return
    old = {k: v for k, v in read_config(folder).items() if k not in VOLATILE}
    # the folder may have been moved since: paths stand in many places
    new = {k: v for k, v in config.items() if k not in VOLATILE}
    here, there = _flat(_portable(new, config)), _flat(_portable(old, read_config(folder)))
    for key in [*here, *there]:
        if here.get(key) != there.get(key):
            raise UserError(
                f"{folder} holds a run with another config ({key}={there.get(key)!r} there, {here.get(key)!r} here): "
                f"choose another folder with hydra.run.dir=DIR, or continue that run with resume={folder}."
            )
    write_config(folder, config)


def _portable(node: Any, config: dict[str, Any]) -> Any:
    """The config with its own folders replaced by their names, so that a moved run is still the same run."""
    paths = config.get("paths") or {}
    text = json.dumps(node)
    for name in ("run", "data", "outputs"):
        if paths.get(name):
            text = text.replace(json.dumps(str(paths[name]))[1:-1], f"<{name}>")
    return json.loads(text)
