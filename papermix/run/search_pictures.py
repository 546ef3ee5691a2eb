"""Pictures of a search: its values by trial, how much each parameter matters, and every trial across all parameters."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from papermix.run.search import importances

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial


def draw(study: "Study", names: Sequence[str], place: Path) -> list[Path]:
    """Write the pictures of a study into a folder; returns those for which there was enough to draw.

    ``history.png``: values by trial, with the best so far. ``importance.png``: share of the spread that each parameter explains.
    ``coordinates.png``: a line for each finished trial across all parameters, coloured by the first metric.

    Args:
        study: of the search.
        names: of its metrics.
        place: the folder.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    found = history(study, names), importance(study, names), coordinates(study, names[0])
    drawn = []
    for name, figure in zip(("history.png", "importance.png", "coordinates.png"), found):
        if figure is not None:
            FigureCanvasAgg(figure).print_png(place / name)
            drawn.append(place / name)
    return drawn


def _finished(study: "Study") -> "list[FrozenTrial]":
    import optuna

    return study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])


def _rises(study: "Study", index: int = 0) -> bool:
    """Whether more is better."""
    import optuna

    return study.directions[index] == optuna.study.StudyDirection.MAXIMIZE


def history(study: "Study", names: Sequence[str]) -> "Figure | None":
    """Values by trial, the best so far, and where pruned trials ended (with one metric); None before the first has finished."""
    import optuna
    from matplotlib.figure import Figure

    done = _finished(study)
    stopped = [t for t in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.PRUNED]) if t.intermediate_values]
    if not done:
        return None
    figure = Figure(figsize=(7, 3.2 * len(names)), layout="constrained")
    for i, name in enumerate(names):
        axes = figure.add_subplot(len(names), 1, i + 1)
        values = [t.values[i] for t in done]
        pick = max if _rises(study, i) else min
        so_far = [pick(values[: n + 1]) for n in range(len(values))]
        axes.plot([t.number + 1 for t in done], values, "o", color="tab:blue", label="finished")
        if stopped and len(names) == 1:
            last = [t.intermediate_values[max(t.intermediate_values)] for t in stopped]
            axes.plot([t.number + 1 for t in stopped], last, "x", color="0.6", label="pruned")
        axes.step([t.number + 1 for t in done], so_far, where="post", color="tab:orange", label="best so far")
        axes.set(xlabel="trial", ylabel=name)
        axes.legend()
        axes.grid(alpha=0.3)
    return figure


def importance(study: "Study", names: Sequence[str]) -> "Figure | None":
    """Share of each metric's spread that each parameter explains; None where there is too little to go by."""
    from matplotlib.figure import Figure

    shares = [importances(study, i) for i in range(len(names))]
    if not any(shares):
        return None
    keys = list(dict.fromkeys(k for s in shares for k in s))[::-1]
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(keys) * len(names)), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(names)
    for i, (name, share) in enumerate(zip(names, shares)):
        axes.barh([y + i * height for y in range(len(keys))], [share.get(k, 0.0) for k in keys], height, label=name)
    axes.set_yticks([y + 0.4 - height / 2 for y in range(len(keys))], keys)
    axes.set_xlabel("share of the metric's spread")
    if len(names) > 1:
        axes.legend()
    return figure


def coordinates(study: "Study", name: str) -> "Figure | None":
    """Parallel coordinates: an axis for each parameter and for the first metric, a line for each trial; None for fewer than two.

    A parameter stands from its lowest drawn value to its highest, in proportion where it was drawn so; listed values are spread
    evenly. Better trials are darker and lie on top.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    done = [t for t in _finished(study) if math.isfinite(t.values[0])]
    spaces: dict[str, BaseDistribution] = {key: d for t in done for key, d in t.distributions.items()}
    if len(done) < 2 or not spaces:
        return None
    done.sort(key=lambda t: t.values[0] if _rises(study) else -t.values[0])
    axes_of = {key: _places(key, space, done) for key, space in spaces.items()}
    low, high = min(t.values[0] for t in done), max(t.values[0] for t in done)
    axes_of[name] = {t.number: (t.values[0] - low) / ((high - low) or 1) for t in done}, [(0, f"{low:.4g}"), (1, f"{high:.4g}")]
    figure = Figure(figsize=(2 + 1.7 * len(axes_of), 4), layout="constrained")
    axes = figure.add_subplot()
    for rank, trial in enumerate(done):
        heights = [places.get(trial.number, math.nan) for places, _ in axes_of.values()]
        axes.plot(heights, color=colormaps["viridis_r"](rank / (len(done) - 1)), alpha=0.8, lw=2.5 if trial is done[-1] else 1.2)
    box = {"fc": "w", "ec": "none", "alpha": 0.7, "pad": 0.5}
    for x, (_, ticks) in enumerate(axes_of.values()):
        axes.axvline(x, color="0.3", lw=0.8)
        for height, text in ticks:
            axes.annotate(text, (x, height), (4, 0), textcoords="offset points", va="center", fontsize=8, bbox=box)
    axes.set_xticks(range(len(axes_of)), list(axes_of))
    axes.set(yticks=[], xlim=(-0.2, len(axes_of) - 0.4), ylim=(-0.06, 1.06))
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _places(key: str, space: Any, trials: "Sequence[FrozenTrial]") -> tuple[dict[int, float], list[tuple[float, str]]]:
    """Where each trial crosses a parameter's axis, 0 to 1, and the axis' marks (height, text)."""
    from optuna.distributions import CategoricalDistribution

    values = {t.number: t.params[key] for t in trials if key in t.params}
    if isinstance(space, CategoricalDistribution):
        count = len(space.choices)
        heights = {choice: (i + 0.5) / count for i, choice in enumerate(space.choices)}
        return {n: heights[v] for n, v in values.items()}, [(h, str(choice)) for choice, h in heights.items()]
    scaled = {n: math.log(v) if space.log else v for n, v in values.items()}
    low, high = min(scaled.values()), max(scaled.values())
    ends = [(0.0, f"{min(values.values()):.4g}"), (1.0, f"{max(values.values()):.4g}")]
    return {n: (v - low) / ((high - low) or 1) for n, v in scaled.items()}, ends if high > low else ends[:1]
