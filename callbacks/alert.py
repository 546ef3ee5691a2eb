"""ALERT in a run: after the test its network, and those of other runs, answer a stream of inputs under deadlines and budgets."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from callbacks.base import Callback, log_picture
from papermix.alert.baselines import SCHEDULERS, Choices
from papermix.alert.controller import Alert, Goal, check_goal
from papermix.alert.draw import draw
from papermix.alert.filters import IdlePower, Slowdown
from papermix.alert.interference import Interference
from papermix.alert.power import Rapl, StatedPower, cap_slowdown
from papermix.alert.profile import Profile, at_settings, read
from papermix.alert.simulator import Log, Phase, environment, phases_of, read_trace, simulate, stated_scores, write_trace
from papermix.alert.stream import Clock, Machine, Setting, all_exits, exits_of, longest_decision, serve
from papermix.errors import UserError, nearest
from papermix.metrics.count import flops
from papermix.metrics.exits import exit_flops

OWN = "network"  # the run's own network among those of other runs


class Stream(Callback):
    """What serving and simulating share: the goals, the schedulers, what is written of them.

    Publishes ``stream/accuracy``, ``late`` and ``over_budget`` (parts of the inputs), ``energy`` (joules per input) and
    ``latency`` (seconds) of the scheduler, and the same with ``_<name>`` behind for each baseline. Writes ``profile.json``,
    ``stream.csv`` and ``pictures/stream.png``.

    Args:
        scheduler: what is judged; see :class:`papermix.alert.baselines.Choices`.
        baselines: further schedulers that meet the same stream.
        objective: ``accuracy`` or ``energy``; see :class:`papermix.alert.controller.Goal`.
        deadline: of an input, as part of the time that the slowest network takes at the default setting; two numbers: drawn
            evenly between them for each input.
        energy: allowed for an input, as part of what the default setting draws up to the deadline; None: any.
        accuracy: wanted on the mean; None: any.
        probability: wanted of having an answer at the deadline; None: as the objective has it.
        inputs: length of the stream.
        group: inputs that share their deadlines.
        stops: networks with exits may be stopped on purpose, to save energy.
        runs: names of earlier stages, or folders of runs: networks that are served beside this run's, by these names.
        seed: of deadlines and environment.
        slowdown, idle: make the scheduler's filters.

    Raises:
        UserError: values that cannot be, unknown schedulers.
    """

    name = ""  # in the config

    def __init__(
        self,
        scheduler: str = "alert",
        baselines: Sequence[str] = (),
        objective: Literal["accuracy", "energy"] = "accuracy",
        deadline: float | Sequence[float] = 1.0,
        energy: float | None = None,
        accuracy: float | None = None,
        probability: float | None = None,
        inputs: int = 1000,
        group: int = 1,
        stops: bool = True,
        runs: Sequence[str] = (),
        seed: int = 0,
        slowdown: Callable[..., Slowdown] = Slowdown,
        idle: Callable[..., IdlePower] = IdlePower,
    ) -> None:
        for one in (scheduler, *baselines):
            if one not in SCHEDULERS:
                raise UserError(
                    f"callbacks.{self.name} has no scheduler {one!r}{nearest(one, SCHEDULERS)}: use one of {', '.join(SCHEDULERS)}."
                )
        bounds = [float(d) for d in (deadline if isinstance(deadline, Sequence) else [deadline, deadline])]
        if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
            raise UserError(f"callbacks.{self.name}.deadline={deadline} must be a number above 0, or two, the smaller one first.")
        for key, value in (("inputs", inputs), ("group", group)):
            if value < 1:
                raise UserError(f"callbacks.{self.name}.{key}={value} must be at least 1.")
        self.wanted = Goal(bounds[0], objective, energy, accuracy, probability)
        try:
            check_goal(self.wanted)
        except UserError as error:
            raise UserError(f"callbacks.{self.name}: {error}") from None
        slowdown(), idle()  # constants that cannot be are refused before the training
        self.schedulers = list(dict.fromkeys((scheduler, *baselines)))
        self.bounds, self.inputs, self.group, self.stops = (bounds[0], bounds[1]), inputs, group, stops
        # name -> network of another run; the machinery puts them here
        self.runs, self.networks, self.seed = list(runs), dict[str, nn.Module](), seed
        self.slowdown, self.idle = slowdown, idle

    # ---- goals and schedulers -----------------------------------------------------------------------------------------------

    def goals(self, profile: Profile, generator: np.random.Generator) -> Callable[[int], Goal]:
        """The goal of each input, in seconds and joules."""
        deadlines = (profile.longest * generator.uniform(*self.bounds, self.inputs)).tolist()
        part = None if self.wanted.energy is None else self.wanted.energy * profile.highest

        def goal(n: int) -> Goal:
            return self.wanted._replace(deadline=deadlines[n], energy=None if part is None else part * deadlines[n])

        return goal

    def choices(self, profile: Profile, overhead: float = 0.0) -> Choices:
        """The schedulers over a profile."""

        def make(profile: Profile, **options: Any) -> Alert:
            return Alert(profile, self.slowdown(), self.idle(profile.idle), overhead=overhead, **options)

        return Choices(profile, self.stops, make)

    def report(
        self, trainer: pl.Trainer, pl_module: Any, choices: Choices, logs: dict[str, Log], phase: Any, names: list[str]
    ) -> None:
        """Publish the numbers, write the trace, draw."""
        place = Path(trainer.default_root_dir)
        choices.known.save(place / "profile.json")
        write_trace(place / "stream.csv", logs, choices.profile, phase)
        numbers: dict[str, float] = {}
        for number, (name, log) in enumerate(logs.items()):
            numbers |= {f"stream/{key}{f'_{name}' if number else ''}": value for key, value in log.summary().items()}
        pl_module.publish(numbers)
        picture = place / "pictures" / "stream.png"
        draw(logs, phase, names, picture)
        log_picture(trainer, "stream", picture)

    # ---- the run's networks -------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse data without labels."""
        if getattr(pl_module.task, "target", None) != "label":
            raise UserError(
                f"callbacks={self.name} judges answers by their class: choose a dataset with labels, such as dataset=digits."
            )

    def all_networks(self, pl_module: Any) -> dict[str, nn.Module]:
        """This run's network and those of other runs, on its device, in evaluation mode."""
        found = {OWN: pl_module.model, **{Path(source).name: model for source, model in self.networks.items()}}
        if len(found) <= len(self.networks):
            raise UserError(
                f"callbacks.{self.name}.runs={self.runs}: the last parts of these names must differ, and none be {OWN!r}."
            )
        return {name: model.to(pl_module.device).eval() for name, model in found.items()}

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Answer the stream, in the first process."""
        if not trainer.is_global_zero:
            return
        training = pl_module.model.training
        try:
            self.stream(trainer, pl_module)
        finally:
            pl_module.model.train(training)

    def stream(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Answer the stream and report."""
        raise NotImplementedError


def examples(
    loader: Iterable[dict[str, Tensor]], input_name: str, device: torch.device, count: int, what: str
) -> tuple[Tensor, Tensor]:
    """The first ``count`` inputs and labels of a loader, fewer when it has no more. Raises UserError when it has none."""
    inputs, labels, have = [], [], 0
    for batch in loader:
        inputs.append(batch[input_name].to(device))
        labels.append(batch["label"].to(device))
        have += len(labels[-1])
        if have >= count:
            break
    if not have:
        raise UserError(f"a stream needs {what} examples, and there are none: see dataset.val_fraction and dataset.limit.")
    return torch.cat(inputs)[:count], torch.cat(labels)[:count]


def operations(model: nn.Module, x: Tensor) -> list[int]:
    """Operations of one input up to each exit."""
    if exits_of(model) > 1:
        return exit_flops(model, x)
    with torch.inference_mode(False):  # in which a parametrized weight cannot be counted
        return [flops(model, x[:1].clone())]


@torch.inference_mode()
def right(model: nn.Module, inputs: Tensor, labels: Tensor, trainer: pl.Trainer, batch: int = 256) -> np.ndarray:
    """Whether each input's class is found at each exit, [N, exits] of 0 and 1."""
    parts = []
    with trainer.precision_plugin.forward_context():
        for x, y in zip(inputs.split(batch), labels.split(batch)):
            parts.append(torch.stack([output.argmax(-1) == y for output in all_exits(model, x)], 1).float().cpu())
    return torch.cat(parts).numpy().astype(float)


class AlertSimulation(Stream):
    """A stream on a simulated machine: stated settings, stated or counted latencies, a drawn environment or a recorded one.

    Args:
        stated: name -> {latency: [seconds, ...], accuracy: [...]}, of each exit at full power; these networks are simulated
            instead of the run's. None: those of the run, with the operations of each exit at ``flops_per_second`` for latency, the
            accuracies of the validation split, and what each exit says of each test input.
        profile: the ``profile.json`` of another run, which is simulated instead of both, with its settings.
        flops_per_second: speed of the machine at full power.
        settings: {power: watts, slowdown: factor on all latencies} each; without a factor that of
            :func:`papermix.alert.power.cap_slowdown` against the setting of most power, which is the default setting.
        phases: {inputs, slowdown, jitter} each, over and over; see :class:`papermix.alert.simulator.Phase`.
        trace: the ``stream.csv`` of another run, whose slow-downs are met instead, as often as needed.
        fail: accuracy of an answer that is not ready; None: one over the number of classes.
        idle_power: power between inputs as part of that while computing.
        calibration: validation examples that accuracies are measured on.
        others: see :class:`Stream`.

    Raises:
        UserError: values that cannot be.
    """

    name = "alert_simulation"

    def __init__(
        self,
        settings: Sequence[dict[str, float | None]],
        phases: Sequence[dict[str, float]],
        stated: dict[str, dict[str, list[float]]] | None = None,
        profile: str | None = None,
        flops_per_second: float = 1e9,
        trace: str | None = None,
        fail: float | None = None,
        idle_power: float = 0.25,
        calibration: int = 1000,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        where = f"callbacks.{self.name}"
        if not flops_per_second > 0 or calibration < 1:
            raise UserError(f"{where}: flops_per_second={flops_per_second} and calibration={calibration} must be above 0.")
        given = [read(_Stated, row, f"{where}.settings[{i}]") for i, row in enumerate(settings)]
        if not given:
            raise UserError(f"{where}.settings is empty: give at least one, such as {{power: 40}}.")
        full = max(s.power for s in given)
        factors = [cap_slowdown(s.power, full) if s.slowdown is None else s.slowdown for s in given]
        if not min(factors) > 0:
            raise UserError(f"{where}.settings: a slowdown must be above 0, not {min(factors)}.")
        self.settings = [(f"{s.power:g} W", float(s.power), factor) for s, factor in zip(given, factors)]
        if len({name for name, _, _ in self.settings}) < len(given):
            raise UserError(f"{where}.settings has a power twice: give each once.")
        self.default = f"{full:g} W"
        self.phases = [read(Phase, row, f"{where}.phases[{i}]") for i, row in enumerate(phases)]
        if not self.phases:
            raise UserError(f"{where}.phases is empty: give at least one, such as {{inputs: 100}}.")
        self.stated = {name: read(_Network, row, f"{where}.stated.{name}") for name, row in (stated or {}).items()}
        self.flops_per_second, self.trace, self.fail = flops_per_second, trace, fail
        self.idle_power, self.calibration = idle_power, calibration
        self.known: Profile | None = None
        if profile is not None:
            self.known = Profile.load(profile)
        elif self.stated:
            self.at_settings({n: (s.latency, s.accuracy) for n, s in self.stated.items()}, 2)  # what cannot be is refused at once

    def at_settings(self, networks: Mapping[str, tuple[Sequence[float], Sequence[float]]], classes: int) -> Profile:
        """The profile of networks with latencies and accuracies of their exits at full power."""
        fail = 1 / classes if self.fail is None else self.fail
        return Profile(at_settings(networks, self.settings), fail, self.default, self.idle_power)

    def stream(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Simulate."""
        generator = np.random.default_rng(self.seed)
        classes = pl_module.task.num_classes
        if self.known is not None or self.stated:
            stated = {n: (s.latency, s.accuracy) for n, s in self.stated.items()}
            choices = self.choices(self.known or self.at_settings(stated, classes))
            scores = stated_scores(choices.profile, self.inputs)
        else:
            known, scores = self._measured(trainer, pl_module)
            choices = self.choices(self.at_settings(known, classes))
        goal = self.goals(choices.profile, generator)
        met = environment(self.phases, self.inputs, generator) if self.trace is None else read_trace(self.trace)
        slowdown, phase = np.resize(met.slowdown, self.inputs), np.resize(met.phase, self.inputs)
        replay = partial(simulate, profile=choices.profile, slowdown=slowdown, scores=scores, goal=goal, group=self.group)
        logs = {name: replay(choices.scheduler(name, replay, goal(0))) for name in self.schedulers}
        names = [f"slow-down {p.slowdown:g}" for p in self.phases] if self.trace is None else ["trace"] * (int(phase.max()) + 1)
        self.report(trainer, pl_module, choices, logs, phase, names)

    def _measured(self, trainer: pl.Trainer, pl_module: Any) -> tuple[dict[str, tuple[list[float], list[float]]], dict[str, Any]]:
        """Latencies and accuracies of the run's networks, and what their exits say of the test inputs."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        networks, name = self.all_networks(pl_module), pl_module.task.input
        x, y = examples(data.val_dataloader(), name, pl_module.device, self.calibration, "validation")
        tested = examples(data.test_dataloader(), name, pl_module.device, self.inputs, "test")
        known, scores = {}, {}
        for network, model in networks.items():
            work = operations(model, x)
            known[network] = ([n / self.flops_per_second for n in work], right(model, x, y, trainer).mean(0).tolist())
            scores[network] = np.resize(right(model, *tested, trainer), (self.inputs, len(work)))
        return known, scores


@dataclass(frozen=True)
class _Stated:
    """A setting as it is stated."""

    power: float
    slowdown: Any = None


@dataclass(frozen=True)
class _Network:
    """A network as it is stated."""

    latency: list[float]
    accuracy: list[float]


class AlertServing(Stream):
    """A stream of real inferences on this machine, under real interference.

    The networks are profiled in quiet; then each scheduler serves the stream while processes of interference come and go.
    Oracles are not served: what ALERT met is replayed for them.

    Args:
        threads: settings: threads of each, the last one the default setting.
        caps: watts to which RAPL is to limit the processor, each with each number of threads; None: not limited.
        phases: {inputs, load} each, over and over: how many processes of interference work.
        load: what these do, ``compute`` or ``memory``.
        batch: inputs that come together as one.
        repeats: measurements of each configuration in the profile.
        idle_watts, thread_watts: the power that is assumed where RAPL cannot be read.
        calibration: validation examples that accuracies are measured on.
        others: see :class:`Stream`.

    Raises:
        UserError: values that cannot be; power caps on a machine without.
    """

    name = "alert"

    def __init__(
        self,
        threads: Sequence[int],
        phases: Sequence[dict[str, int]],
        caps: Sequence[float] | None = None,
        load: Literal["compute", "memory"] = "compute",
        batch: int = 1,
        repeats: int = 30,
        idle_watts: float = 5.0,
        thread_watts: float = 10.0,
        calibration: int = 1000,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        where = f"callbacks.{self.name}"
        for key, value in (
            ("batch", batch),
            ("repeats", repeats),
            ("calibration", calibration),
            *(("threads", t) for t in threads),
        ):
            if value < 1:
                raise UserError(f"{where}.{key}={value} must be at least 1.")
        if not threads or len(set(threads)) < len(threads):
            raise UserError(f"{where}.threads={list(threads)} must be different numbers, at least one.")
        self.phases = [read(_Load, row, f"{where}.phases[{i}]") for i, row in enumerate(phases)]
        if not self.phases or any(p.inputs < 1 or p.load < 0 for p in self.phases):
            raise UserError(f"{where}.phases must be at least one, each of at least one input and a load of at least 0.")
        self.rapl, self.power = Rapl.find(), StatedPower(idle_watts, thread_watts)
        limits: list[float | None] = [*caps] if caps else [None]
        self.settings = [
            Setting(f"{t} thread{'s' * (t > 1)}" + ("" if cap is None else f" {cap:g} W"), t, cap)
            for cap in limits
            for t in threads
        ]
        if caps and self.rapl is None:
            raise UserError(
                f"{where}.caps={list(caps)}: this machine's RAPL cannot be read; leave them out, or simulate them with "
                "callbacks=[default,alert_simulation]."
            )
        self.load, self.batch, self.repeats, self.calibration = load, batch, repeats, calibration
        self.clock = Clock()

    def stream(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Profile, then serve with each scheduler."""
        threads = torch.get_num_threads()
        try:
            self._stream(trainer, pl_module)
        finally:
            torch.set_num_threads(threads)

    def _stream(self, trainer: pl.Trainer, pl_module: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        networks, name = self.all_networks(pl_module), pl_module.task.input
        precision = trainer.precision_plugin.forward_context
        machine = Machine(networks, self.settings, self.power, self.rapl, self.clock, precision)
        x, y = examples(data.val_dataloader(), name, pl_module.device, self.calibration, "validation")
        accuracy = {n: right(m, x, y, trainer).mean(0).tolist() for n, m in networks.items()}
        x, y = examples(data.test_dataloader(), name, pl_module.device, self.inputs * self.batch, "test")
        # a request has its inputs at hand, as a camera's would be
        rows = [torch.arange(n * self.batch, (n + 1) * self.batch, device=x.device) % len(x) for n in range(self.inputs)]
        requests = [(x[r], y[r]) for r in rows]
        generator = np.random.default_rng(self.seed)
        phase = phases_of([p.inputs for p in self.phases], self.inputs)
        with machine.caps_kept(), Interference(max(p.load for p in self.phases), self.load) as interference:
            profile = machine.profile([one for one, _ in requests[:50]], accuracy, 1 / pl_module.task.num_classes, self.repeats)
            goal = self.goals(profile, generator)
            trial = self.choices(profile).scheduler("alert")
            overhead = longest_decision(trial, goal(0), self.clock)
            choices = self.choices(profile, overhead)

            def begin(n: int) -> None:
                interference.work(self.phases[phase[n]].load)

            logs: dict[str, Log] = {}
            for scheduler in dict.fromkeys(["alert", *self.schedulers]):
                if not scheduler.startswith("oracle"):
                    logs[scheduler] = serve(
                        choices.scheduler(scheduler), machine, choices.profile, requests, goal, begin, self.group
                    )
                    interference.work(0)
        scores = {n: right(m, x, y, trainer) for n, m in networks.items()}
        scores = {n: np.stack([s[r.cpu().numpy()].mean(0) for r in rows]) for n, s in scores.items()}

        def replay(scheduler: Any) -> Log:
            met = logs["alert"].slowdown
            watts = None if self.rapl else self.power.idle
            return simulate(scheduler, choices.profile, met, scores, goal, watts, self.group)

        for scheduler in self.schedulers:
            if scheduler.startswith("oracle"):
                logs[scheduler] = replay(choices.scheduler(scheduler, replay, goal(0)))
        pl_module.publish({"stream/decision_seconds": overhead, "stream/deadline": self.bounds[0] * profile.longest})
        names = [f"{p.load} other processes" if p.load else "quiet" for p in self.phases]
        self.report(trainer, pl_module, choices, {s: logs[s] for s in self.schedulers}, phase, names)


@dataclass(frozen=True)
class _Load:
    """A phase of interference."""

    inputs: int
    load: int = 0
