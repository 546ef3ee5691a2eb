"""Searches with Optuna: spaces written as Hydra sweep overrides, a study on disk that a killed search goes on with, reports."""

import inspect
import logging
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from papermix.errors import UserError, nearest

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial

SAMPLERS = {
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "grid": "GridSampler",
    "cmaes": "CmaEsSampler",
    "gp": "GPSampler",
    "qmc": "QMCSampler",
    "nsgaii": "NSGAIISampler",
}
PRUNERS = {"none": "NopPruner", "median": "MedianPruner", "asha": "SuccessiveHalvingPruner", "hyperband": "HyperbandPruner"}
_DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {"max": "maximize", "min": "minimize"}
# their next point follows from the stored ones alone, so they are seeded the same for each trial
_STATELESS = {"grid", "qmc"}


def library() -> Any:
    """Optuna, quiet. Raises UserError when it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError("hydra/sweeper=optuna needs Optuna: install it with pip install 'papermix[optuna]'.") from None
    optuna.logging.set_verbosity(logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    # what it asks for is done: see importances
    warnings.filterwarnings("ignore", message="PedAnovaImportanceEvaluator computes")
    return optuna


# ---- the space -----------------------------------------------------------------------------------------------------------------


def distribution(override: Override) -> "BaseDistribution":
    """What Optuna draws from for a sweep override. Raises UserError for one that makes no space.

    ``a,b,c``, ``choice(a,b)`` and ``glob(*)``: one of these. ``interval(1e-4,1e-1)``: a float, ends included;
    ``int(interval(1,8))``: an integer. ``range(16,129,16)``: its steps. ``tag(log,...)`` draws in proportion.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    tags: set[str] = getattr(value, "tags", set())
    unknown = sorted(tags - {"log"})
    if unknown:
        raise UserError(f"{override.input_line}: the tag {unknown[0]!r} is not known; there is only log.")
    log = "log" in tags
    try:
        if isinstance(value, IntervalSweep):
            low, high = value.start, value.end
            assert low is not None and high is not None
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=log)
            return FloatDistribution(float(low), float(high), log=log)
        if isinstance(value, RangeSweep):
            steps = list(value.range())
            if not steps:
                raise UserError(f"{override.input_line} gives no value to search in.")
            if log and (value.step != 1 or not isinstance(steps[0], int)):
                raise UserError(f"{override.input_line}: tag(log, ...) goes with steps of 1: write tag(log, int(interval(a,b))).")
            step = abs(value.step)
            if all(isinstance(s, int) for s in steps):
                return IntDistribution(min(steps), max(steps), log=log, step=int(step))
            return FloatDistribution(float(min(steps)), float(max(steps)), step=float(step))
    except ValueError as error:
        raise UserError(f"{override.input_line} is no space to search in: {error}.") from error
    choices = list(override.sweep_string_iterator())
    if not choices:
        raise UserError(f"{override.input_line} gives no value to choose from.")
    if log:
        raise UserError(f"{override.input_line}: tag(log, ...) goes with interval() and range(), not with a list.")
    return CategoricalDistribution(choices)


def corners(space: Mapping[str, "BaseDistribution"]) -> list[list[str]]:
    """Override lists in which every listed value, and both ends of every interval, stand at least once."""
    from optuna.distributions import CategoricalDistribution

    values: dict[str, list[str]] = {}
    for key, d in space.items():
        ends = list(d.choices) if isinstance(d, CategoricalDistribution) else [d.low, d.high]  # type: ignore[attr-defined]
        values[key] = [as_text(v) for v in ends]
    first = {key: vs[0] for key, vs in values.items()}
    points = [first] + [{**first, key: v} for key, vs in values.items() for v in vs[1:]]
    return [[f"{key}={v}" for key, v in point.items()] for point in points]


def as_text(value: Any) -> str:
    """A drawn value as Hydra's grammar reads it, six digits of a float; listed values are such texts already."""
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.6g}"
    return text if "." in text or "e" in text else f"{text}.0"


def grid_size(space: Mapping[str, "BaseDistribution"]) -> int:
    """Number of points of a space of listed values. Raises UserError for an interval of floats."""
    return math.prod(len(v) for v in _grid(space).values())


def _grid(space: Mapping[str, "BaseDistribution"]) -> dict[str, list[Any]]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    grid: dict[str, list[Any]] = {}
    for key, d in space.items():
        if isinstance(d, CategoricalDistribution):
            grid[key] = list(d.choices)
        elif isinstance(d, IntDistribution):
            grid[key] = list(range(d.low, d.high + 1, d.step))
        else:
            assert isinstance(d, FloatDistribution)
            if d.step is None:
                raise UserError(
                    f"hydra.sweeper.sampler=grid needs listed values, but {key} is an interval: write {key}=0.1,0.2 instead."
                )
            grid[key] = [d.low + i * d.step for i in range(round((d.high - d.low) / d.step) + 1)]
    return grid


# ---- the study -----------------------------------------------------------------------------------------------------------------


def _make(kind: str, name: str, known: Mapping[str, str], module: Any, options: Mapping[str, Any], **given: Any) -> Any:
    """An object of Optuna's by our short name, with options that are its arguments."""
    if name not in known:
        raise UserError(f"hydra.sweeper.{kind}={name!r} is not known{nearest(name, known)}: there are {', '.join(known)}.")
    cls = getattr(module, known[name])
    takes = [p for p in inspect.signature(cls).parameters if p not in given]
    for key in options:
        if key not in takes:
            raise UserError(f"hydra.sweeper.{kind}_options.{key} is not an argument of {known[name]}{nearest(key, takes)}.")
    try:
        return cls(**given, **options)
    except (ValueError, TypeError) as error:
        raise UserError(f"hydra.sweeper.{kind}_options do not suit {known[name]}: {error}.") from error
    except ImportError as error:
        raise UserError(f"hydra.sweeper.{kind}={name} needs another package: {str(error).splitlines()[0]}") from error


def make_sampler(
    name: str, options: Mapping[str, Any], seed: int, number: int, space: Mapping[str, "BaseDistribution"]
) -> "optuna.samplers.BaseSampler":
    """The sampler for trial ``number``: seeded by it, so that a search that was killed draws what it would have drawn."""
    import optuna

    given: dict[str, Any] = {"seed": seed if name in _STATELESS else (seed * 1_000_003 + number) % 2**32}
    if name == "grid":
        given["search_space"] = _grid(space)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _make("sampler", name, SAMPLERS, optuna.samplers, options, **given)


def make_pruner(name: str, options: Mapping[str, Any]) -> "optuna.pruners.BasePruner":
    """The pruner of that name."""
    import optuna

    return _make("pruner", name, PRUNERS, optuna.pruners, options)


def open_storage(storage: str) -> "optuna.storages.BaseStorage":
    """Where a study lives: a database URL (``sqlite:///search.db``), else the path of a journal file."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if "://" in storage:
        try:
            return RDBStorage(storage)
        except Exception as error:
            raise UserError(f"hydra.sweeper.storage={storage} cannot be opened: {str(error).splitlines()[0]}") from error
    return JournalStorage(JournalFileBackend(storage))


def mend_journal(path: Path) -> None:
    """Make a journal fit for use after its writer was killed: no lock left behind, no half line at its end.

    For the one process that holds the sweep's folder.
    """
    lock = path.with_name(path.name + ".lock")
    if lock.is_symlink() or lock.exists():
        lock.unlink()
    if path.exists():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            with open(path, "r+b") as f:
                f.truncate(whole)


def open_study(storage: str, name: str, directions: Sequence[str]) -> "Study":
    """The study of a search, made if it is not there yet. Raises UserError when it searches in another direction."""
    import optuna

    wanted = [_DIRECTIONS[d] for d in directions]
    study = optuna.create_study(storage=open_storage(storage), study_name=name, directions=wanted, load_if_exists=True)
    have = [d.name.lower() for d in study.directions]
    if have != wanted:
        raise UserError(
            f"the study in {storage} was begun with {', '.join(have)}, not {', '.join(wanted)}: choose another folder with hydra.sweep.dir=DIR."
        )
    return study


def check_directions(directions: Iterable[Any]) -> list[str]:
    """``max`` or ``min`` for each metric. Raises UserError otherwise."""
    out = []
    for d in directions:
        if d not in _DIRECTIONS:
            raise UserError(f"hydra.sweeper.direction={d!r} is not known: use max or min (null: as the task says).")
        out.append(str(d))
    return out


def objective(result: Mapping[str, Any], name: str | None) -> float:
    """The number a search goes by: a metric of the result, or one of its own numbers. Raises UserError when it has none such.

    Args:
        result: as in ``result.json``.
        name: ``val/accuracy``, ``parameters``, ...; None: the monitored validation metric.
    """
    metrics: Mapping[str, Any] = result.get("metrics") or {}
    monitor: Mapping[str, Any] = result.get("monitor") or {}
    if name is None:
        name = str(monitor.get("name"))
        value = monitor.get("value", metrics.get(name))
    else:
        value = metrics.get(name, result.get(name))
        value = value.get("total") if isinstance(value, Mapping) else value
    if not isinstance(value, int | float) or isinstance(value, bool):
        numbers = [*metrics, *(k for k, v in result.items() if isinstance(v, int | float) and not isinstance(v, bool))]
        raise UserError(
            f"hydra.sweeper.metric: the result has no number {name!r}{nearest(name, numbers)}; it has {', '.join(numbers)}."
        )
    if math.isnan(value):
        raise UserError(f"{name} is not a number (nan).")
    return float(value)


# ---- reports -------------------------------------------------------------------------------------------------------------------


def best_trials(study: "Study") -> "list[FrozenTrial]":
    """The best trial, or with several metrics those that no other beats in all of them; empty when none has finished."""
    import optuna

    done = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    return (study.best_trials if len(study.directions) > 1 else [study.best_trial]) if done else []


def importances(study: "Study", index: int = 0) -> dict[str, float]:
    """How much of a metric's spread each parameter explains, largest first; empty when there is too little to go by."""
    import optuna

    done = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    if len(done) < 4 or len({t.values[index] for t in done}) < 2 or not all(map(math.isfinite, (t.values[index] for t in done))):
        return {}
    sign = -1 if study.directions[index] == optuna.study.StudyDirection.MAXIMIZE else 1
    try:  # the evaluator asks what makes the target low
        found = optuna.importance.get_param_importances(study, target=lambda t: sign * t.values[index])
    except (ValueError, RuntimeError):  # such as when every trial had the same parameters
        return {}
    return {k: round(float(v), 4) for k, v in found.items()}
