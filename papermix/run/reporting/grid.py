"""Grids of a claim: arms swept as with ``-m`` and tuned along one key, their best runs, tables and heat maps."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from papermix.errors import UserError, nearest
from papermix.run.reporting.blocks import table
from papermix.run.result import metric_text

_BETTER = {"max": max, "min": min}


@dataclass(frozen=True)
class Line:
    """Arms that differ in the tuned key alone.

    Attributes:
        name: what the values of its best runs are called, such as ``adam,eps=0.01``.
        label: its place in the grid, ``eps=0.01``.
        cells: value of the tuned key -> arm.
    """

    name: str
    label: str
    cells: dict[str, str]


@dataclass(frozen=True)
class Grid:
    """A swept arm: a line for each combination of the keys that are not tuned.

    Attributes:
        name: the arm's.
        tuned: the key whose best value is looked for.
        better: ``max`` or ``min``: which measure is the best.
        lines: its lines.
    """

    name: str
    tuned: str
    better: str
    lines: tuple[Line, ...]

    @property
    def at(self) -> str:
        """What the best values of the tuned key are called in an inequality: ``adam.lr``."""
        return f"{self.name}.{_short(self.tuned)}"

    @property
    def families(self) -> dict[str, list[str]]:
        """Names that stand for a value of each line: the measure of its best run, and the tuned key there."""
        return {self.name: [line.name for line in self.lines], self.at: [self.tuned_name(line) for line in self.lines]}

    def tuned_name(self, line: Line) -> str:
        """What the best value of the tuned key of a line is called."""
        return self.at + line.name.removeprefix(self.name)

    def best(self, values: Mapping[str, Mapping[int, float]]) -> dict[str, dict[int, float]]:
        """Value of each seed under the names of :attr:`families`, from those of the arms; runs without a finite value never win."""
        found: dict[str, dict[int, float]] = {}
        for line in self.lines:
            found[line.name], found[self.tuned_name(line)] = {}, {}
            for seed in sorted(set.intersection(*(set(values[arm]) for arm in line.cells.values()))):
                each = {at: values[arm][seed] for at, arm in line.cells.items() if math.isfinite(values[arm][seed])}
                if each:
                    at = _BETTER[self.better](each, key=each.__getitem__)
                    found[line.name][seed], found[self.tuned_name(line)][seed] = each[at], float(at)
        return found


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def check_tune(tune: Mapping[str, Any], where: str) -> tuple[str, str]:
    """The key and the direction of ``tune: {optimizer.lr: max}``. Raises UserError for anything else."""
    key, better = next(iter(tune.items()), ("", ""))
    if len(tune) != 1 or better not in _BETTER:
        raise UserError(f"{where}: tune must be one key and the better direction of the measure, like {{optimizer.lr: max}}.")
    return str(key), str(better)


def expand(arm: str, overrides: Sequence[str], tuned: str, better: str, where: str) -> tuple[Grid | None, dict[str, list[str]]]:
    """An arm's grid and the overrides of its cells; no grid when nothing is swept. Raises UserError for another sweep."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from papermix.run.sweep import combinations

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    swept = {o.get_key_element(): i for i, o in enumerate(parsed) if o.is_sweep_override()}
    if not swept:
        return None, {arm: list(overrides)}
    if tuned not in swept:
        raise UserError(f"{where}: arms.{arm} sweeps {', '.join(swept)}, but not {tuned}, which is tuned{nearest(tuned, swept)}.")
    lines: dict[str, dict[str, str]] = {}
    cells: dict[str, list[str]] = {}
    for each in combinations(parsed):
        values = {key: each[i].partition("=")[2] for key, i in swept.items()}
        at = values.pop(tuned)
        try:
            float(at)
        except ValueError:
            raise UserError(f"{where}: arms.{arm} has {tuned}={at}: what is tuned must be a number.") from None
        label = ",".join(f"{_short(key)}={value}" for key, value in values.items())
        name = f"{arm},{label},{_short(tuned)}={at}".replace(",,", ",")
        lines.setdefault(label, {})[at] = name
        cells[name] = each
    made = tuple(Line(f"{arm},{label}" if label else arm, label, found) for label, found in lines.items())
    return Grid(arm, tuned, better, made), cells


# ---- what is kept and shown ----------------------------------------------------------------------------------------------------


def summary(grid: Grid, best: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """A grid as JSON: its lines, each with the value and the place of its best run for every seed."""
    lines = [
        {
            **asdict(line),
            "mean": statistics.fmean(best[line.name].values()) if best[line.name] else None,
            "best": {str(s): v for s, v in best[line.name].items()},
            "at": {str(s): v for s, v in best[grid.tuned_name(line)].items()},
        }
        for line in grid.lines
    ]
    return {"tuned": grid.tuned, "better": grid.better, "lines": lines}


def rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Name, mean, seeds, and best values of the tuned key (with how often they were), of each line of all grids."""
    out = []
    for grid in found["grids"].values():
        for line in grid["lines"]:
            mean = "-" if line["mean"] is None else metric_text(found["measure"], line["mean"])
            out.append([line["name"], mean, str(len(line["best"])), f"{_short(grid['tuned'])} {_places(line)}"])
    return out


def _places(line: Mapping[str, Any]) -> str:
    """Best values of the tuned key, and for how many seeds."""
    return ", ".join(f"{value:g} ({count})" for value, count in sorted(Counter(line["at"].values()).items()))


def columns(grid: Mapping[str, Any]) -> list[str]:
    """All values of the tuned key, rising."""
    return sorted({at for line in grid["lines"] for at in line["cells"]}, key=float)


def matrix(grid: Mapping[str, Any], arms: Mapping[str, Any]) -> list[list[float]]:
    """Mean measure of each line (row) at each value of the tuned key (column), NaN where there is none."""
    means = [[arms[line["cells"][at]]["mean"] if at in line["cells"] else None for at in columns(grid)] for line in grid["lines"]]
    return [[math.nan if mean is None else mean for mean in row] for row in means]


def peak(row: Sequence[float], better: str) -> int | None:
    """Index of a row's best finite value."""
    return _BETTER[better]((i for i, v in enumerate(row) if math.isfinite(v)), key=row.__getitem__, default=None)


def section(name: str, grid: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """A grid as a Markdown table, the best mean of each line in bold."""
    lines = []
    for line, row in zip(grid["lines"], matrix(grid, found["arms"])):
        best = peak(row, grid["better"])
        cells = ["-" if math.isnan(v) else metric_text(found["measure"], v) for v in row]
        lines.append([line["label"], *(f"**{c}**" if i == best else c for i, c in enumerate(cells)), _places(line)])
    short = _short(grid["tuned"])
    return table([name, *(f"{short}={at}" for at in columns(grid)), f"best {short} (seeds)"], lines)


def draw(axis: Any, name: str, grid: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Draw a grid as a heat map of means; the best of each line framed."""
    from matplotlib.patches import Rectangle

    values = matrix(grid, found["arms"])
    axis.imshow(values, cmap="viridis" if grid["better"] == "max" else "viridis_r", aspect="auto")
    low, high = axis.images[0].get_clim()
    for i, row in enumerate(values):
        best = peak(row, grid["better"])
        for k, v in enumerate(row):
            dark = (v - low < 0.6 * (high - low)) == (grid["better"] == "max")
            said = "" if math.isnan(v) else metric_text(found["measure"], v).removesuffix(" %")
            axis.text(k, i, said, ha="center", va="center", fontsize=6.5, color="white" if dark else "black")
        if best is not None:
            axis.add_patch(Rectangle((best - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="#c0182b", linewidth=2))
    axis.set_xticks(range(len(columns(grid))), columns(grid), fontsize=8)
    axis.set_yticks(range(len(values)), [line["label"] for line in grid["lines"]], fontsize=8)
    axis.set_xlabel(_short(grid["tuned"]), fontsize=8)
    axis.set_title(f"{name}: best of each line framed", fontsize=9, loc="left")
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
