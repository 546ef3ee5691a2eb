"""Real inference of networks as a stream under deadlines: profiled in quiet, served by a scheduler, stopped between exits."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from papermix.alert.controller import Goal
from papermix.alert.power import Rapl, StatedPower
from papermix.alert.profile import Profile, configuration
from papermix.alert.simulator import Log, Pace
from papermix.errors import UserError


class Clock:
    """Time in seconds, and waiting; a test brings its own."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Wait, without using the processor."""
        if seconds > 0:
            time.sleep(seconds)


@dataclass(frozen=True)
class Setting:
    """A machine's setting.

    Attributes:
        name: for people.
        threads: of torch's work on the CPU.
        cap: watts to which RAPL limits the processor; None: as it is.
    """

    name: str
    threads: int
    cap: float | None = None


def check_settings(settings: Sequence[Setting], rapl: Rapl | None) -> None:
    """Raise UserError for settings that the machine does not have."""
    if not settings or any(s.threads < 1 for s in settings):
        raise UserError("give at least one setting, each of at least one thread.")
    if rapl is None and any(s.cap is not None for s in settings):
        raise UserError(
            "this machine's RAPL cannot be read, so there is no power cap to set: leave caps out, or simulate them with "
            "callbacks=[default,alert_simulation]."
        )


def exits_of(model: Any) -> int:
    """Exits of a network that is computed one after the other; 1 for any other network."""
    return int(model.num_exits) if hasattr(model, "step") and hasattr(model, "num_exits") else 1


def all_exits(model: Any, x: Tensor) -> list[Tensor]:
    """Outputs of all exits; of an ordinary network its output."""
    return model.forward_exits(x) if exits_of(model) > 1 else [model(x)]


class Answer(NamedTuple):
    """An exit's output.

    Attributes:
        exit: its number, from 1.
        seconds: from the start of the inference to its end.
        output: what the network gave.
    """

    exit: int
    seconds: float
    output: Tensor


class Machine:
    """Networks in evaluation mode on this machine, its settings, its clock, and what tells its power.

    Args:
        networks: name -> network; one with ``start``, ``step`` and ``num_exits``
            (:class:`papermix.models.nested.base.ExitModel`) is computed exit by exit.
        settings: to choose from; the last one is the default.
        power: where RAPL cannot be read, the power that is assumed.
        rapl: its counters; None: the power is assumed.
        clock: time and waiting.
        precision: makes the context in which networks are computed.

    Raises:
        UserError: a setting that the machine does not have.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        settings: Sequence[Setting],
        power: StatedPower,
        rapl: Rapl | None = None,
        clock: Clock | None = None,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):
        check_settings(settings, rapl)
        self.networks: dict[str, Any] = {name: model.eval() for name, model in networks.items()}
        self.settings = {s.name: s for s in settings}
        self.default = settings[-1].name
        self.power, self.rapl, self.clock, self.precision = power, rapl, clock or Clock(), precision
        self._cap: float | None = None

    def use(self, setting: str) -> None:
        """Bring the machine to a setting."""
        wanted = self.settings[setting]
        if torch.get_num_threads() != wanted.threads:
            torch.set_num_threads(wanted.threads)
        if wanted.cap is not None and wanted.cap != self._cap:
            assert self.rapl is not None
            self.rapl.cap(wanted.cap)
            self._cap = wanted.cap

    def caps_kept(self) -> AbstractContextManager[None]:
        """A context at whose end the power limits are as they were."""
        capped = self.rapl is not None and any(s.cap is not None for s in self.settings.values())
        return self.rapl.kept() if self.rapl is not None and capped else nullcontext()

    def infer(
        self, network: str, x: Tensor, exits: Sequence[int], until: float = float("inf"), latency: Sequence[float] = ()
    ) -> list[Answer]:
        """Compute a network up to the last of ``exits``; stop before one that would not be ready in time.

        An exit cannot be stopped in its midst, so it is begun only when it should end by ``until`` if the machine stays as slow
        as it has been for the exits before.

        Args:
            x: a batch of the network's inputs.
            exits: numbers, from 1, of the exits whose outputs are wanted, rising.
            until: time of the clock; the first of ``exits`` is computed anyway.
            latency: seconds to each of them in quiet; without it they are begun until the time is over.

        Returns:
            The exits computed, at least one.
        """
        model, clock = self.networks[network], self.clock
        began = clock.now()
        with torch.inference_mode(), self.precision():
            if exits_of(model) == 1:
                output = model(x)
                _wait(output)
                return [Answer(1, clock.now() - began, output)]
            answers: list[Answer] = []
            state = model.start(x)
            while state.done < exits[-1]:
                output, state = model.step(state)
                if state.done in exits:
                    _wait(output)
                    now, done = clock.now(), len(answers)
                    answers.append(Answer(state.done, now - began, output))
                    slowdown = (now - began) / latency[done] if latency else 1.0
                    further = slowdown * (latency[done + 1] - latency[done]) if latency and state.done < exits[-1] else 0.0
                    if now + further >= until:
                        break
        return answers

    def profile(
        self, examples: Sequence[Tensor], accuracy: Mapping[str, Sequence[float]], fail: float, repeats: int = 20, warmup: int = 5
    ) -> Profile:
        """Measure all networks at all settings, in turn, so that a disturbance meets all of them alike.

        Args:
            examples: inputs as they will be served; taken in turn.
            accuracy: of each network's exits.
            fail: of an answer that is not ready.
            repeats: inferences that are measured for each, after ``warmup`` ones that are not.
        """
        seconds: dict[tuple[str, str], list[float]] = {}
        joules: dict[tuple[str, str], float] = {}
        for round_ in range(warmup + repeats):
            x = examples[round_ % len(examples)]
            for setting in self.settings:
                self.use(setting)
                for name, model in self.networks.items():
                    self.read_energy()
                    answers = self.infer(name, x, range(1, exits_of(model) + 1))
                    used = self.read_energy()
                    if round_ >= warmup:
                        sums = seconds.setdefault((name, setting), [0.0] * len(answers))
                        seconds[name, setting] = [a + b.seconds for a, b in zip(sums, answers)]
                        joules[name, setting] = joules.get((name, setting), 0.0) + (used or 0.0)
        rows = []
        for (name, setting), sums in seconds.items():
            power = self.power.busy(self.settings[setting].threads)
            if self.rapl is not None:
                power = joules[name, setting] / sums[-1]
            rows.append(configuration(name, setting, [s / repeats for s in sums], accuracy[name], power))
        idle = self.power.idle
        if self.rapl is not None:
            self.read_energy()
            began = self.clock.now()
            self.clock.sleep(0.2)
            idle = (self.read_energy() or 0.0) / (self.clock.now() - began)
        busiest = max(r.power for r in rows if r.setting == self.default)
        return Profile(tuple(rows), fail, self.default, idle / busiest)

    def read_energy(self) -> float | None:
        """Joules since the last call, where they are measured."""
        return None if self.rapl is None else self.rapl.joules()


def _wait(output: Tensor) -> None:
    """A GPU's answer is there when it has been computed."""
    if output.is_cuda:
        torch.cuda.synchronize(output.device)


def serve(
    scheduler: Any,
    machine: Machine,
    profile: Profile,
    requests: Sequence[tuple[Tensor, Tensor]],
    goal: Callable[[int], Goal],
    begin: Callable[[int], None],
    group: int = 1,
) -> Log:
    """Serve a stream of requests; the next one comes when the time of the one before is over, or late, when its answer was.

    An answer counts when it is there at the deadline; the choice itself is part of the time. Networks are stopped between exits.

    Args:
        scheduler: see :class:`papermix.alert.controller.Alert`.
        requests: (inputs [G, ...], labels [G]) each.
        goal: of request n; its deadline is also the time until the next one.
        begin: called before request n: switches the environment.
        group: requests that share their deadlines.
    """
    goals = [goal(n) for n in range(len(requests))]
    pace, log, clock = Pace([g.deadline for g in goals], group), Log(), machine.clock
    for n, (x, labels) in enumerate(requests):
        begin(n)
        share, limit = pace.share(n)
        wanted = goals[n]._replace(deadline=share)
        machine.read_energy()
        began = clock.now()
        mean, deviation = scheduler.mean, scheduler.deviation
        chosen = scheduler.choose(wanted)
        one = profile.configurations[chosen]
        machine.use(one.setting)
        before = clock.now() - began
        answers = machine.infer(one.network, x, one.exits, began + share, one.latency)
        done = sum(before + a.seconds <= limit for a in answers)
        at = max(0, done - 1)
        busy = clock.now() - began
        measured = machine.read_energy()
        waited = max(0.0, share - busy)
        clock.sleep(waited)
        rest = machine.read_energy()
        idle_watts = machine.power.idle if rest is None else rest / waited if waited > 1e-3 else None
        if measured is None:
            measured, rest = one.power * busy, machine.power.idle * waited
        pace.spent(busy)
        # the slow-down is that of the inference alone, also of one that came too late
        seconds = answers[-1].seconds
        seen = len(answers) - 1
        scheduler.observe(chosen, seconds, seen, None if idle_watts is None else idle_watts / one.power)
        right = (answers[at].output.argmax(-1) == labels).float().mean().item() if done else profile.fail
        log.add(
            chosen=chosen, answer=done - 1, deadline=limit, latency=before + answers[at].seconds, score=right,
            energy=measured + (rest or 0.0), budget=float("inf") if wanted.energy is None else wanted.energy,
            mean=mean, deviation=deviation, slowdown=seconds / one.latency[seen],
        )  # fmt: skip
    return log


def longest_decision(scheduler: Any, goal: Goal, clock: Clock, tries: int = 50) -> float:
    """The longest of some decisions in seconds: what comes off each deadline."""
    longest = 0.0
    for _ in range(tries):
        began = clock.now()
        scheduler.choose(goal)
        longest = max(longest, clock.now() - began)
    return longest
