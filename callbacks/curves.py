"""Curves of a run, drawn from its ``metrics.csv`` at the end of training."""

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from callbacks.base import Callback, log_picture

Series = dict[str, tuple[list[int], list[float]]]
_COLOURS = {"train": "#6f7d8c", "val": "#0b6fb8", "test": "#c0182b"}
_OTHERS = ("#2a8c55", "#8a4fb0", "#c46a12", "#0b6fb8", "#6f7d8c", "#c0182b")


class Curves(Callback):
    """Writes ``curves.png`` beside ``metrics.csv``: a panel for each quantity, training and validation in the same one."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw, where there is a file of numbers."""
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            path: Any = getattr(logger, "path", None)
            if path is not None and Path(path).exists():
                picture = Path(path).with_name("curves.png")
                if draw(read(path), picture):
                    log_picture(trainer, "curves", picture)
                return


def read(path: str | Path) -> Series:
    """Read ``step,epoch,name,value`` lines: name -> (steps, values)."""
    series: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            if row["step"]:
                steps, values = series[row["name"]]
                steps.append(int(row["step"]))
                values.append(float(row["value"]))
    return dict(series)


def panels(series: Series) -> dict[str, list[str]]:
    """Group names by quantity, losses first: ``train/loss`` and ``val/loss`` share a panel, as do ``lr/head`` and ``lr/body``."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in series:
        first, _, rest = name.partition("/")
        groups[rest if first in _COLOURS and rest else first if first in ("lr", "gradient_norm") else name].append(name)
    order = ("loss", "accuracy")
    return dict(
        sorted(groups.items(), key=lambda g: (next((i for i, word in enumerate(order) if word in g[0]), len(order)), g[0]))
    )


def draw(series: Series, path: str | Path) -> bool:
    """Write small multiples of all quantities over a common axis of steps, with the last values named. False: there is nothing to draw."""
    groups = panels(series)
    if not groups:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    last = max(steps[-1] for steps, _ in series.values())
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(groups) :]:
        axis.axis("off")
    for axis, (title, names) in zip(axes, groups.items()):
        rank = {"train": 0, "val": 1, "test": 2}
        for i, name in enumerate(sorted(names, key=lambda n: (rank.get(n.partition("/")[0], 3), n))):
            steps, values = series[name]
            split = name.partition("/")[0]
            colour = _COLOURS.get(split, _OTHERS[i % len(_OTHERS)])
            few = len(values) < 30
            shown = split if split in _COLOURS else name.removeprefix(f"{title}/")
            label = f"{'' if shown == title else shown + ' '}{values[-1]:.4g}"
            axis.plot(steps, values, color=colour, linewidth=1.4, marker="o" if few else None, markersize=3, label=label)
        positive = [v for n in names for v in series[n][1] if v > 0]
        everything = [v for n in names for v in series[n][1]]
        wide = len(positive) == len(everything) and max(positive) > 30 * min(positive)
        if wide and any(word in title for word in ("loss", "perplexity", "norm")):
            axis.set_yscale("log")
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel("optimizer steps", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlim(0, 1.03 * max(1, last))
        # beside the title no curve hides it
        axis.legend(
            fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.1, ncols=4,
            handlelength=1.2, columnspacing=1.0, handletextpad=0.4,
        )  # fmt: skip
    figure.savefig(path)
    return True
