"""What is known beforehand: for each network at each power setting, how long each exit takes, how good it is, and the power."""

import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from papermix.errors import UserError, nearest


@dataclass(frozen=True)
class Configuration:
    """A network at a power setting.

    Attributes:
        network, setting: names.
        exits: numbers, from 1, of the exits that give an answer, rising; of a network with one output ``(1,)``. One exit alone is
            a traditional network, several are an anytime one, which may be stopped at any time and has then the last answer.
        latency: mean seconds from the start to each answer, in a quiet environment; rising.
        accuracy: of each answer, in [0, 1]; rising, since an answer that is no better than an earlier one is not waited for.
        power: watts while it computes.
    """

    network: str
    setting: str
    exits: tuple[int, ...]
    latency: tuple[float, ...]
    accuracy: tuple[float, ...]
    power: float

    @property
    def anytime(self) -> bool:
        """Whether it has an answer before its last one."""
        return len(self.exits) > 1


@dataclass(frozen=True)
class Profile:
    """All configurations that there are.

    Attributes:
        configurations: in any order; a scheduler's choice is an index into them.
        fail: accuracy of an answer that is not ready: a random guess.
        default: the setting of a machine that nobody manages.
        idle: power between inputs as part of the power while computing.

    Raises:
        UserError: one sentence that names the configuration and what is wrong with it.
    """

    configurations: tuple[Configuration, ...]
    fail: float
    default: str
    idle: float = 0.25

    def __post_init__(self) -> None:
        for number, one in enumerate(self.configurations):
            fault = _fault(one)
            if fault:
                raise UserError(f"configuration {number} of the profile ({one.network} at {one.setting}): {fault}.")
        settings = self.settings
        if not settings:
            raise UserError("the profile holds no configuration: give at least one.")
        if self.default not in settings:
            hint = nearest(self.default, settings)
            raise UserError(
                f"the profile's default setting {self.default!r} is none of its settings{hint}: {', '.join(settings)}."
            )
        if not 0 <= self.fail <= 1 or not 0 <= self.idle:
            raise UserError(f"the profile's fail={self.fail} must lie in [0, 1], and its idle={self.idle} be at least 0.")

    @property
    def networks(self) -> list[str]:
        """Names of the networks, in order."""
        return list(dict.fromkeys(c.network for c in self.configurations))

    @property
    def settings(self) -> list[str]:
        """Names of the settings, in order."""
        return list(dict.fromkeys(c.setting for c in self.configurations))

    @property
    def longest(self) -> float:
        """Mean seconds of the slowest network at the default setting."""
        return max(c.latency[-1] for c in self.configurations if c.setting == self.default)

    @property
    def highest(self) -> float:
        """Most watts at the default setting."""
        return max(c.power for c in self.configurations if c.setting == self.default)

    def where(self, **wanted: Any) -> list[int]:
        """Indices of the configurations with these attributes."""
        return [i for i, c in enumerate(self.configurations) if all(getattr(c, k) == v for k, v in wanted.items())]

    def with_stops(self) -> "Profile":
        """The same, and each anytime network also stopped on purpose at each exit but its last: what saves energy."""
        rows = list(self.configurations)
        rows += [first(c, k) for c in self.configurations for k in range(1, len(c.exits))]
        return replace(self, configurations=tuple(rows))

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    @staticmethod
    def load(path: str | Path) -> "Profile":
        """Read what :meth:`save` wrote. Raises UserError: one sentence that names the file, the configuration and the key."""
        try:
            tree = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is no readable profile ({' '.join(str(error).split())}): measure it again.") from None
        if not isinstance(tree, dict) or not isinstance(tree.get("configurations"), list):
            raise UserError(f"{path} is no profile: it must hold configurations, fail and default.")
        try:
            rows = tuple(_configuration(row, f"configuration {i}") for i, row in enumerate(tree["configurations"]))
            return read(Profile, {**tree, "configurations": rows}, "the profile")
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def _configuration(row: Any, where: str) -> Configuration:
    if isinstance(row, Mapping):
        row = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return read(Configuration, row, where)


def _fault(one: Configuration) -> str | None:
    """What is wrong with a configuration."""
    lists = (one.exits, one.latency, one.accuracy)
    if not all(isinstance(values, tuple) and len(values) == len(one.exits) for values in lists) or not one.exits:
        return "exits, latency and accuracy must be lists of one length, at least one"
    numbers = [*one.exits, *one.latency, *one.accuracy, one.power]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in numbers):
        return "exits, latency, accuracy and power must be finite numbers"
    for name, values in (("exits", one.exits), ("latency", one.latency), ("accuracy", one.accuracy)):
        if any(b <= a for a, b in itertools.pairwise(values)):
            return f"{name}={list(values)} must rise from exit to exit"
    if one.latency[0] <= 0 or one.power <= 0 or one.exits[0] < 1:
        return "latency and power must be above 0, exits from 1 on"
    if one.accuracy[0] < 0 or one.accuracy[-1] > 1:
        return f"accuracy={list(one.accuracy)} must lie in [0, 1]"
    return None


def read(kind: Any, row: Any, where: str) -> Any:
    """An object of a dataclass from a mapping. Raises UserError that names the key: unknown, or missing."""
    known = {f.name: f for f in fields(kind)}
    if not isinstance(row, Mapping):
        raise UserError(f"{where} must be a mapping of {', '.join(known)}, not {row!r}.")
    for key in row:
        if key not in known:
            raise UserError(f"{where} has no {key!r}{nearest(str(key), known)}: it takes {', '.join(known)}.")
    made = {}
    for name, field in known.items():
        if name in row:
            value = row[name]
            kinds: Any = (float, int) if field.type is float else field.type
            if field.type in (float, int, str) and (isinstance(value, bool) or not isinstance(value, kinds)):
                raise UserError(f"{where}: {name}={value!r} must be {'a number' if field.type is not str else 'a word'}.")
            made[name] = value
    try:
        return kind(**made)
    except TypeError:
        missing = [name for name, f in known.items() if name not in row and f.default is f.default_factory]
        raise UserError(f"{where} lacks {', '.join(missing)}.") from None


def first(one: Configuration, count: int) -> Configuration:
    """A configuration that ends with its first ``count`` answers."""
    return replace(one, exits=one.exits[:count], latency=one.latency[:count], accuracy=one.accuracy[:count])


def last(one: Configuration) -> Configuration:
    """A configuration that answers only when its last exit is there."""
    return replace(one, exits=one.exits[-1:], latency=one.latency[-1:], accuracy=one.accuracy[-1:])


def worthwhile(accuracy: Sequence[float], latency: Sequence[float]) -> list[int]:
    """Places, from 0, of the exits that are better than all exits before them, and later."""
    chosen: list[int] = []
    for k, value in enumerate(accuracy):
        if not chosen or (value > accuracy[chosen[-1]] and latency[k] > latency[chosen[-1]]):
            chosen.append(k)
    return chosen


def configuration(network: str, setting: str, latency: Sequence[float], accuracy: Sequence[float], power: float) -> Configuration:
    """A configuration from what was measured at all exits; those that are not worth waiting for are left out."""
    kept = worthwhile(accuracy, latency)
    return Configuration(
        network, setting, tuple(k + 1 for k in kept), tuple(float(latency[k]) for k in kept),
        tuple(float(accuracy[k]) for k in kept), float(power),
    )  # fmt: skip


def at_settings(
    networks: Mapping[str, tuple[Sequence[float], Sequence[float]]], settings: Iterable[tuple[str, float, float]]
) -> tuple[Configuration, ...]:
    """Each network at each stated setting.

    Args:
        networks: name -> (latency, accuracy) of each exit at full power.
        settings: (name, watts, factor by which latencies grow).
    """
    settings = list(settings)
    return tuple(
        configuration(name, setting, [factor * t for t in latency], accuracy, power)
        for name, (latency, accuracy) in networks.items()
        for setting, power, factor in settings
    )
