"""What a dashboard says about a run besides its numbers, and what it already has of it."""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from papermix.run import folder
from papermix.run.catalog import CONF, options
from papermix.run.machine import git_state

# config groups whose option is worth a tag
_TAGGED = ("experiment", "dataset", "model", "method", "optimizer", "scheduler", "sparsity")
# numbers of result.json that are worth a column beside the metrics
_FIGURES = ("parameters", "trainable_parameters", "density", "flops", "effective_flops", "peak_memory_bytes", "wall_seconds")


@dataclass(frozen=True)
class About:
    """Facts of a run.

    Attributes:
        name: the run folder's name; of a stage ``<run>/<stage>``.
        config: the whole resolved config.
        tags: paper, the options of the main groups, stage, sweep; those that a run does not have are left out.
        labels: the user's own ``tags``.
        git: commit of the code and whether it has uncommitted changes; None outside of a checkout.
        command: the command line that makes this run.
        above: folders of which this run is a part, outermost first: its sweep, the run of which it is a stage.
    """

    name: str
    config: dict[str, Any]
    tags: dict[str, str] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    git: dict[str, Any] | None = None
    command: str = ""
    above: list[Path] = field(default_factory=list)


def about(place: Path, config: Mapping[str, Any]) -> About:
    """Facts of the run (or stage) whose folder is ``place``."""
    from papermix.run.job import ORIGIN, command

    place = place.absolute()
    stage = config.get("stage")
    run = place.parent if stage else place
    origin = folder.read_json(run / ORIGIN) or {}
    sweep = run.parent if origin.get("sweep") else None
    tags = {"paper": config.get("paper"), **{g: _option(g, config, origin.get("choices") or {}) for g in _TAGGED}}
    tags |= {"stage": stage, "sweep": sweep.name if sweep else None}
    return About(
        name=f"{run.name}/{stage}" if stage else run.name,
        config=dict(config),
        tags={key: str(value) for key, value in tags.items() if value},
        labels=[str(t) for t in config.get("tags") or ()],
        git=git_state(),
        command=command(origin.get("overrides") or []),
        above=[*([sweep] if sweep else []), *([run] if stage else [])],
    )


def _option(group: str, config: Mapping[str, Any], chosen: Mapping[str, str]) -> str | None:
    """The option of a group that a config was made with: a stage may have another one than the run was started with."""
    node = config.get(group)
    choice = chosen.get(group)
    if not isinstance(node, Mapping) or "_target_" not in node:
        return choice
    here = flat(node)

    def alike(name: str) -> tuple[int, bool]:
        return sum(here.get(key) == value for key, value in _option_values(group, name).items()), name == choice

    same = [name for name in options(group) if _option_values(group, name).get("_target_") == node["_target_"]]
    return max(same, key=alike, default=choice)


@cache
def _option_values(group: str, name: str) -> dict[str, Any]:
    return flat(yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8")) or {})


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """Dotted keys of a config, as one types them, with values that are no mappings; lists as their JSON text."""
    if isinstance(node, Mapping) and (node or not path):
        return {k: v for key, value in node.items() for k, v in flat(value, f"{path}.{key}" if path else str(key)).items()}
    return {path: json.dumps(node) if isinstance(node, list | Mapping) else node}


def figures(result: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a result besides its metrics: sizes and costs."""
    return {f"result/{key}": float(result[key]) for key in _FIGURES if isinstance(result.get(key), int | float)}


def result_lines(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The lines of a run's final table."""
    from papermix.run.result import rows

    return [*rows(dict(result)), ("status", str(result["status"]))]


def as_markdown(lines: Iterable[tuple[str, str]], header: tuple[str, str] = ("result", "")) -> str:
    """A table of two columns."""
    from papermix.run.reporting.blocks import table

    return table(header, [list(line) for line in lines])


def plain_name(name: str) -> str:
    """A metric's name in letters that every dashboard takes."""
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name)


class Ledger:
    """Which record a run folder has in a dashboard, and how far each series in it goes: a continued run goes on there.

    It is written after what was sent has been taken. A run that goes back to its last checkpoint makes some numbers once more;
    those that the record has are not sent again.

    Args:
        path: the file, ``{"id": ..., "last": {series: step}}``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        kept = folder.read_json(path)
        kept = kept if isinstance(kept, dict) else {}
        self.id: str | None = kept.get("id")
        self.last: dict[str, int] = dict(kept.get("last") or {})
        self.past = dict(self.last)

    def begin(self, identity: str) -> None:
        """Note a record in which nothing is yet."""
        self.id, self.last, self.past = identity, {}, {}
        self._write()

    def is_new(self, series: str, step: int) -> bool:
        """Whether a point was not in the record when this process began."""
        return step > self.past.get(series, -1)

    def note(self, points: Iterable[tuple[str, int]]) -> None:
        """Note points (series, step) that the record has now."""
        for series, step in points:
            self.last[series] = max(step, self.last.get(series, -1))
        self._write()

    def _write(self) -> None:
        # without the wait for the disk that folder.write_json makes: a power cut may lose the latest lines of a dashboard
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        try:
            temporary.write_text(json.dumps({"id": self.id, "last": self.last}, indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, self.path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
