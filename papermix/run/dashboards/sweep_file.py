"""A sweep of Weights & Biases made from the overrides of a Hydra sweep: its agents run ``train.py`` with each point's overrides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from papermix.errors import UserError, nearest

METHODS = ("grid", "random", "bayes")
_GOALS = {"max": "maximize", "min": "minimize"}


def sweep_file(overrides: Sequence[str], method: str | None = None, metric: str | None = None, goal: str | None = None) -> dict[str, Any]:
    """What ``wandb sweep`` reads.

    Args:
        overrides: a Hydra sweep's: ``optimizer.lr=0.1,0.3``, ``seed=range(1,4)``, ``optimizer.lr=tag(log,interval(0.01,1))``; those
            with one value are the same in all runs.
        method: grid, random or bayes; None: grid where all values are listed, else bayes.
        metric: name of the number to search by; None: what the task monitors.
        goal: max or min; None: as the task says.

    Raises:
        UserError: an override does not go through the checks of ``train.py``, or there is nothing to sweep over.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from papermix.run.catalog import CONF
    from papermix.run.explain import explain
    from papermix.run.names import register_resolvers

    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        try:
            lines = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
        except Exception as error:
            raise UserError(explain(error, list(overrides))) from error
        parsed = {o.get_key_element(): o for o in lines}
        swept = [o for o in parsed.values() if o.is_sweep_override()]
        fixed = [str(o.input_line) for o in parsed.values() if not o.is_sweep_override()]
        if not swept:
            raise UserError("there is nothing to sweep over: give a key several values, as in optimizer.lr=0.1,0.3.")
        if not any(o.key_or_group == "logger" for o in parsed.values()):
            fixed.insert(0, "logger=[csv,wandb]")
        config = _check(fixed, swept)
    parameters = {o.get_key_element(): _parameter(o) for o in swept}
    listed = all("values" in p for p in parameters.values())
    method = method or ("grid" if listed else "bayes")
    if method not in METHODS:
        raise UserError(f"--method {method} is not known{nearest(method, METHODS)}: there are {', '.join(METHODS)}.")
    if method == "grid" and not listed:
        raise UserError("--method grid goes through listed values: list them, as in optimizer.lr=0.1,0.3, or use bayes or random.")
    target = config["logger"]["wandb"]
    where = {key: target[key] for key in ("project", "entity") if target.get(key)}
    return {
        "program": "train.py",
        **where,
        "method": method,
        "metric": _metric(config, metric, goal),
        "parameters": parameters,
        "command": ["${env}", "${interpreter}", "${program}", *fixed, "${args_no_hyphens}"],
    }


def _check(fixed: list[str], swept: list[Override]) -> dict[str, Any]:
    """Compose and check points in which every value stands at least once; returns the first one's config."""
    from papermix.run.compose import compose, freeze
    from papermix.run.explain import explain

    values = {o.get_key_element(): _texts(o) for o in swept}
    first = {key: texts[0] for key, texts in values.items()}
    points = [first] + [{**first, key: text} for key, texts in values.items() for text in texts[1:]]
    found: dict[str, Any] = {}
    for point in points:
        own = [*fixed, *(f"{key}={text}" for key, text in point.items())]
        try:
            stages = freeze(compose(own, with_hydra=True), own, Path("outputs"))
        except Exception as error:
            raise UserError(explain(error, own)) from error
        if list(stages) != ["main"]:
            raise UserError("an experiment of several stages has several records: sweep over it with python train.py -m ... instead.")
        found = found or stages["main"]
    if not (found.get("logger") or {}).get("wandb"):
        raise UserError("logger lacks wandb, so that the sweep would see none of its runs: add it, as in logger=[csv,wandb].")
    return found


def _texts(override: Override) -> list[str]:
    """The values of a sweep override as Hydra reads them; of an interval its ends."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    texts = list(override.sweep_string_iterator())
    if not texts:
        raise UserError(f"{override.input_line} gives no value to sweep over.")
    return texts


def _parameter(override: Override) -> dict[str, Any]:
    """A parameter of the sweep: its values, or a distribution."""
    value = override.value()
    tags = set(getattr(value, "tags", ()) or ())
    if tags - {"log"}:
        raise UserError(f"{override.input_line}: the tag {sorted(tags - {'log'})[0]!r} is not known; there is only log.")
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        whole = isinstance(low, int) and isinstance(high, int)
        if "log" in tags and whole:
            raise UserError(f"{override.input_line}: a sweep of wandb draws no whole numbers in proportion: list them, as in 16,32,64.")
        name = "log_uniform_values" if "log" in tags else "int_uniform" if whole else "uniform"
        return {"distribution": name, "min": low, "max": high}
    if "log" in tags:
        cure = "write tag(log,interval(a,b))" if isinstance(value, RangeSweep) else "leave the tag out"
        raise UserError(f"{override.input_line}: tag(log, ...) goes with interval(): {cure}.")
    return {"values": [_number(text) for text in _texts(override)]}


def _number(text: str) -> int | float | str:
    """A number as one, so that the dashboard can draw it as an axis; anything else as the text that Hydra reads."""
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if number == number and abs(number) != float("inf"):
            return number
    return text


def _metric(config: dict[str, Any], name: str | None, goal: str | None) -> dict[str, str]:
    from papermix.run.build import build

    if goal is not None and goal not in _GOALS:
        raise UserError(f"--goal {goal} is not known{nearest(goal, tuple(_GOALS))}: it is max or min.")
    if name is None or goal is None:
        task = build(config["dataset"]["task"])
        if name not in (None, task.monitor) and goal is None:
            raise UserError(f"--goal is needed for {name}: max or min.")
        name, goal = name or task.monitor, goal or task.mode
    return {"name": name, "goal": _GOALS[goal]}
