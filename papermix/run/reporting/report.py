"""A report over run folders: tables of runs equal up to the seed, best first, beside what was published."""

import csv
import io
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from papermix.errors import UserError, nearest
from papermix.run.folder import write_atomic
from papermix.run.names import VOLATILE
from papermix.run.reporting import blocks
from papermix.run.reporting.papers import Paper, Published
from papermix.run.reporting.runs import Run, groups, holds, identity
from papermix.run.result import duration, metric_text, quantity, score

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


def direction(result: Mapping[str, Any], metric: str) -> str:
    """``max`` or ``min``: that of the monitored metric for its like, else by the metric's name."""
    monitor = result.get("monitor") or {}
    if monitor.get("name", "").partition("/")[2] == metric.partition("/")[2] and monitor.get("mode"):
        return str(monitor["mode"])
    return "min" if any(word in metric for word in _LESS) else "max"


def _measured(run: Run, metric: str | None) -> tuple[str, float, str] | None:
    if metric is None:
        found = score(run.result)
        return (found[0], float(found[1]), found[2]) if found else None
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
    own = [[o for o in run.overrides if o.lstrip("+~").split("=")[0].split(".")[0] not in (*VOLATILE, "seed")] for run in runs]
    shared = [o for o in own[0] if all(o in other for other in own)] if len(own) > 1 else []
    names = [" ".join(o for o in overrides if o not in shared) or "defaults" for overrides in own]
    return shared, [name if names.count(name) == 1 else f"{name} ({identity(run)})" for name, run in zip(names, runs)]


def _published(run: Run, papers: Mapping[str, Paper], metric: str) -> list[Published]:
    """Numbers of the run's paper with its metric, data, model, and further options."""
    paper = papers.get(run.result.get("paper") or "")
    return [
        n
        for n in (paper.published if paper else ())
        if (n.metric, n.data, n.model) == (metric, run.choices.get("dataset"), run.choices.get("model"))
        and all(holds(run, o) for o in n.overrides)
    ]


def lines(section: Section) -> tuple[list[str], list[list[str]]]:
    """(header, lines) of a section's table."""
    published = any(g.published for g in section.groups)
    header = ["run", "seeds", section.metric.replace("/", " "), "spread", "parameters", "density", "FLOPs", "time"]
    rows = []
    for g in section.groups:
        spread = "" if g.std is None else "± " + metric_text(section.metric, g.std)
        costs = [g.cost(name) for name in ("parameters", "density", "effective_flops", "wall_seconds")]
        texts = [quantity, lambda d: f"{100 * d:.3g} %", quantity, duration]
        row = [g.name, str(len(g.values)), metric_text(section.metric, g.mean), spread]
        row += ["" if c is None else text(c) for c, text in zip(costs, texts)]
        if published:
            row.append(
                ", ".join(f"{metric_text(n.metric, n.value)} ({g.runs[0].result['paper']}, {n.table})" for n in g.published)
            )
        rows.append(row)
    return [*header, *(["published"] if published else [])], rows


def title(section: Section) -> str:
    """``digits: test accuracy, best first (all with model=mlp)``."""
    shared = f" (all with {' '.join(section.shared)})" if section.shared else ""
    return f"{section.dataset}: {section.metric.replace('/', ' ')}, best first{shared}"


def write(place: Path, found: Sequence[Section], notes: Sequence[str], command: str) -> list[Path]:
    """Write ``report.md``, ``report.csv`` and pictures into a folder; returns the files."""
    from papermix.run.reporting.pictures import draw_costs, draw_curves

    place.mkdir(parents=True, exist_ok=True)
    notes, files = list(notes), []
    parts = ["# Report", f"`{command}`"]
    for section in found:
        parts += [f"## {title(section)}", blocks.table(*lines(section))]
        name = slug(f"{section.dataset}-{section.metric}")
        if draw_costs(section, place / f"{name}-costs.png"):
            files.append(place / f"{name}-costs.png")
            parts.append(f"![{section.metric} against its costs]({name}-costs.png)")
        for i, group in enumerate(section.groups, start=1):
            path = place / "curves" / f"{name}-{i:02d}-{slug(group.name)[:60]}-{group.key}.png"
            problems = draw_curves(group, section.metric, path)
            notes += problems
            if path.exists():
                files.append(path)
                parts.append(f"![{group.name}](curves/{path.name})")
    if notes:
        parts += ["## Left out", "\n".join(f"- {note}" for note in notes)]
    write_atomic(place / "report.md", "\n\n".join(parts) + "\n")
    write_atomic(place / "report.csv", as_csv(found))
    return [place / "report.md", place / "report.csv", *files]


def slug(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.=,-]+", "_", text).strip("_.")


def as_csv(found: Sequence[Section]) -> str:
    """All groups as CSV, numbers as they are; seeds and their values separated by spaces, their folders by lines."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    costs = ["parameters", "density", "flops", "effective_flops", "wall_seconds", "peak_memory_bytes"]
    writer.writerow(
        ["dataset", "metric", "mode", "run", "config", "n", "mean", "std", *costs, "published", "seeds", "values", "folders"]
    )
    for section in found:
        for g in section.groups:
            published = " ".join(repr(n.value) for n in g.published)
            each = [" ".join(map(str, column)) for column in ([r.seed for r in g.runs], g.values)]
            numbers = ["" if (c := g.cost(name)) is None else c for name in costs]
            head = [
                section.dataset,
                section.metric,
                section.mode,
                g.name,
                g.key,
                len(g.values),
                g.mean,
                "" if g.std is None else g.std,
            ]
            writer.writerow([*head, *numbers, published, *each, "\n".join(str(r.folder) for r in g.runs)])
    return text.getvalue()
