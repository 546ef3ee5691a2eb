"""ALERT's decision: what each configuration is expected to do under the slow-down, and the best of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from papermix.alert.filters import IdlePower, Slowdown
from papermix.alert.profile import Configuration, Profile
from papermix.errors import UserError, nearest

Array = NDArray[np.float64]
OBJECTIVES = ("accuracy", "energy")


class Goal(NamedTuple):
    """What is wanted of the next input.

    Attributes:
        deadline: seconds from its start; for one of several inputs that share a deadline, its share of the time that remains.
        objective: ``accuracy``: the most, within ``energy``; ``energy``: the least, with at least ``accuracy``.
        energy: joules up to the deadline, idling included; None: any.
        accuracy: expected accuracy; None: any.
        probability: with which an answer must be ready at the deadline; None: as accuracy and energy have it.
    """

    deadline: float
    objective: str = "accuracy"
    energy: float | None = None
    accuracy: float | None = None
    probability: float | None = None


def check_goal(goal: Goal) -> None:
    """Raise UserError for a goal that cannot be meant."""
    if goal.objective not in OBJECTIVES:
        raise UserError(f"objective={goal.objective} must be {' or '.join(OBJECTIVES)}{nearest(goal.objective, OBJECTIVES)}.")
    if not goal.deadline > 0 or (goal.energy is not None and not goal.energy > 0):
        raise UserError(f"deadline={goal.deadline} and energy={goal.energy} must be above 0.")
    for name in ("accuracy", "probability"):
        value = getattr(goal, name)
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{name}={value} must lie in [0, 1].")
    if goal.objective == "energy" and goal.accuracy is None:
        raise UserError("objective=energy needs an accuracy to keep: without one the cheapest network is always right.")


class Table:
    """Configurations as arrays; rows of fewer answers are filled up with ones that never come.

    Attributes:
        latency: seconds to each answer [C, K].
        gain: what each answer adds to the accuracy of the one before it [C, K], the first to ``fail``.
        power: watts [C].
        total: seconds to the last answer [C].
    """

    def __init__(self, configurations: Sequence[Configuration], fail: float):
        most = max(len(c.exits) for c in configurations)
        self.latency = np.full((len(configurations), most), np.inf)
        self.gain = np.zeros((len(configurations), most))
        for i, c in enumerate(configurations):
            self.latency[i, : len(c.latency)] = c.latency
            self.gain[i, : len(c.accuracy)] = np.diff([fail, *c.accuracy])
        self.fail = fail
        self.rate = 1 / self.latency
        self.power = np.array([c.power for c in configurations], float)
        self.total = np.array([c.latency[-1] for c in configurations], float)


class Prediction(NamedTuple):
    """Of each configuration: probability of an answer by the deadline, expected accuracy, expected joules; [C] each."""

    probability: Array
    accuracy: Array
    energy: Array


def in_time(rate: Array, deadline: float, mean: float, deviation: float) -> Array:
    """Pr(xi t <= T) = Phi((T / t - mu) / sigma), for ``rate`` = 1 / t of any shape; without uncertainty 0 or 1."""
    margin = rate * deadline - mean
    if deviation > 0:
        found: Array = ndtr(margin / deviation)
        return found
    # T = mu t is in time, whatever the division rounds to
    return (margin >= -1e-12 * mean).astype(float)


def predict(table: Table, deadline: float, mean: float, deviation: float, idle: float | Array) -> Prediction:
    """What each configuration does with an input.

    accuracy = q_fail + sum_k (q_k - q_{k-1}) Phi((T / t_k - mu) / sigma), which for one exit is Pr q + (1 - Pr) q_fail;
    energy = P tau + phi P (T - tau), tau = min(mu t, T).

    Args:
        deadline: T in seconds, at least 0.
        mean, deviation: mu and sigma of the slow-down.
        idle: phi; or of each configuration its own [C].
    """
    ready = in_time(table.rate, deadline, mean, deviation)
    accuracy = table.fail + (table.gain * ready).sum(1)
    busy = np.minimum(mean * table.total, deadline)
    energy = table.power * (busy + idle * (deadline - busy))
    return Prediction(ready[:, 0], accuracy, energy)


def decide(found: Prediction, goal: Goal) -> int:
    """Index of the best configuration; there always is one.

    What cannot be had is given up in this order: energy first, then accuracy, the deadline last. So without a configuration
    within ``energy`` the most accurate is taken, whatever it costs; without one of the wanted ``accuracy``, too; and without one
    that has the wanted ``probability`` only those with the highest one count.
    """
    allowed = np.ones(len(found.energy), bool)
    if goal.probability is not None:
        highest = found.probability.max()
        allowed = found.probability >= min(goal.probability, highest)
    if goal.objective == "energy":
        assert goal.accuracy is not None, "check_goal asks for it"
        good = allowed & (found.accuracy >= goal.accuracy)
        if good.any():
            return _best(good, -found.energy, found.accuracy)
        return _best(allowed, found.accuracy, -found.energy)
    if goal.energy is not None:
        cheap = allowed & (found.energy <= goal.energy)
        allowed = cheap if cheap.any() else allowed
    return _best(allowed, found.accuracy, -found.energy)


def _best(allowed: NDArray[np.bool_], score: Array, tie: Array) -> int:
    """Index of the highest score among the allowed; of equal ones that with the higher ``tie``."""
    score = np.where(allowed, score, -np.inf)
    top = score.max()
    # what rounding parts is equal
    equal = score >= top - 1e-12 * abs(top)
    return int(np.where(equal, tie, -np.inf).argmax())


class Alert:
    """The scheduler: choose a configuration, run it, report how long it took.

        alert = Alert(profile)
        chosen = alert.choose(Goal(deadline=0.12, energy=2.4))
        ...                                             # run profile.configurations[chosen], at most until the deadline
        alert.observe(chosen, seconds)

    Args:
        profile: what is known of the configurations.
        slowdown: filter of the slow-down; None: one with the defaults.
        idle: filter of the idle power's share; None: one that starts at the profile's.
        uncertain: use the slow-down's deviation; False is ALERT*, which takes the mean for the truth.
        overhead: longest time in seconds that a decision takes: comes off each deadline.
        only: indices of the configurations that may be chosen; None: all.

    Raises:
        UserError: no configuration to choose from.
    """

    def __init__(
        self,
        profile: Profile,
        slowdown: Slowdown | None = None,
        idle: IdlePower | None = None,
        uncertain: bool = True,
        overhead: float = 0.0,
        only: Sequence[int] | None = None,
    ) -> None:
        self.profile = profile
        self.slowdown = slowdown or Slowdown()
        self.idle = idle or IdlePower(profile.idle)
        self.uncertain, self.overhead = uncertain, overhead
        self.indices = list(range(len(profile.configurations))) if only is None else list(only)
        if not self.indices:
            raise UserError("a scheduler needs at least one configuration to choose from.")
        self.table = Table([profile.configurations[i] for i in self.indices], profile.fail)

    @property
    def mean(self) -> float:
        """The slow-down that is expected."""
        return self.slowdown.mean

    @property
    def deviation(self) -> float:
        """Its standard deviation as far as it is used."""
        return self.slowdown.deviation if self.uncertain else 0.0

    def predict(self, goal: Goal) -> Prediction:
        """What is expected of each configuration that may be chosen."""
        deadline = max(0.0, goal.deadline - self.overhead)
        # a filter that has just seen the environment become quick may be below what a machine can do
        return predict(self.table, deadline, max(self.mean, 1e-3), self.deviation, self.idle.ratio)

    def choose(self, goal: Goal) -> int:
        """Index of the configuration to run next."""
        return self.indices[decide(self.predict(goal), goal)]

    def observe(self, chosen: int, seconds: float, answer: int | None = None, idle: float | None = None) -> None:
        """Learn from an inference.

        Args:
            chosen: the configuration that ran.
            seconds: how long it took, also beyond the deadline.
            answer: which of its answers, from 0, took so long (of one stopped at the deadline the last it gave); None: its last.
            idle: power measured afterwards as part of the configuration's; None: not measured.
        """
        latency = self.profile.configurations[chosen].latency
        self.slowdown.update(seconds / latency[-1 if answer is None else answer])
        if idle is not None:
            self.idle.update(idle)
