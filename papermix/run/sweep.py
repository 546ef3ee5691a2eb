"""Sweeps: every job is composed, checked and frozen before the first one starts, a failing job stops no other, a table ends it all.

Both sweepers of ``papermix/run/plugins`` (all combinations, and Optuna's search) are made of these parts.
"""

import contextlib
import copy
import csv
import hashlib
import io
import itertools
import json
import math
import os
import shlex
import shutil
import signal
import statistics
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobStatus
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from papermix.errors import UserError
from papermix.run import folder, frozen
from papermix.run.allocator import release_memory
from papermix.run.compose import freeze
from papermix.run.explain import explain
from papermix.run.launch import Stopped, stop_signal, watch_parent
from papermix.run.names import identity, readable, short_hash
from papermix.run.reporting.blocks import table as markdown
from papermix.run.result import duration, metric_text, print_table

_MAX_DEATHS = 2  # a job is given up when its process has died this often

# ---- names ---------------------------------------------------------------------------------------------------------------------


def sweep_dir(root: DictConfig) -> str:
    """``<paths.outputs>/sweeps/<overrides>-<hash>``: a function of the sweep's config and overrides, so the same sweep continues."""
    overrides = [str(o) for o in OmegaConf.select(root, "hydra.overrides.task") or []]
    # one option of hardware is in the config itself; the same sweep may go on elsewhere
    overrides = [o for o in overrides if not o.startswith("hardware=") or "," in o]
    params = OmegaConf.select(root, "hydra.sweeper.params") or {}
    spaces = [f"{k}={v}" for k, v in params.items()]
    name = readable([*spaces, *overrides], limit=80)
    digest = short_hash(identity(root) + json.dumps([spaces, overrides]))
    return f"{root.paths.outputs}/sweeps/{name + '-' if name else ''}{digest}"


# ---- what runs -----------------------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """One run of a sweep: its number (from 1), its own overrides, its run folder."""

    number: int
    overrides: list[str]
    folder: Path


def combinations(overrides: Sequence[Override]) -> list[list[str]]:
    """All combinations of the values of sweep overrides, the last one varying fastest. Raises UserError for a continuous one."""
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [override.get_value_element_as_str()]
        elif override.is_discrete_sweep():
            values[key] = list(override.sweep_string_iterator())
            if not values[key]:
                raise UserError(f"{override.input_line} gives no value to sweep over.")
        else:
            raise UserError(
                f"{override.input_line} is a range to search in: add hydra/sweeper=optuna, or list values as {key}=0.1,0.2."
            )
    # `~key` deletes: it has no value
    pairs = [[key if key.startswith("~") and v == "null" else f"{key}={v}" for v in vs] for key, vs in values.items()]
    return [list(c) for c in itertools.product(*pairs)]


class _FrozenFiles(CachingConfigRepository):
    """Config files as they were when first read: editing conf/ during a sweep changes nothing."""

    def load_config(self, config_path: str) -> Any:
        return copy.deepcopy(super().load_config(config_path))

    def __deepcopy__(self, memo: dict) -> "_FrozenFiles":
        return self  # Hydra copies its repository for each composition; what was read is to be shared

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cache": {}}


class FrozenLoader:
    """Stands in for Hydra's config loader in a launcher: hands out the configs that :meth:`freeze` has made, wherever the job runs.

    The configs lie in the sweep's folder, so that a worker process loads its own one instead of receiving all of them.

    Args:
        inner: Hydra's own loader.
        master: the config of the sweep itself; ``hydra.sweep.dir`` is pinned to its value there.
    """

    def __init__(self, inner: Any, master: DictConfig) -> None:
        inner.repository = _FrozenFiles(inner.repository)
        self.inner, self.master = inner, master
        self.sweep_dir = Path(master.hydra.sweep.dir)
        self.owner = os.getpid()

    def __getattr__(self, name: str) -> Any:
        if name == "inner" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __getstate__(self) -> dict[str, Any]:
        return {"inner": None, "master": None, "sweep_dir": self.sweep_dir, "owner": self.owner}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def _file(self, overrides: Sequence[str]) -> Path:
        return self.sweep_dir / ".frozen" / hashlib.sha256("\0".join(overrides).encode()).hexdigest()[:24]

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The config of a job. Raises UserError that says what is wrong with the overrides."""
        try:
            return self.inner.load_sweep_config(self.master, list(overrides))
        except Exception as error:
            raise UserError(explain(error, list(overrides))) from error

    def freeze(self, number: int, overrides: Sequence[str], trial: Mapping[str, Any] | None = None) -> Job:
        """Compose and check a job with all its stages, and keep it. Raises UserError that says what is wrong.

        Args:
            number: the job's number, from 1.
            overrides: its overrides.
            trial: what its last stage finds under ``sweep_trial``.
        """
        cfg = self.compose(overrides)
        with read_write(cfg.hydra), open_dict(cfg.hydra):
            cfg.hydra.sweep.dir = str(self.sweep_dir)
            cfg.hydra.job.num, cfg.hydra.job.id = number, str(number)
        outer = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(cfg)  # for ${hydra:...}
        try:
            name = str(cfg.hydra.sweep.subdir)
            place = self.sweep_dir / name
            with read_write(cfg.hydra):
                cfg.hydra.sweep.subdir = name
            if not cfg.get("resume"):
                stages = freeze(copy.deepcopy(cfg), [str(o) for o in cfg.hydra.overrides.task], place)
                if trial is not None:
                    stages[list(stages)[-1]]["sweep_trial"] = dict(trial)
                with open_dict(cfg):
                    cfg._stages_ = stages
        finally:
            HydraConfig.instance().cfg = outer
        OmegaConf.set_readonly(cfg.hydra, False)  # launchers write the job's number into it
        path = self._file(overrides)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(frozen.to_bytes(cfg))
        return Job(number, list(overrides), place)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The frozen config of a job: what launchers call."""
        if os.getppid() == self.owner:
            # a worker process of joblib: when the sweep is killed, it saves its state and goes as well
            watch_parent(self.owner, then=lambda: os.kill(os.getpid(), signal.SIGTERM))
        path = self._file(sweep_overrides)
        return frozen.from_bytes(path.read_bytes(), str(path))

    def forget(self) -> None:
        """Remove the frozen configs: every run folder has its own by now."""
        shutil.rmtree(self.sweep_dir / ".frozen", ignore_errors=True)


class Interrupted(BaseException):
    """A signal ended the sweep; goes through everything that catches Exception."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


def varying(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Override keys that do not have the same value in all jobs, in their order."""
    rows = [_values(o) for o in jobs]
    keys = dict.fromkeys(k for row in rows for k in row)
    return [k for k in keys if len({row.get(k) for row in rows}) > 1]


def _values(overrides: Sequence[str]) -> dict[str, str]:
    """``key -> value`` of overrides."""
    return {key.lstrip("+"): value for key, _, value in (o.partition("=") for o in overrides)}


class SweepTask:
    """The function that each job calls: notes how it went, says at once when it failed, and keeps the sweep going.

    Works in worker processes too: what a job prints there goes to ``job.log`` in its run folder.

    Args:
        function: takes a config, returns a result as in ``result.json``.
        sweep_dir: the sweep's folder.
    """

    def __init__(self, function: Callable[[Any], Any], sweep_dir: Path) -> None:
        self.function, self.records, self.owner = function, sweep_dir / ".jobs", os.getpid()
        self.labels: dict[str, tuple[str, str]] = {}

    def announce(self, jobs: Sequence[Job], total: int, shown: Sequence[str]) -> None:
        """Tell what is about to run, for the messages: the overrides in ``shown`` are those worth naming."""
        self.records.mkdir(parents=True, exist_ok=True)
        for job in jobs:
            own = [o for o in job.overrides if o.partition("=")[0].lstrip("+") in shown]
            self.labels[str(job.folder)] = (f"run {job.number} of {total}", " ".join(own) or "as it is")

    def _record(self, place: Path) -> Path:
        return self.records / f"{short_hash(str(place))}.json"

    def outcome(self, place: Path) -> dict[str, Any] | None:
        """How the job in a run folder went; None when it has not ended, or has not begun."""
        record = folder.read_json(self._record(place))
        return record if record and record["status"] != "running" else None

    def is_running(self, place: Path) -> bool:
        """Whether a job has begun and not ended."""
        return (folder.read_json(self._record(place)) or {}).get("status") == "running"

    def note(self, place: Path, outcome: dict[str, Any]) -> None:
        """Keep how a job went."""
        folder.write_json(self._record(place), outcome)

    def fail(self, place: Path, sentence: str) -> None:
        """Keep and say that a job failed."""
        self.note(place, {"status": "failed", "error": sentence})
        self.say(place)

    def say(self, place: Path) -> None:
        """Say here how a job went that did not end well; nothing about others."""
        outcome = self.outcome(place)
        if outcome and outcome["status"] in ("failed", "stopped"):
            number, shown = self.labels.get(str(place), ("a run", place.name))
            print(f"{number} {outcome['status']} ({shown}): {outcome['error']}", file=sys.stderr, flush=True)

    def drop(self, place: Path) -> None:
        """Forget how a job went."""
        self._record(place).unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the notes of all jobs."""
        shutil.rmtree(self.records, ignore_errors=True)

    def __call__(self, cfg: Any) -> Any:
        """Run one job. Raises UserError when it failed, Interrupted when a signal stopped it."""
        place = Path(HydraConfig.get().runtime.output_dir)
        self.note(place, {"status": "running"})
        number, shown = self.labels.get(str(place), ("a run", place.name))
        print(f"{number}: {shown}", flush=True)
        try:
            with _output_to(place / "job.log") if os.getpid() != self.owner else contextlib.nullcontext():
                try:
                    result = self.function(cfg)
                except BaseException:
                    if OmegaConf.select(cfg, "traceback") or os.getpid() != self.owner:
                        traceback.print_exc()
                    raise
        except BaseException as error:
            told = stop_signal(error)
            if told is not None:
                self.note(place, {"status": "stopped", "error": "stopped: the same command continues it"})
                raise Interrupted(told) from None
            sentence = explain(error)
            self.fail(place, sentence)
            # the error itself may be impossible to send between processes, and keeps its tensors alive
            failure = UserError(sentence)
        else:
            result = result if isinstance(result, dict) else {}
            self.note(place, {"status": result.get("status", "finished"), "error": None, "result": result})
            return result
        finally:
            release_memory()
        raise failure


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send all that this process prints, its libraries and children included, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = [os.dup(1), os.dup(2)]
    sys.stdout.flush()
    sys.stderr.flush()
    with open(path, "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in enumerate(saved, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)


def run_folder(cfg: DictConfig) -> Path:
    """Run folder of a job, from its frozen config."""
    return Path(str(cfg.hydra.sweep.dir)) / str(cfg.hydra.sweep.subdir)


def already_finished(task: SweepTask, cfg: DictConfig) -> bool:
    """Whether a job's folder holds its result, which is noted then: nothing need be started on a cluster for it."""
    place = run_folder(cfg)
    result = folder.read_json(place / "result.json")
    if cfg.get("resume") or not result or result.get("stages_done") != list(cfg.get("_stages_") or []):
        return False
    task.note(place, {"status": result.get("status", "finished"), "error": None, "result": result})
    return True


def run_jobs(launcher: Any, task: SweepTask, jobs: Sequence[Job], total: int, shown: Sequence[str]) -> list[dict[str, Any]]:
    """Run jobs through a launcher; returns how each went (``status``, ``error``, ``result``), whatever happens to the others.

    When a worker process dies, the launcher gives up all that it was running: those jobs are started again, the suspects alone.
    """
    deaths: Counter[str] = Counter()
    task.announce(jobs, total, shown)
    while pending := [job for job in jobs if task.outcome(job.folder) is None]:
        batch = [job for job in pending if not deaths[str(job.folder)]] or pending[:1]
        try:
            returns = launcher.launch([job.overrides for job in batch], initial_job_idx=batch[0].number)
        except Exception as error:
            suspects = [job for job in batch if task.is_running(job.folder)]
            if not suspects:
                raise
            for job in suspects:
                deaths[str(job.folder)] += 1
                if deaths[str(job.folder)] >= _MAX_DEATHS:
                    why = explain(error).partition(". ")[0]
                    task.fail(job.folder, f"its process died ({why[:160]}): see {job.folder / 'job.log'}")
                else:
                    task.note(job.folder, {"status": "running"})
            continue
        for job, back in zip(batch, returns):
            if task.outcome(job.folder) is None:
                if back.status == JobStatus.COMPLETED:
                    task.note(job.folder, {"status": "finished", "error": None, "result": back._return_value})
                else:
                    task.fail(job.folder, explain(back._return_value))
    return [task.outcome(job.folder) or {} for job in jobs]


@contextlib.contextmanager
def signals_end_the_sweep() -> Iterator[None]:
    """Make SIGTERM and SIGUSR1 end a sweep in good order: its table is still written. (While a job trains, its own handlers do.)"""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise Interrupted(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def reraise(error: BaseException) -> None:
    """Turn what ended a sweep into what the command line understands."""
    number = stop_signal(error)
    if number == signal.SIGINT:
        raise KeyboardInterrupt from None
    name = signal.Signals(number).name if number else "a signal"
    raise Stopped(f"stopped by {name}: the same command continues the sweep.", number or signal.SIGTERM) from None


# ---- the table -----------------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One run in the table of a sweep.

    Attributes:
        status: finished, pruned, failed, stopped, or waiting.
        name, value, mode: the monitored metric, its value (None without one), and its better direction, ``max`` or ``min``.
    """

    number: int
    overrides: list[str]
    folder: str
    status: str = "waiting"
    error: str | None = None
    name: str | None = None
    value: float | None = None
    mode: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    wall_seconds: float | None = None


def row(job: Job, outcome: Mapping[str, Any] | None) -> Row:
    """The row of a job; ``outcome`` is None for one that was not run."""
    out = Row(job.number, list(job.overrides), str(job.folder))
    if outcome:
        result = outcome.get("result") or {}
        monitor = result.get("monitor") or {}
        out.status, out.error = outcome["status"], outcome.get("error")
        out.metrics = {k: v for k, v in (result.get("metrics") or {}).items() if isinstance(v, int | float)}
        out.wall_seconds = result.get("wall_seconds")
        out.name, out.mode = monitor.get("name"), monitor.get("mode")
        out.value = monitor.get("value", out.metrics.get(out.name or ""))
    return out


def best_first(rows: Sequence[Row]) -> list[Row]:
    """Finished runs best first (those with different metrics kept apart), then pruned ones, failed, stopped, waiting."""
    order = ["finished", "pruned", "failed", "stopped", "waiting"]
    names = list(dict.fromkeys(r.name for r in rows))

    def key(r: Row) -> tuple[Any, ...]:
        known = r.value is not None and not math.isnan(r.value)
        value = 0.0 if not known else -float(r.value or 0) if r.mode == "max" else float(r.value or 0)
        return order.index(r.status) if r.status in order else len(order), names.index(r.name), not known, value, r.number

    return sorted(rows, key=key)


@dataclass
class Table:
    """The runs of a sweep, best first, and their means over seeds where a sweep has several seeds."""

    rows: list[Row]
    command: str

    def __post_init__(self) -> None:
        self.rows = best_first(self.rows)
        self.keys = varying([r.overrides for r in self.rows])

    def _shown_metrics(self) -> list[str]:
        """The monitored metric and its like on the test data."""
        names = dict.fromkeys(n for r in self.rows if r.name for n in (r.name, "test/" + r.name.partition("/")[2]))
        return [n for n in names if any(n in r.metrics or (r.name == n and r.value is not None) for r in self.rows)]

    def _metric(self, r: Row, name: str) -> float | None:
        return r.value if r.name == name else r.metrics.get(name)

    def lines(self) -> tuple[list[str], list[list[str]]]:
        """(header, lines) for people."""
        metrics = self._shown_metrics()
        failed = any(r.error for r in self.rows)
        header = ["run", *self.keys, *metrics, "time", "status", *(["what happened"] if failed else [])]
        lines = []
        for r in self.rows:
            values = _values(r.overrides)
            numbers = [self._metric(r, m) for m in metrics]
            time = duration(r.wall_seconds) if r.wall_seconds is not None else ""
            shown = ["" if v is None else metric_text(m, v) for m, v in zip(metrics, numbers)]
            error = [r.error or ""] if failed else []
            lines.append([str(r.number), *(values.get(k, "") for k in self.keys), *shown, time, r.status, *error])
        return header, lines

    def over_seeds(self) -> list[dict[str, Any]]:
        """Mean and standard deviation of the metrics shown over the seeds of each setting, best first; empty without seeds."""
        if "seed" not in self.keys:
            return []
        groups: dict[tuple[str, ...], list[Row]] = {}
        for r in self.rows:
            if r.status == "finished" and r.value is not None:
                groups.setdefault(tuple(o for o in r.overrides if not o.startswith("seed=")), []).append(r)
        out = []
        for rest, rows in groups.items():
            means: dict[str, dict[str, float | None]] = {}
            for name in self._shown_metrics():
                values = [float(v) for r in rows if (v := self._metric(r, name)) is not None]
                if values:
                    means[name] = {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}
            own = [o for o in rest if o.partition("=")[0].lstrip("+") in self.keys]
            out.append({"overrides": own, "seeds": len(rows), "name": rows[0].name, "mode": rows[0].mode, "metrics": means})
        return sorted(out, key=lambda g: (-1 if g["mode"] == "max" else 1) * g["metrics"][g["name"]]["mean"])

    def seed_lines(self) -> tuple[list[str], list[list[str]]]:
        """(header, lines) of the means over seeds, for people."""
        keys = [k for k in self.keys if k != "seed"]
        names = self._shown_metrics()
        lines = []
        for g in self.over_seeds():
            values = _values(g["overrides"])
            cells = []
            for name in names:
                found = g["metrics"].get(name, {"mean": None, "std": None})
                spread = "" if found["std"] is None else f" ± {metric_text(name, found['std'])}"
                cells.append("" if found["mean"] is None else metric_text(name, found["mean"]) + spread)
            lines.append([*(values.get(k, "") for k in keys), str(g["seeds"]), *cells])
        return [*keys, "seeds", *names], lines

    def print(self) -> None:
        """Print both tables in the terminal."""
        header, lines = self.lines()
        print_table(header, lines, title=f"{len(self.rows)} runs, best first")
        if self.over_seeds():
            print_table(*self.seed_lines(), title="over seeds: mean ± standard deviation")

    def save(self, place: Path, **more: Any) -> None:
        """Write ``sweep.json`` (with ``more`` entries), ``sweep.csv`` and ``sweep.md`` into a folder."""
        header, lines = self.lines()
        runs = [vars(r) for r in self.rows]
        folder.write_json(place / "sweep.json", {"command": self.command, "runs": runs, "over_seeds": self.over_seeds(), **more})
        metrics = sorted({m for r in self.rows for m in r.metrics})
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["run", *self.keys, "status", "monitor", "value", *metrics, "wall_seconds", "error", "folder"])
        for r in self.rows:
            values = _values(r.overrides)
            numbers = [r.metrics.get(m, "") for m in metrics]
            known = ["" if v is None else v for v in (r.name, r.value)]
            end = ["" if v is None else v for v in (r.wall_seconds, r.error, r.folder)]
            writer.writerow([r.number, *(values.get(k, "") for k in self.keys), r.status, *known, *numbers, *end])
        folder.write_atomic(place / "sweep.csv", text.getvalue())
        parts = ["# Sweep", f"```\n{self.command}\n```", markdown(header, lines)]
        if self.over_seeds():
            parts += ["## Over seeds: mean ± standard deviation", markdown(*self.seed_lines())]
        folder.write_atomic(place / "sweep.md", "\n\n".join(parts) + "\n")


def command_line(overrides: Sequence[str], *options: str) -> str:
    """A command line that a shell takes as it is."""
    return shlex.join(["python", "train.py", *options, *overrides])


def failures(rows: Sequence[Row], place: Path) -> None:
    """Raise UserError when runs have failed or stopped, so that the command's exit code says so."""
    failed = [r for r in rows if r.status == "failed"]
    stopped = [r for r in rows if r.status == "stopped"]
    if stopped and not failed:
        raise UserError(f"{len(stopped)} of {len(rows)} runs stopped before their end: the same command continues them.")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(rows)} runs failed: see {shown(place / 'sweep.md')}; the same command tries them again."
        )


def shown(path: Path) -> str:
    """A path as one would type it here."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
