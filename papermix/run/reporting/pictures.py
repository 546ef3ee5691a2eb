"""Pictures of reports: curves of runs equal up to the seed, and what a metric costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from papermix.run.reporting.runs import Curve, curves
from papermix.run.result import quantity

if TYPE_CHECKING:
    from papermix.run.reporting.report import Group, Section

BLUE, GREY, RED = "#0b6fb8", "#6f7d8c", "#c0182b"


def figure(width: float, height: float, columns: int) -> tuple[Any, list[Any]]:
    """A figure that needs no display, and its panels side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(made)
    axes = list(made.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return made, axes


def mean_curve(each: list[Curve]) -> Curve:
    """Mean over the seeds at the steps that all of them have."""
    values = [dict(zip(*curve)) for curve in each]
    steps = sorted(set.intersection(*(set(v) for v in values)))
    return steps, [statistics.fmean(v[s] for v in values) for s in steps]


def draw_curves(group: Group, metric: str, path: Path) -> list[str]:
    """Draw each seed thin and their mean thick: the monitored validation metric with the test value, and the training loss.

    Returns a sentence for each file of numbers that cannot be read; draws nothing when none can.
    """
    problems, read = [], []
    for run in group.runs:
        try:
            read.append(curves(run.metrics_file))
        except (OSError, ValueError) as error:
            problems.append(f"{run.metrics_file} has no curves ({' '.join(str(error).split())[:120]}).")
    kind = metric.partition("/")[2]
    wanted = [f"val/{kind}", "train/loss"] if kind and kind != "loss" else ["val/loss", "train/loss"]
    have = [name for name in wanted if any(name in c for c in read)]
    if not have:
        return problems
    made, axes = figure(4.4 * len(have), 3.1, len(have))
    for axis, name in zip(axes, have):
        each = [c[name] for c in read if name in c]
        for steps, values in each:
            axis.plot(steps, values, color=BLUE, alpha=0.35 if len(each) > 1 else 1, linewidth=0.8 if len(each) > 1 else 1.6)
        if len(each) > 1:
            axis.plot(*mean_curve(each), color=BLUE, linewidth=1.8, label=f"mean of {len(each)} seeds")
        if name == f"val/{kind}" and metric.startswith("test/"):
            last = max(steps[-1] for steps, _ in each)
            axis.plot([last] * len(group.values), group.values, "o", color=RED, markersize=4, alpha=0.7, label="test")
        axis.set_title(name.replace("/", " "), fontsize=9, loc="left")
        axis.set_xlabel("optimizer steps", fontsize=8)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7, frameon=False)
    made.suptitle(shortened(group.name, 80), fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path)
    return problems


def draw_costs(section: Section, path: Path) -> bool:
    """Draw the metric against density, FLOPs and time, where they differ between groups; False when none does."""
    from papermix.run.reporting.report import COSTS, comparable

    panels = {name: [g.cost(name) or 0.0 for g in section.groups] for name in comparable(section)}
    if not panels:
        return False
    from matplotlib.ticker import LogLocator, NullFormatter

    made, axes = figure(4.6 * len(panels), 3.4, len(panels))
    colour: Callable[[int], Any] = _colours(len(section.groups))
    for axis, (name, found) in zip(axes, panels.items()):
        for i, (group, cost) in enumerate(zip(section.groups, found)):
            if math.isfinite(group.mean):
                style = {"fmt": "o", "color": colour(i), "markersize": 5, "capsize": 2, "label": shortened(group.name, 48)}
                axis.errorbar(cost, group.mean, yerr=group.std or 0, **style)
        if max(found) > 5 * min(found):
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_formatter(lambda x, _: quantity(x))
        axis.set_xlabel(COSTS[name], fontsize=9)
        axis.margins(0.12)
    axes[0].set_ylabel(section.metric.replace("/", " "), fontsize=9)
    if len(section.groups) <= 12:
        made.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path)
    return True


def shortened(text: str, length: int) -> str:
    """A text of at most so many characters: its middle goes, since names differ at their ends."""
    half = (length - 3) // 2
    return text if len(text) <= length else f"{text[:half]}...{text[-half:]}"


def _colours(count: int) -> Callable[[int], Any]:
    """A colour for each of so many groups."""
    from matplotlib import colormaps

    return lambda i: colormaps["tab10"](i) if count <= 10 else colormaps["viridis"](i / (count - 1))
