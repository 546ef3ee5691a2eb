"""Pictures of a stream: slow-down, latency, missed deadlines, accuracy and energy over time, the environment's phases behind."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from papermix.alert.simulator import Log

_COLOURS = ("#0b6fb8", "#c0182b", "#2a8c55", "#c46a12", "#8a4fb0", "#6f7d8c", "#b0a010", "#30a0a0", "#404040")

_SHADES = ("#d9c48c", "#b8cfa0", "#d0b0c8")


def smooth(values: Sequence[float] | Any, window: int) -> Any:
    """Mean of the last ``window`` values at each place; of as many as there are at the beginning."""
    sums = np.cumsum(np.asarray(values, float))
    count = np.minimum(np.arange(1, len(sums) + 1), window)
    return (sums - np.concatenate([np.zeros(min(window, len(sums))), sums[:-window]])) / count


def draw(logs: Mapping[str, Log], phase: Sequence[int] | Any, names: Sequence[str], path: Path, title: str = "") -> None:
    """Write a picture of what several schedulers did with one stream; the first is that whose expectations are drawn.

    Args:
        logs: scheduler -> what happened, of the same length.
        phase: number of each input's phase [N].
        names: of the phases, for people.
        path: a .png file; its folder is made.
        title: above it all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    main = next(iter(logs.values()))
    count = len(main.chosen)
    inputs = np.arange(count)
    edges = [0, *(np.flatnonzero(np.diff(np.asarray(phase))) + 1).tolist(), count]
    window = max(1, min(100, min(np.diff(edges)[:-1], default=count) // 4))
    figure = Figure(figsize=(11, 12.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(5, 1, sharex=True)
    _phases(axes, edges, phase, names)

    met, mean, deviation = (np.array(values) for values in (main.slowdown, main.mean, main.deviation))
    axes[0].plot(inputs, met, ".", color="#404040", markersize=2.5, label="met")
    if np.isfinite(mean).all():
        axes[0].fill_between(inputs, mean - deviation, mean + deviation, color=_COLOURS[0], alpha=0.2, linewidth=0)
        axes[0].plot(inputs, mean, color=_COLOURS[0], linewidth=1, label="expected, with its deviation")
    # a single hiccup of the machine would leave no room for the rest
    axes[0].set_ylim(0, 1.25 * float(np.quantile(np.concatenate([met, [1.0]]), 0.99)))
    axes[0].legend(
        fontsize=7.5,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        title=f"unshaded: {names[0]}",
        title_fontsize=7.5,
    )
    for (name, log), colour in zip(logs.items(), _COLOURS):
        first = log is main
        style: dict[str, Any] = {"color": colour, "linewidth": 1.8 if first else 1.0, "zorder": 3 if first else 2}
        numbers = log.summary()
        missed = np.array(log.answer) < 0
        relative = np.array(log.latency) / np.array(log.deadline)
        axes[1].plot(inputs, smooth(relative, window), **style, label=f"{name} {1e3 * numbers['latency']:.3g} ms")
        axes[2].plot(inputs, np.cumsum(missed), **style, label=f"{name} {100 * numbers['late']:.2g} %")
        axes[3].plot(inputs, smooth(log.score, window), **style, label=f"{name} {100 * numbers['accuracy']:.3g} %")
        axes[4].plot(inputs, smooth(log.energy, window), **style, label=f"{name} {numbers['energy']:.3g} J")
    axes[1].axhline(1, color="black", linewidth=1, linestyle="--")
    budget = np.array(main.budget)
    if np.isfinite(budget).all():
        axes[4].plot(inputs, smooth(budget, window), color="black", linewidth=1, linestyle="--", label="budget")
    of = f"mean of {window}"
    titles = ("slow-down", f"latency / deadline, {of}", "missed deadlines so far", f"accuracy, {of}", f"joules per input, {of}")
    for axis, text in zip(axes, titles):
        axis.set_title(text, fontsize=10, loc="left")
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.set_xlim(0, count - 1 if count > 1 else 1)
    for axis in axes[1:]:
        axis.legend(fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes[-1].set_xlabel("inputs", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _phases(axes: Any, edges: Sequence[int], phase: Any, names: Sequence[str]) -> None:
    """Shade all phases but the first kind, and say once what each shade is."""
    told = set()
    for begin, end in itertools.pairwise(edges):
        kind = int(phase[begin])
        if kind:
            for axis in axes:
                label = names[kind] if axis is axes[0] and kind not in told else None
                axis.axvspan(begin, end, color=_SHADES[(kind - 1) % len(_SHADES)], alpha=0.35, linewidth=0, label=label)
            told.add(kind)
