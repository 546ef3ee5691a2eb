"""What ALERT is compared with: oracles, fixed choices, adapters of one level, and two that do not speak."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from papermix.alert.controller import Alert, Array, Goal, Table, decide, predict
from papermix.alert.profile import Profile, first, last
from papermix.alert.simulator import Log
from papermix.errors import UserError, nearest

SCHEDULERS = (
    "alert",
    "mean_only",
    "oracle",
    "oracle_static",
    "app_only",
    "sys_only",
    "no_coordination",
    "first_exit",
    "last_exit",
)


class Static:
    """Always the same configuration."""

    mean = deviation = float("nan")

    def __init__(self, index: int):
        self.index = index

    def choose(self, goal: Goal) -> int:
        """The one."""
        return self.index

    def observe(self, chosen: int, seconds: float, answer: int | None = None, idle: float | None = None) -> None:
        """Nothing is learnt."""


class Oracle(Static):
    """ALERT's decision with the next slow-down and the idle power as they will be.

    Args:
        only: indices of the configurations that may be chosen.
    """

    deviation = 0.0

    def __init__(self, profile: Profile, only: Sequence[int]):
        self.indices = list(only)
        self.table = Table([profile.configurations[i] for i in self.indices], profile.fail)
        self.mean, self._ratio = 1.0, profile.idle
        self.idle: float | Array = profile.idle

    def foresee(self, slowdown: float, idle_watts: float | None) -> None:
        """What the next input will meet; without watts between inputs the profile's part of what a configuration draws."""
        self.mean = slowdown
        self.idle = self._ratio if idle_watts is None else idle_watts / self.table.power

    def choose(self, goal: Goal) -> int:
        """The best there is."""
        return self.indices[decide(predict(self.table, goal.deadline, self.mean, 0.0, self.idle), goal)]


class NoCoordination:
    """A network chooser and a power manager, each with a filter of its own, each taking the other for the weather.

    Args:
        application: chooses among networks as if at the default setting.
        system: chooses among settings as if one network ran.
    """

    def __init__(self, profile: Profile, application: Alert, system: Alert):
        self.profile, self.application, self.system = profile, application, system
        rows = {(c.network, c.exits, c.setting): i for i, c in reversed(list(enumerate(profile.configurations)))}
        self._rows, self._asked = rows, (0, 0)

    @property
    def mean(self) -> float:
        """What the network chooser expects."""
        return self.application.mean

    @property
    def deviation(self) -> float:
        """And its deviation."""
        return self.application.deviation

    def choose(self, goal: Goal) -> int:
        """The network of the one at the setting of the other."""
        self._asked = self.application.choose(goal), self.system.choose(goal)
        network, setting = (self.profile.configurations[i] for i in self._asked)
        key = (network.network, network.exits, setting.setting)
        if key not in self._rows:
            raise UserError(f"the profile has no row of {network.network} with exits {list(network.exits)} at {setting.setting}.")
        return self._rows[key]

    def observe(self, chosen: int, seconds: float, answer: int | None = None, idle: float | None = None) -> None:
        """Each reads the time as that of what it asked for."""
        application, system = self._asked
        self.application.observe(application, seconds, answer, idle)
        self.system.observe(system, seconds, None, idle)


Make = Callable[..., Alert]


class Choices:
    """The configurations that each scheduler has to choose from, and the schedulers by name.

    ``alert`` and ``mean_only`` (ALERT*) choose freely; ``app_only`` at the default setting among the anytime networks (all when
    there is none), ``sys_only`` the setting of the fastest network, ``no_coordination`` does both, independently; ``oracle`` knows the
    next slow-down, ``oracle_static`` is the best fixed choice in hindsight; ``first_exit`` and ``last_exit`` always take the
    quickest exit at the default setting, and the last one of the slowest network, which they wait for.

    Args:
        profile: measured or stated.
        stops: anytime networks may also be stopped on purpose, to save energy.
        make: ``make(profile, uncertain=..., only=...)`` -> scheduler, for other constants.

    Attributes:
        known: the profile as it is given.
        profile: with stops, and with further configurations at the end that only fixed choices use.
        free: indices of those that all others choose from.
    """

    def __init__(self, profile: Profile, stops: bool = True, make: Make = Alert):
        self.make, self.known = make, profile
        profile = profile.with_stops() if stops else profile
        rows = profile.configurations
        self.free = list(range(len(rows)))
        default = profile.where(setting=profile.default)
        quickest = min(default, key=lambda i: rows[i].latency[0])
        slowest = max(default, key=lambda i: rows[i].latency[-1])
        self.profile = replace(profile, configurations=(*rows, first(rows[quickest], 1), last(rows[slowest])))
        anytime = {c.network for c in rows if c.anytime}
        self.application = [i for i in default if not anytime or rows[i].network in anytime]
        network = rows[quickest].network
        full = max(len(rows[i].exits) for i in default if rows[i].network == network)
        self.system = [i for i in self.free if rows[i].network == network and len(rows[i].exits) == full]

    def scheduler(self, name: str, replay: Callable[[Any], Log] | None = None, goal: Goal | None = None) -> Any:
        """A fresh scheduler.

        Args:
            replay: serves the stream with a fixed choice; for ``oracle_static``.
            goal: of the stream, likewise; see :func:`best_static`.

        Raises:
            UserError: an unknown name.
        """
        if name not in SCHEDULERS:
            raise UserError(f"there is no scheduler {name!r}{nearest(name, SCHEDULERS)}: use one of {', '.join(SCHEDULERS)}.")
        profile, count = self.profile, len(self.profile.configurations)
        if name == "oracle":
            return Oracle(profile, self.free)
        if name == "oracle_static":
            assert replay is not None and goal is not None, "the best fixed choice is found in hindsight"
            return Static(best_static({i: replay(Static(i)) for i in self.free}, goal))
        if name in ("first_exit", "last_exit"):
            return Static(count - 2 if name == "first_exit" else count - 1)
        if name == "no_coordination":
            make = self.make
            return NoCoordination(profile, make(profile, only=self.application), make(profile, only=self.system))
        only = {"app_only": self.application, "sys_only": self.system}.get(name, self.free)
        return self.make(profile, uncertain=name != "mean_only", only=only)


def best_static(logs: dict[int, Log], goal: Goal) -> int:
    """The configuration that keeps the goal best over a stream; what cannot be had is given up as by ``decide``.

    A budget is kept when at most a tenth of the inputs go over it, an accuracy when it is reached on the mean.

    Args:
        logs: what each configuration, always chosen, came to.
        goal: its energy is not read: each log has the budget of each input.
    """
    found = {i: log.summary() for i, log in logs.items()}
    if goal.probability is not None:
        lowest = min(s["late"] for s in found.values())
        found = {i: s for i, s in found.items() if s["late"] <= max(1 - goal.probability, lowest)}
    if goal.objective == "energy":
        assert goal.accuracy is not None, "check_goal asks for it"
        good = {i: s for i, s in found.items() if s["accuracy"] >= goal.accuracy}
        if good:
            return min(good, key=lambda i: (good[i]["energy"], -good[i]["accuracy"]))
    else:
        found = {i: s for i, s in found.items() if s["over_budget"] <= 0.1} or found
    return max(found, key=lambda i: (found[i]["accuracy"], -found[i]["energy"]))
