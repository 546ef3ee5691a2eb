"""A stream of inputs under a trace of slow-downs: every scheduler meets the same, also on settings a machine lacks."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from papermix.alert.controller import Goal
from papermix.alert.profile import Configuration, Profile
from papermix.errors import UserError

Array = NDArray[Any]


@dataclass(frozen=True)
class Phase:
    """Part of an environment.

    Attributes:
        inputs: how many of the stream.
        slowdown: median factor on all latencies.
        jitter: standard deviation of the factor's logarithm.
    """

    inputs: int
    slowdown: float = 1.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.inputs < 1 or not self.slowdown > 0 or not self.jitter >= 0:
            raise UserError(f"a phase of inputs={self.inputs}, slowdown={self.slowdown}, jitter={self.jitter} cannot be.")


class Environment(NamedTuple):
    """Of each input the slow-down that it meets [N], and the number of its phase [N]."""

    slowdown: Array
    phase: Array


def phases_of(lengths: Sequence[int], inputs: int) -> Array:
    """Number of the phase of each input [N]; phases of these lengths come over and over."""
    once = np.repeat(np.arange(len(lengths)), lengths)
    return np.resize(once, inputs)


def environment(phases: Sequence[Phase], inputs: int, generator: np.random.Generator) -> Environment:
    """Draw an environment: log-normal slow-downs, the phases over and over."""
    if not phases:
        raise UserError("an environment needs at least one phase.")
    number = phases_of([p.inputs for p in phases], inputs)
    median = np.array([p.slowdown for p in phases])[number]
    spread = np.array([p.jitter for p in phases])[number]
    return Environment(median * np.exp(spread * generator.standard_normal(inputs)), number)


@dataclass
class Log:
    """What happened to each input of a stream.

    Attributes:
        chosen: configuration that ran (index).
        answer: which of its answers counted, from 0; -1: none was ready.
        deadline: seconds in which an answer was due.
        latency: seconds to the answer that counted, or to the first one, which came too late.
        score: accuracy credited: of the input itself (0 or 1) or of the exit; a random guess's where no answer was ready.
        energy: joules up to the next input.
        budget: joules that were allowed (infinite: any).
        mean, deviation: the slow-down that the scheduler expected; NaN of one that expects nothing.
        slowdown: the one that it met.
    """

    chosen: list[int] = field(default_factory=list)
    answer: list[int] = field(default_factory=list)
    deadline: list[float] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    energy: list[float] = field(default_factory=list)
    budget: list[float] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    deviation: list[float] = field(default_factory=list)
    slowdown: list[float] = field(default_factory=list)

    def add(self, **values: float) -> None:
        """Add an input."""
        for name, value in values.items():
            getattr(self, name).append(value)

    def summary(self) -> dict[str, float]:
        """Means: ``accuracy``, ``late`` and ``over_budget`` (parts of the inputs), ``energy`` (joules), ``latency`` (seconds)."""
        # a millionth over the budget is rounding
        over = np.array(self.energy) > np.array(self.budget) * (1 + 1e-6)
        return {
            "accuracy": float(np.mean(self.score)),
            "late": float(np.mean(np.array(self.answer) < 0)),
            "over_budget": float(over.mean()),
            "energy": float(np.mean(self.energy)),
            "latency": float(np.mean(self.latency)),
        }


class Pace:
    """Deadlines of inputs in groups: those of a group share the time of all of them, which the quick ones leave to the slow.

    Args:
        deadlines: seconds for each input [N]; a group has that of its first input, times its size.
        group: inputs in a group; 1: each has its own.
    """

    def __init__(self, deadlines: Sequence[float], group: int = 1):
        if group < 1:
            raise UserError(f"group={group} must be at least 1.")
        self.deadlines, self.group = deadlines, group
        self._left = 0.0

    def share(self, number: int) -> tuple[float, float]:
        """(seconds that input ``number`` should take, seconds until its group's deadline)."""
        place = number % self.group
        if place == 0:
            self._left = self.deadlines[number] * min(self.group, len(self.deadlines) - number)
        inputs = min(self.group - place, len(self.deadlines) - number)
        return self._left / inputs, self._left

    def spent(self, seconds: float) -> None:
        """An input took so long."""
        self._left = max(0.0, self._left - seconds)


class Run(NamedTuple):
    """How a configuration fares.

    Attributes:
        busy: seconds that it computes.
        answer: which of its answers is ready in time, from 0; -1: none.
        latency: seconds to that answer, or to the first.
        seen: which of its answers' times is known.
        seconds: that time.
    """

    busy: float
    answer: int
    latency: float
    seen: int
    seconds: float


def run(one: Configuration, slowdown: float, deadline: float) -> Run:
    """Run a configuration under a slow-down.

    A traditional network runs to its end, however late; an anytime one is stopped at the deadline, or with its first answer when
    that comes later.
    """
    times = [slowdown * t for t in one.latency]
    done = sum(t <= deadline for t in times)
    busy = times[0] if done == 0 else times[-1] if done == len(times) else deadline
    seen = max(0, done - 1)
    return Run(busy, done - 1, times[seen], seen, times[seen])


Scores = Mapping[str, Array]


def stated_scores(profile: Profile, inputs: int) -> dict[str, Array]:
    """Each network's accuracies [N, exits] where nothing is known of single inputs."""
    found: dict[str, Array] = {}
    for one in profile.configurations:
        most = max(max(c.exits) for c in profile.configurations if c.network == one.network)
        table = found.setdefault(one.network, np.full((inputs, most), np.nan))
        for exit, accuracy in zip(one.exits, one.accuracy):
            table[:, exit - 1] = accuracy
    return found


def simulate(
    scheduler: Any,
    profile: Profile,
    slowdown: Sequence[float] | Array,
    scores: Scores,
    goal: Callable[[int], Goal],
    idle_watts: float | None = None,
    group: int = 1,
) -> Log:
    """Serve a stream with a scheduler; see :class:`papermix.alert.controller.Alert` for what one has to have.

    A scheduler with ``foresee(slowdown, idle_watts)`` is told what the next input will meet: an oracle.

    Args:
        slowdown: of each input [N].
        scores: network -> score of each input at each exit [N, exits].
        goal: of input n; its deadline is also the time until the next input.
        idle_watts: drawn between inputs; None: the profile's part of what the configuration draws.
        group: inputs that share their deadlines.
    """
    goals = [goal(n) for n in range(len(slowdown))]
    pace, log = Pace([g.deadline for g in goals], group), Log()
    for n, xi in enumerate(np.asarray(slowdown).tolist()):
        share, limit = pace.share(n)
        wanted = goals[n]._replace(deadline=share)
        if hasattr(scheduler, "foresee"):
            scheduler.foresee(xi, idle_watts)
        mean, deviation = scheduler.mean, scheduler.deviation
        chosen = scheduler.choose(wanted)
        one = profile.configurations[chosen]
        idle = profile.idle if idle_watts is None else idle_watts / one.power
        # within a group an anytime network keeps to its share, a late one may use what the group has left
        done = run(one, xi, share)
        late = done.answer < 0 and done.latency > limit
        answer = -1 if late else max(0, done.answer)
        energy = one.power * (done.busy + idle * max(0.0, share - done.busy))
        score = profile.fail if answer < 0 else float(scores[one.network][n, one.exits[answer] - 1])
        pace.spent(done.busy)
        scheduler.observe(chosen, done.seconds, done.seen, idle)
        log.add(
            chosen=chosen, answer=answer, deadline=limit, latency=done.latency, score=score, energy=energy,
            budget=float("inf") if wanted.energy is None else wanted.energy, mean=mean, deviation=deviation, slowdown=xi,
        )  # fmt: skip
    return log


def write_trace(path: str | Path, logs: Mapping[str, Log], profile: Profile, phase: Iterable[int]) -> None:
    """Write a line of CSV for each input and scheduler: a trace that :func:`read_trace` takes up."""
    number = list(phase)
    with open(path, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        names = ("deadline", "latency", "score", "energy", "mean", "deviation", "slowdown")
        out.writerow(["scheduler", "input", "phase", "network", "setting", "exit", *names])
        for scheduler, log in logs.items():
            for n, chosen in enumerate(log.chosen):
                one, answer = profile.configurations[chosen], log.answer[n]
                exit = one.exits[answer] if answer >= 0 else 0
                numbers = [f"{getattr(log, name)[n]:.9g}" for name in names]
                out.writerow([scheduler, n, number[n], one.network, one.setting, exit, *numbers])


def read_trace(path: str | Path, scheduler: str | None = None) -> Environment:
    """The slow-downs that a scheduler met (None: the first of the file), and their phases.

    Raises:
        UserError: one sentence that names the file and the line.
    """
    slowdown, phase, line = [], [], 1
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                line += 1
                if scheduler is None:
                    scheduler = row["scheduler"]
                if row["scheduler"] == scheduler:
                    slowdown.append(float(row["slowdown"]))
                    phase.append(int(row["phase"]))
                    if not 0 < slowdown[-1] < float("inf"):
                        raise ValueError(f"a slowdown of {slowdown[-1]}")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name the stream.csv of a run.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}, line {line}: {error} is not what a trace has there (scheduler, phase, slowdown).") from None
    if not slowdown:
        raise UserError(f"{path} has no line of scheduler {scheduler}: name one that is in it.")
    return Environment(np.array(slowdown), np.array(phase))
