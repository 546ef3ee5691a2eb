"""Fair timing of alternatives: interleaved in one process, warmed up, repeated, every value shown, ratios within one run."""

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from papermix.errors import UserError
from papermix.run.machine import cores, cpu_model, git_state
from papermix.run.reporting.blocks import put

Clock = Callable[[], float]


@dataclass(frozen=True)
class Options:
    """What the command line says to every benchmark.

    Args:
        repetitions: rounds that count, after one that does not.
        smoke: the tiniest sizes that still run everything; its numbers mean nothing.
        train: also train where a benchmark has a bound on quality (minutes).
        threads: torch's threads; None: what the benchmark chooses.
        device: ``cpu``, ``gpu`` or ``auto``, for benchmarks that train.
    """

    repetitions: int = 7
    smoke: bool = False
    train: bool = False
    threads: int | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Timing:
    """Wall and CPU seconds (all threads of the process) of ``count`` units of work."""

    wall: float
    cpu: float
    count: int = 1

    @property
    def each(self) -> float:
        """Wall seconds of one unit."""
        return self.wall / self.count

    @property
    def cpu_each(self) -> float:
        """CPU seconds of one unit."""
        return self.cpu / self.count


Timings = dict[str, list[Timing]]


@dataclass(frozen=True)
class Check:
    """A ratio (or another number that does not depend on the machine's speed) in every round, its median, and its bound."""

    what: str
    values: list[float]
    bound: float | None = None
    sense: str = ">="
    cpu_values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return median(self.values)

    @property
    def reached(self) -> bool | None:
        """Whether the median keeps the bound; None where there is none."""
        if self.bound is None:
            return None
        return self.median >= self.bound if self.sense == ">=" else self.median <= self.bound

    def text(self) -> str:
        """All values, the median, the bound and the verdict."""
        line = f"{self.what}: {' '.join(f'{v:.3f}' for v in self.values)}   median {self.median:.3f}"
        if self.cpu_values:
            line += f", by CPU time {median(self.cpu_values):.3f}"
        if self.bound is not None:
            line += f", wanted {self.sense} {self.bound:g}: {'reached' if self.reached else 'NOT reached'}"
        return line


@dataclass
class Report:
    """What a benchmark found.

    Args:
        name: of the benchmark.
        unit: what is counted: ``step``, ``image``, ``token``, ``start``.
        timings: section -> arm -> one timing for each round.
        checks: ratios and their bounds.
        notes: sizes and settings that a reader must know.
    """

    name: str
    unit: str
    timings: dict[str, Timings] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Everything, with the medians and verdicts."""
        checks = [asdict(c) | {"median": c.median, "reached": c.reached} for c in self.checks]
        return asdict(self) | {"checks": checks}


def interleave(arms: Mapping[str, Callable[[], Timing]], repetitions: int, warmup: int = 1) -> Timings:
    """Run the arms A B A B ...; the first ``warmup`` rounds do not count. Raises UserError without a repetition."""
    if repetitions < 1:
        raise UserError(f"--repetitions={repetitions} must be at least 1.")
    timings: Timings = {name: [] for name in arms}
    for number in range(-warmup, repetitions):
        for name, arm in arms.items():
            timing = arm()
            if number >= 0:
                timings[name].append(timing)
    return timings


def timed(work: Callable[[], int], clock: Clock = time.perf_counter, cpu: Clock = time.process_time) -> Timing:
    """Time a piece of work that returns how many units it did."""
    wall0, cpu0 = clock(), cpu()
    count = work()
    return Timing(clock() - wall0, cpu() - cpu0, count)


class Window:
    """Times the middle of a loop: from the moment batch ``skip`` is asked for until batch ``skip + count`` is.

    Set-up, warm-up, and what comes after the loop are thus left out, the loader's own work is not.

    Args:
        skip: batches before the clock starts.
        count: batches that are timed; the loop must have at least one more than ``skip + count``.
        settle: called before the clock is read, such as ``torch.cuda.synchronize``.
    """

    def __init__(
        self,
        skip: int,
        count: int,
        settle: Callable[[], Any] = lambda: None,
        clock: Clock = time.perf_counter,
        cpu: Clock = time.process_time,
    ):
        self.skip, self.count = skip, count
        self._settle, self._clock, self._cpu = settle, clock, cpu
        self._marks: list[tuple[float, float]] = []

    def watch(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches of one pass."""
        self._marks = []
        if self.skip == 0:
            self._mark()
        for number, batch in enumerate(batches, 1):
            yield batch
            if number in (self.skip, self.skip + self.count):
                self._mark()

    def _mark(self) -> None:
        self._settle()
        self._marks.append((self._clock(), self._cpu()))

    def timing(self) -> Timing:
        """What was timed. Raises UserError when the loop was too short."""
        if len(self._marks) != 2:
            raise UserError(
                f"the loop ended before batch {self.skip + self.count + 1}, so its speed is not known: make the data longer."
            )
        (wall0, cpu0), (wall1, cpu1) = self._marks
        return Timing(wall1 - wall0, cpu1 - cpu0, self.count)


def each_round(
    timings: Timings, formula: Callable[[dict[str, float]], float], what: str, bound: float | None = None, sense: str = ">="
) -> Check:
    """Evaluate a formula of the arms' seconds per unit in every round, by wall time and by CPU time."""
    rounds = range(len(next(iter(timings.values()))))
    wall = [formula({name: arm[r].each for name, arm in timings.items()}) for r in rounds]
    cpu = [formula({name: arm[r].cpu_each for name, arm in timings.items()}) for r in rounds]
    return Check(what, wall, bound, sense, cpu)


# ---- the machine ----------------------------------------------------------------------------------------------------------


def load() -> float:
    """Mean number of running processes in the last minute."""
    return os.getloadavg()[0]


def check_idle(load_now: float, cores: int, force: bool = False) -> None:
    """Raise UserError when others are at work on this machine: more than a quarter of its cores were busy in the last minute."""
    allowed = max(0.5, 0.25 * cores)
    if load_now > allowed and not force:
        raise UserError(
            f"the machine is busy (load {load_now:.2f} on {cores} cores, at most {allowed:.2f}), so times would mean nothing: "
            "wait a minute, or pass --force."
        )


def surroundings(load_before: float) -> dict[str, Any]:
    """Machine, versions and commit, as every result states them."""
    import pytorch_lightning as pl
    import torch

    return {
        "machine": {
            "cpu": cpu_model(),
            "cores": cores(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "load_before": round(load_before, 2),
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "pytorch_lightning": pl.__version__},
        "git": git_state(),
    }


# ---- showing --------------------------------------------------------------------------------------------------------------


def amount(seconds: float, unit: str) -> str:
    """Seconds of one unit as people read them: a time for steps and starts, a rate for what comes in thousands."""
    if unit in ("step", "start", "run"):
        return f"{1e3 * seconds:.3f} ms" if seconds < 1 else f"{seconds:.2f} s"
    return f"{1 / seconds:,.0f}/s"


def lines(report: Report) -> Iterator[str]:
    """A report for the terminal."""
    yield f"== {report.name}"
    for note in report.notes:
        yield f"   {note}"
    for section, timings in report.timings.items():
        yield f"-- {section} (per {report.unit}: every round, median, median CPU time)"
        width = max(map(len, timings))
        for name, arm in timings.items():
            values = "  ".join(amount(t.each, report.unit) for t in arm)
            middle = amount(median(t.each for t in arm), report.unit)
            yield f"   {name:{width}}  {values}   median {middle}, CPU {amount(median(t.cpu_each for t in arm), report.unit)}"
    for check in report.checks:
        yield f"   {check.text()}"


def markdown(report: Report, around: Mapping[str, Any]) -> str:
    """A report for a page: ratios first, times only to show what was divided by what."""
    machine, git = around["machine"], around["git"]
    commit = "no commit" if not git else git["commit"][:10] + (" with changes" if git["dirty"] else "")
    where = f"{machine['cpu']}, {machine['cores']} cores" + (f", {machine['device']}" if machine["device"] else "")
    versions = ", ".join(f"{k} {v}" for k, v in around["versions"].items())
    out = [f"`scripts/benchmark.py {report.name}` on {where} (load before: {machine['load_before']}); {versions}; {commit}.", ""]
    out += [f"{note[0].upper()}{note[1:]}" for note in report.notes] + ([""] if report.notes else [])
    out += ["| measure | median | lowest to highest | wanted | |", "|---|---|---|---|---|"]
    for c in report.checks:
        bound = "" if c.bound is None else f"{'at least' if c.sense == '>=' else 'at most'} {c.bound:g}"
        verdict = {True: "reached", False: "not reached", None: ""}[c.reached]
        out.append(f"| {c.what} | {c.median:.3g} | {min(c.values):.3g} to {max(c.values):.3g} | {bound} | {verdict} |")
    for section, timings in report.timings.items():
        out += ["", f"| {section} | wall, per {report.unit} | CPU, per {report.unit} |", "|---|---|---|"]
        for name, arm in timings.items():
            wall, cpu = median(t.each for t in arm), median(t.cpu_each for t in arm)
            out.append(f"| {name} | {amount(wall, report.unit)} | {amount(cpu, report.unit)} |")
    return "\n".join(out)


def put_block(page: str, name: str, block: str) -> str:
    """The page with the section of this benchmark replaced; added at its end where there is none."""
    return put(page, f"benchmark:{name}", f"## Benchmark: {name}\n\n{block}")
