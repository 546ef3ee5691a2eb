"""Runs read back from their folders: what they chose, which of them are equal up to the seed, which are asked for."""

import csv
import json
import math
import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from papermix.errors import UserError, nearest
from papermix.run.catalog import CONF
from papermix.run.names import VOLATILE, short_hash
from papermix.run.reporting.unfinished import FILES, Unfinished, unfinished, walk

# libyaml's loader reads the same, ten times as fast
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: its folder.
        result: what its ``result.json`` holds.
        configs: the frozen config of each of its stages, in order.
        overrides: those of its command line.
        choices: the option of each config group.
    """

    folder: Path
    result: dict[str, Any]
    configs: list[dict[str, Any]]
    overrides: list[str]
    choices: dict[str, str]

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.result["seed"])

    @property
    def metrics_file(self) -> Path:
        """``metrics.csv`` of the run, of its last stage where it has several."""
        last = self.result["stages_done"][-1]
        return (self.folder if last == "main" else self.folder / last) / "metrics.csv"

    def get(self, key: str) -> Any:
        """What a run has under a group's name, ``tag``, or a dotted key of its (last stage's) config. Raises KeyError."""
        if key in self.choices:
            return self.choices[key]
        if key in ("tag", "tags"):
            return list(self.result.get("tags") or [])
        node: Any = self.configs[-1]
        for part in key.split("."):
            node = node[part] if isinstance(node, dict) else node[int(part)]
        return node


@dataclass
class Found:
    """What lies in folders of runs.

    Attributes:
        runs: finished runs, in the order of their folders.
        unfinished: runs without a result.
        problems: a sentence for each result that cannot be used.
    """

    runs: list[Run] = field(default_factory=list)
    unfinished: list[Unfinished] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_runs(*roots: Path) -> Found:
    """All runs in and below some folders, each once. Raises UserError when one is missing; unusable results are named, not fatal."""
    places: dict[str, dict[Path, Path]] = {name: {} for name in FILES}
    for root in roots:
        if not root.is_dir():
            beside = [p.name for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
            raise UserError(f"there is no folder {root}{nearest(root.name, beside)}: name one that holds runs, such as outputs.")
        for name, folders in walk(root).items():
            for place in folders:
                places[name].setdefault(place.resolve(), place)
    here = {name: sorted(folders.values()) for name, folders in places.items()}
    found = Found(unfinished=unfinished(here))
    for place in here["result.json"]:
        try:
            run = _read(place / "result.json")
        except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError) as error:
            why = " ".join(str(error).split())[:120]
            found.problems.append(f"{place / 'result.json'} cannot be used ({type(error).__name__}: {why}).")
            continue
        if run is None:
            continue
        if run.result.get("status") == "pruned":
            found.unfinished.append(Unfinished(place, f"pruned by the search, after step {run.result.get('steps', '?')}"))
        else:
            found.runs.append(run)
    return found


def _read(path: Path) -> Run | None:
    """The run of a ``result.json``; None for that of a stage, which stands in its run's."""
    result = _result(path)
    if "stages_done" not in result:
        return None
    place = path.parent
    places = [place if name == "main" else place / str(name) for name in result["stages_done"]]
    configs = [yaml.load((p / "config.yaml").read_text(encoding="utf-8"), _LOADER) for p in places]
    if not configs or not all(isinstance(c, dict) for c in configs):
        raise ValueError("its config.yaml holds no config")
    overrides = shlex.split(result["command"])[2:]
    return Run(place, result, configs, overrides, result.get("choices") or choices(overrides))


def _result(path: Path) -> dict[str, Any]:
    """What a ``result.json`` holds, the kinds of values that a report relies on checked."""
    result = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(result, dict):
        raise ValueError("it holds no result")
    needed = {"metrics": dict, "seed": int, "command": str, "stages_done": list}
    if result.get("stage") and "stages_done" not in result:
        needed = {}
    optional = {"monitor": dict, "choices": dict, "tags": list, "paper": str}
    for key, kind in (needed | optional).items():
        value = result.get(key)
        if (not isinstance(value, kind) or isinstance(value, bool)) and not (key in optional and value is None):
            raise ValueError(f"its {key} is no {kind.__name__}")
    if result.get("monitor") and not {"name", "mode"} <= set(result["monitor"]):
        raise ValueError("its monitor has no name and mode")
    # lone surrogates can be neither printed nor written
    return dict(json.loads(json.dumps(result, ensure_ascii=False).encode("utf-8", "replace")))


# ---- what was chosen -----------------------------------------------------------------------------------------------------------


@cache
def _defaults(path: Path) -> dict[str, str]:
    """Options that a config's defaults list names, those of the recipes that it builds on included."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _LOADER)
    except OSError:  # a recipe that is no longer there: what it chose is not known
        return {}
    chosen: dict[str, str] = {}
    for entry in (tree or {}).get("defaults", []):
        if isinstance(entry, str):
            if entry != "_self_":
                base = CONF / f"{entry}.yaml" if entry.startswith("/") else path.parent / f"{entry}.yaml"
                chosen |= _defaults(base) if path.name != "train.yaml" else {}
        else:
            for key, value in entry.items():
                chosen[str(key).removeprefix("override ").lstrip("/")] = listed(value)
    return chosen


def listed(value: Any) -> str:
    """A value as a command line has it: ``[a,b]`` for a list."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def choices(overrides: Sequence[str]) -> dict[str, str]:
    """The option of each config group that a command line chooses, its recipe's and the defaults included."""
    typed = {key.lstrip("+"): value for key, _, value in (o.partition("=") for o in overrides)}
    chosen = dict(_defaults(CONF / "train.yaml"))
    experiment = typed.get("experiment", chosen.get("experiment", "None"))
    if experiment not in ("None", "null"):
        chosen |= _defaults(CONF / "experiment" / f"{experiment}.yaml")
    return chosen | {key: value for key, value in typed.items() if key in chosen}


# ---- which runs are asked for --------------------------------------------------------------------------------------------------


def select(runs: Sequence[Run], conditions: Sequence[str]) -> list[Run]:
    """Runs for which all conditions ``key=value`` hold (``value``: a pattern, or several of them with commas).

    Raises:
        UserError: a condition that cannot be read, or a key that no run has.
    """
    chosen = list(runs)
    for condition in conditions:
        key, sign, _ = condition.partition("=")
        if not sign:
            raise UserError(f"--where {condition} is no condition: write key=value, such as dataset=digits or optimizer.lr=0.1.")
        if runs and not any(_has(run, key) for run in runs):
            known = {"tag", "seed", *(k for run in runs for k in (*run.choices, *_paths(run.configs[-1])))}
            raise UserError(f"--where {condition}: no run has a key {key!r}{nearest(key, sorted(known))}.")
        chosen = [run for run in chosen if holds(run, condition)]
    return chosen


def holds(run: Run, condition: str) -> bool:
    """Whether ``key=value`` is true of a run."""
    key, _, wanted = condition.partition("=")
    if not _has(run, key):
        return False
    value = run.get(key)
    have = value if isinstance(value, list) and key in ("tag", "tags") else [value]
    return any(_same(h, w) for h in have for w in [wanted, *([] if wanted.startswith("[") else wanted.split(","))])


def _has(run: Run, key: str) -> bool:
    try:
        run.get(key)
    except (KeyError, IndexError, ValueError, TypeError):
        return False
    return True


def _same(have: Any, wanted: str) -> bool:
    if isinstance(have, bool) or have is None:
        return str(have).lower() == wanted.lower() or (have is None and wanted in ("null", "none"))
    if isinstance(have, int | float):
        try:
            return math.isclose(have, float(wanted), rel_tol=1e-9)
        except ValueError:
            return False
    return fnmatchcase(listed(have), wanted) if not wanted.startswith("[") else listed(have) == wanted.replace(" ", "")


def _paths(node: Any, prefix: str = "") -> Iterable[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _paths(value, f"{prefix}{key}.")


# ---- which runs are equal ------------------------------------------------------------------------------------------------------


def identity(run: Run) -> str:
    """Eight hexadecimal digits, the same for runs whose configs are equal up to seed, folders and loggers."""
    texts = []
    for config in run.configs:
        plain = {k: v for k, v in config.items() if k not in VOLATILE and k != "logger"}
        text = json.dumps(_without_seed(plain, config.get("seed")), sort_keys=True, default=str)
        paths = config.get("paths")
        for name in ("run", "data", "outputs"):
            if isinstance(paths, dict) and paths.get(name):
                text = text.replace(json.dumps(str(paths[name]))[1:-1], f"<{name}>")
        texts.append(text)
    return short_hash("\n".join(texts))


def _without_seed(node: Any, seed: Any) -> Any:
    """A config without the entries named seed that hold the run's seed."""
    if isinstance(node, dict):
        return {k: _without_seed(v, seed) for k, v in node.items() if k != "seed" or v != seed}
    return [_without_seed(v, seed) for v in node] if isinstance(node, list) else node


def groups(runs: Sequence[Run]) -> tuple[dict[str, list[Run]], int]:
    """Runs equal up to the seed, by identity, and how many repeats of a seed were left out (the newest of them counts)."""
    out: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in sorted(runs, key=lambda r: (r.folder / "result.json").stat().st_mtime):
        out[identity(run)][run.seed] = run
    kept = {key: [same[seed] for seed in sorted(same)] for key, same in out.items()}
    return kept, len(runs) - sum(map(len, kept.values()))


# ---- curves --------------------------------------------------------------------------------------------------------------------

Curve = tuple[list[int], list[float]]


def curves(path: Path) -> dict[str, Curve]:
    """``name -> (steps, values)`` of a ``metrics.csv`` (``step,epoch,name,value``). Raises OSError, ValueError for a bad line."""
    series: dict[str, Curve] = defaultdict(lambda: ([], []))
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is None or not {"step", "name", "value"} <= set(reader.fieldnames):
            raise ValueError("its columns are not step,epoch,name,value")
        for row in reader:
            if row["step"]:
                try:
                    step, value = int(row["step"]), float(row["value"])
                except (TypeError, ValueError):
                    raise ValueError(f"line {reader.line_num} is no number") from None
                series[row["name"]][0].append(step)
                series[row["name"]][1].append(value)
    return dict(series)
