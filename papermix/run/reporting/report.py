"""What a report says: runs equal up to the seed, those that can be compared together, best first, beside what was published."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from papermix.errors import UserError, nearest
from papermix.run.names import VOLATILE
from papermix.run.reporting.papers import Paper, Published
from papermix.run.reporting.runs import Run, groups, holds, identity, listed
from papermix.run.result import metric_text, score

# words of metrics of which less is better, for those that no run monitors
_LESS = ("loss", "error", "perplexity", "bits", "seconds", "bytes", "flops", "parameters", "density")
COSTS = {"density": "density", "effective_flops": "FLOPs per example", "wall_seconds": "seconds"}


@dataclass
class Group:
    """Runs equal up to the seed.

    Attributes:
        key: eight hexadecimal digits of their common config.
        name: how they differ from the others of their table, as overrides.
        runs: one for each seed.
        values: their metric.
        published: numbers of their paper for this mix.
    """

    key: str
    name: str
    runs: list[Run]
    values: list[float]
    published: list[Published]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 and all(map(math.isfinite, self.values)) else None

    def cost(self, name: str) -> float | None:
        """Mean of one of the numbers in ``result.json``; None where a run lacks it."""
        found = [number(run.result, name) for run in self.runs]
        return statistics.fmean(v for v in found if v is not None) if None not in found else None


@dataclass
class Section:
    """Groups that can be compared: the same dataset, the same metric.

    Attributes:
        shared: overrides that all runs of the section have.
        groups: best first.
    """

    dataset: str
    metric: str
    mode: str
    shared: list[str]
    groups: list[Group]


def number(result: Mapping[str, Any], name: str) -> float | None:
    """A metric or another number of a result, such as ``density``; None where it has none of that name."""
    value = result["metrics"].get(name, result.get(name))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def spread(metric: str, mean: float, std: float | None) -> str:
    """``97.20 % ± 0.41 %``; the mean alone for a single seed."""
    return metric_text(metric, mean) + ("" if std is None else f" ± {metric_text(metric, std)}")


def direction(result: Mapping[str, Any], metric: str) -> str:
    """``max`` or ``min``: that of the monitored metric for its like, else by the metric's name."""
    monitor = result.get("monitor") or {}
    if monitor.get("name", "").partition("/")[2] == metric.partition("/")[2] and monitor.get("mode"):
        return str(monitor["mode"])
    return "min" if any(word in metric for word in _LESS) else "max"


def _measured(run: Run, metric: str | None) -> tuple[str, float, str] | None:
    if metric is None:
        found = score(run.result)
        value = number(run.result, found[0]) if found else None
        return None if found is None or value is None else (found[0], value, found[2])
    value = number(run.result, metric)
    return None if value is None else (metric, value, direction(run.result, metric))


def sections(runs: Sequence[Run], papers: Mapping[str, Paper], metric: str | None = None) -> tuple[list[Section], list[str]]:
    """The tables of a report, and sentences about what was left out.

    Args:
        runs: finished runs.
        papers: for the published numbers.
        metric: compare by this metric or number instead of the monitored one.

    Raises:
        UserError: no run has this metric.
    """
    notes = []
    measured = {str(run.folder): _measured(run, metric) for run in runs}
    without = [run for run in runs if measured[str(run.folder)] is None]
    if metric and runs and len(without) == len(runs):
        known = sorted({name for run in runs for name in (*run.result["metrics"], *COSTS)})
        raise UserError(f"no run has a metric {metric!r}{nearest(metric, known)}; there are {', '.join(known)}.")
    if without:
        notes.append(f"{len(without)} runs without {metric or 'a monitored metric'} were left out, such as {without[0].folder}.")
    same, repeats = groups([run for run in runs if measured[str(run.folder)] is not None])
    if repeats:
        notes.append(f"{repeats} repeats of a seed were left out (of each seed the newest run counts).")

    tables: dict[tuple[str, str, str], list[tuple[str, list[Run], list[float]]]] = {}
    for key, members in same.items():
        found = [m for run in members if (m := measured[str(run.folder)]) is not None]
        place = (members[0].choices.get("dataset", "?"), found[0][0], found[0][2])
        tables.setdefault(place, []).append((key, members, [m[1] for m in found]))
    out = []
    for (dataset, name, mode), entries in sorted(tables.items()):
        shared, names = _names([members[0] for _, members, _ in entries])
        made = [
            Group(key, label, members, values, _published(members[0], papers, name))
            for label, (key, members, values) in zip(names, entries)
        ]
        made.sort(key=lambda g: (math.isnan(g.mean), -g.mean if mode == "max" else g.mean, g.name))
        out.append(Section(dataset, name, mode, shared, made))
    return out, notes


def _names(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """(overrides that all have, a name for each from the others); equal names get the hash of their config."""
    each = [own(run) for run in runs]
    shared = [o for o in each[0] if all(o in other for other in each)] if len(each) > 1 else []
    names = [" ".join(o for o in overrides if o not in shared) or "defaults" for overrides in each]
    return shared, [name if names.count(name) == 1 else f"{name} ({identity(run)})" for name, run in zip(names, runs)]


def _published(run: Run, papers: Mapping[str, Paper], metric: str) -> list[Published]:
    """Numbers of the run's paper with its metric, data, model, and further options."""
    paper = papers.get(run.result.get("paper") or "")
    return [
        n
        for n in (paper.published if paper else ())
        if n.metric == metric and fits(run, n)
    ]


def fits(run: Run, number: Published) -> bool:
    """Whether a run is what a published number is about: its data (no random stand-in), model and options."""
    same = (run.choices.get("dataset"), run.choices.get("model")) == (number.data, number.model)
    return same and not holds(run, "dataset.fake=true") and all(holds(run, o) for o in number.overrides)


def comparable(section: Section) -> list[str]:
    """The costs that differ between a section's groups, so that the metric can be drawn against them."""
    out = []
    for name in COSTS:
        found = [c for g in section.groups if (c := g.cost(name)) is not None]
        # time always differs a little: it counts from a fifth on
        least = 1.2 if name == "wall_seconds" else 1.01
        if len(found) == len(section.groups) > 1 and min(found) > 0 and max(found) / min(found) > least:
            out.append(name)
    return out


# ---- what differs --------------------------------------------------------------------------------------------------------------


def own(run: Run) -> list[str]:
    """The overrides of a run that say what is computed, its seed left out."""
    return [o for o in run.overrides if re.split(r"[./@]", key_of(o))[0] not in (*VOLATILE, "seed", "logger")]


def key_of(override: str) -> str:
    """``optimizer.lr`` of ``+optimizer.lr=0.1``."""
    return override.lstrip("+~").partition("=")[0]


def varied(section: Section) -> dict[str, list[str]]:
    """``key -> its value in each group``, for the keys of overrides whose values differ between groups."""
    keys = dict.fromkeys(key_of(o) for g in section.groups for o in own(g.runs[0]))
    values = {key: [_setting(g.runs[0], key) for g in section.groups] for key in keys}
    return {key: each for key, each in values.items() if len(set(each)) > 1}


def _setting(run: Run, key: str) -> str:
    """A key's value as it was typed, else that of the run's (last stage's) config."""
    typed = [o for o in own(run) if key_of(o) == key]
    if typed:
        return "deleted" if typed[-1].startswith("~") else _plain(typed[-1].partition("=")[2])
    try:
        value = run.get(key)
    except (KeyError, IndexError, ValueError, TypeError):
        return ""
    return _plain(listed(value))


def _plain(text: str) -> str:
    """Numbers in one spelling (``1e-1`` is ``0.1``), so are truth and nothing."""
    try:
        return f"{float(text):.12g}"
    except ValueError:
        low = text.lower()
        return "null" if low == "none" else low if low in ("true", "false", "null") else text
