"""Runs without a result: where they are, and why they have none as far as their folders tell."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from papermix.run.folder import read_json

# what a run and a sweep leave in their folders
FILES = ("result.json", "config.yaml", "origin.json", "sweep.json")


@dataclass(frozen=True)
class Unfinished:
    """A run without a result, and what is known of it in a few words."""

    folder: Path
    why: str


def walk(root: Path) -> dict[str, list[Path]]:
    """The folders below a root (itself included, hidden ones not) that hold each of :data:`FILES`, sorted."""
    found: dict[str, list[Path]] = {name: [] for name in FILES}
    for place, folders, files in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in set(FILES) & set(files):
            found[name].append(Path(place))
    return {name: sorted(places) for name, places in found.items()}


def unfinished(found: Mapping[str, list[Path]]) -> list[Unfinished]:
    """The runs without a result among the folders that :func:`walk` found; those that a sweep has not begun included."""
    done = set(found["result.json"])
    told = {place: why for sweep in found["sweep.json"] for place, why in _of_sweep(sweep)}
    begun = {p for p in {*found["config.yaml"], *found["origin.json"]} if not _is_stage(p, done)}
    return [Unfinished(p, told.get(p) or _why(p)) for p in sorted((begun | set(told)) - done)]


def _is_stage(place: Path, done: Iterable[Path]) -> bool:
    """Whether a folder is that of a stage: its run's folder is the one above."""
    origin = read_json(place.parent / "origin.json")
    stages = origin.get("stages") if isinstance(origin, dict) else None
    return (isinstance(stages, list) and place.name in stages) or place.parent in done


def _of_sweep(place: Path) -> Iterable[tuple[Path, str]]:
    """(folder, what happened) of the runs that a sweep's table has as not finished. The sweep may have been moved."""
    table = read_json(place / "sweep.json")
    rows = table.get("runs") if isinstance(table, dict) else None
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and row.get("status") in ("failed", "stopped", "waiting") and row.get("folder"):
            error = " ".join(str(row.get("error") or "").split())
            # what stopped begins with the word
            why = error if error.startswith(row["status"]) else f"{row['status']}: {error}" if error else row["status"]
            yield place / Path(str(row["folder"])).name, why


def _why(place: Path) -> str:
    """``failed: ...`` with the last line of its stack trace, else how far it has come."""
    try:
        trace = (place / "error.txt").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        trace = ""
    if trace:
        return f"failed: {' '.join(trace.splitlines()[-1].split())[:200]}"
    steps = [s for f in (place / "metrics.csv", *sorted(place.glob("*/metrics.csv"))) if (s := _last_step(f))]
    return f"stopped or still running, after step {steps[-1]}" if steps else "stopped or still running, before its first number"


def _last_step(path: Path) -> str | None:
    """The step of the last line of a ``metrics.csv``."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    steps = [line.split(",")[0] for line in lines]
    return next((s for s in reversed(steps) if s.isdigit()), None)
