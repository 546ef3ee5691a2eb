"""``hydra/sweeper=papermix``: all combinations of the values given. ``hydra/sweeper=optuna``: a search.

Hydra imports this file at every start, so that everything else is imported when a sweep begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from papermix.run.sweep import Job, Row


def _sweep_dir(*, _root_: DictConfig) -> str:
    from papermix.run.sweep import sweep_dir

    return sweep_dir(_root_)


OmegaConf.register_new_resolver("sweep_dir", _sweep_dir, replace=True)


class PapermixSweeper(Sweeper):
    """Runs every combination of the values given, all of them checked and frozen before the first one starts.

    Args:
        params: more sweep overrides, key -> values, as on the command line; the command line's win.
    """

    config: DictConfig

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Put our loader and our task function between Hydra and the launcher."""
        from papermix.run.cluster.extras import check_installed
        from papermix.run.sweep import FrozenLoader, SweepTask

        check_installed(config.hydra.launcher._target_, str(config.hydra.runtime.choices["hydra/launcher"]))
        self.config = config
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.sweep.dir = str(Path(config.hydra.sweep.dir).absolute())
        self.place = Path(config.hydra.sweep.dir)
        self.loader = FrozenLoader(hydra_context.config_loader, config)
        self.task = SweepTask(task_function, self.place)
        self.hydra_context = HydraContext(config_loader=self.loader, callbacks=hydra_context.callbacks)  # type: ignore[arg-type]
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context, task_function=self.task, config=config
        )

    def sweep(self, arguments: list[str]) -> list[Row]:
        """Run the sweep that the overrides describe; returns its rows, best first.

        Raises:
            UserError: a job cannot be composed (none has run then), or some jobs have failed (all others have run).
        """
        from papermix.run import folder
        from papermix.run.sweep import failures

        overrides = self._overrides(arguments)
        folder.make(self.place)
        with ExitStack() as stack:
            stack.enter_context(folder.locked(self.place))
            stack.callback(folder.leave_nothing, self.place)
            stack.callback(self.loader.forget)
            stack.callback(self.task.forget)
            self.task.forget()
            rows = self._run(overrides, arguments)
        failures(rows, self.place)
        return rows

    def _overrides(self, arguments: Sequence[str]) -> list[Override]:
        """The sweep's overrides, parsed, each key once."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        lines = [f"{key}={value}" for key, value in self.params.items()]
        parsed = OverridesParser.create(config_loader=self.loader).parse_overrides([*lines, *arguments])  # type: ignore[arg-type]
        return list({o.get_key_element(): o for o in parsed}.values())

    def _run(self, overrides: list[Override], arguments: Sequence[str]) -> list[Row]:
        from papermix.errors import UserError
        from papermix.run.sweep import combinations, reraise, row, run_jobs, shown, signals_end_the_sweep, varying

        jobs: dict[Path, Job] = {}
        points = combinations(overrides)
        keys = varying(points)
        for number, own in enumerate(points, start=1):
            try:
                job = self.loader.freeze(number, own)
            except UserError as error:
                name = f"run {number} of {len(points)} ({' '.join(o for o in own if o.partition('=')[0].lstrip('+') in keys)}): "
                raise UserError(f"{name if keys else ''}{error}") from error
            jobs.setdefault(job.folder, job)  # the same run twice is one run
        todo = list(jobs.values())
        twice = f" ({len(points) - len(todo)} given twice)" if len(todo) < len(points) else ""
        print(f"sweep of {len(todo)} runs{twice} in {shown(self.place)}", flush=True)
        try:
            with signals_end_the_sweep():
                run_jobs(self.launcher, self.task, todo, len(todo), keys)
        except BaseException as error:
            self._report([row(j, self.task.outcome(j.folder)) for j in todo], arguments)
            if isinstance(error, Exception):
                raise
            reraise(error)
        return self._report([row(j, self.task.outcome(j.folder)) for j in todo], arguments)

    def _report(self, rows: Sequence[Row], arguments: Sequence[str], **more: Any) -> list[Row]:
        """Print and save the table; returns its rows, best first."""
        from papermix.run.sweep import Table, command_line, shown

        own = [str(o) for o in self.config.hydra.overrides.hydra if not str(o).startswith("hydra.mode=")]
        table = Table(list(rows), command_line([*own, *arguments], "-m"))
        table.save(self.place, **more)
        table.print()
        print(f"written to {shown(self.place)}: sweep.json, sweep.csv, sweep.md", flush=True)
        return table.rows


class OptunaSweeper(PapermixSweeper):
    """Searches with Optuna: asks for trials, runs them through the launcher, tells their values.

    The study lies in the sweep's folder: the same command goes on with a search that was killed, and with a larger ``n_trials``
    on one that was finished. Trials that were running when it was killed are run again under their numbers (and so continue from
    their checkpoints). Each trial is seeded by its number: a killed search makes the draws that it would have made.

    Args:
        n_trials: trials that have ended, in whatever way, before the search ends.
        n_jobs: trials drawn at once, for launchers that run several (``hydra/launcher=joblib``).
        metric: what the search goes by: a name in the result (``val/accuracy``, ``parameters``), several names for a search of
            trade-offs, or None for the metric that the task monitors.
        direction: ``max`` or ``min``, one for each metric; None: as the task says.
        sampler: tpe, random, grid, cmaes, gp, qmc or nsgaii; ``sampler_options``: arguments of Optuna's class.
        pruner: none, median, asha or hyperband; ``pruner_options``: arguments of Optuna's class.
        seed: of the sampler.
        storage: a journal file or a database URL; None: ``study.journal`` in the sweep's folder.
        params: the space, key -> sweep override, besides what the command line says.
    """

    def __init__(
        self,
        n_trials: int = 20,
        n_jobs: int = 1,
        metric: str | Sequence[str] | None = None,
        direction: str | Sequence[str | None] | None = None,
        sampler: str = "tpe",
        sampler_options: Mapping[str, Any] | None = None,
        pruner: str | None = "none",
        pruner_options: Mapping[str, Any] | None = None,
        seed: int = 1,
        storage: str | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(params)
        self.n_trials, self.n_jobs, self.seed = n_trials, n_jobs, seed
        self.metrics = [metric] if metric is None or isinstance(metric, str) else [str(m) for m in metric]
        self.directions = [direction] if direction is None or isinstance(direction, str) else list(direction)
        self.sampler, self.sampler_options = sampler, dict(sampler_options or {})
        self.pruner, self.pruner_options = pruner or "none", dict(pruner_options or {})
        self.storage = storage

    def _check(self) -> None:
        """Refuse settings that cannot be, before anything is written. Raises UserError."""
        from papermix.errors import UserError

        for key in ("n_trials", "n_jobs"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"hydra.sweeper.{key}={value!r} must be a whole number of at least 1.")
        if self.directions == [None]:
            self.directions = [None] * len(self.metrics)
        if len(self.directions) != len(self.metrics):
            raise UserError(
                f"hydra.sweeper.direction has {len(self.directions)} entries for {len(self.metrics)} metrics: give one for each."
            )
        if self.pruner != "none" and len(self.metrics) > 1:
            raise UserError("hydra.sweeper.pruner goes with one metric: use pruner=none, or name one metric.")

    def _monitor(self) -> tuple[str, str]:
        """(metric, direction) that the task of the default point monitors."""
        from papermix.errors import UserError
        from papermix.run.build import build
        from papermix.run.check import resolved

        node = (resolved(self.config).get("dataset") or {}).get("task")
        if not node:
            raise UserError("hydra.sweeper.direction is needed: this config has no task that names a metric and its direction.")
        task = build(node)
        return task.monitor, task.mode

    def _run(self, overrides: list[Override], arguments: Sequence[str]) -> list[Row]:
        from papermix.errors import UserError
        from papermix.run import search
        from papermix.run.sweep import shown, signals_end_the_sweep

        self._check()
        optuna = search.library()
        space = {o.get_key_element(): search.distribution(o) for o in overrides if o.is_sweep_override()}
        fixed = [o.input_line for o in overrides if not o.is_sweep_override() and o.input_line]
        if not space:
            raise UserError("there is nothing to search over: give a space, as in optimizer.lr='tag(log,interval(1e-4,1e-1))'.")
        search.make_sampler(self.sampler, self.sampler_options, self.seed, 0, space)
        search.make_pruner(self.pruner, self.pruner_options)
        limit = min(self.n_trials, search.grid_size(space)) if self.sampler == "grid" else self.n_trials
        for point in search.corners(space):
            self.loader.compose([*fixed, *point])

        names = self.metrics
        if None in self.directions:
            monitor, mode = self._monitor()
            names = [n or monitor for n in names]
            unknown = [n for n, d in zip(names, self.directions) if d is None and n != monitor]
            if unknown:
                raise UserError(f"hydra.sweeper.direction is needed for {unknown[0]}: max or min.")
            self.directions = [d or mode for d in self.directions]
        directions = search.check_directions(self.directions)

        self.journal = self.storage or str(self.place / "study.journal")
        if self.storage is None:
            search.mend_journal(Path(self.journal))
        self.name = "search" if self.storage is None else self.place.name
        study = search.open_study(self.journal, self.name, directions)
        states = optuna.trial.TrialState
        unfinished = study.get_trials(deepcopy=False, states=[states.RUNNING])
        ended = len(study.trials) - len(unfinished)
        goes_on = f", {ended} of them done" if ended else ""
        print(f"search of {limit} trials{goes_on} in {shown(self.place)}", flush=True)
        try:
            with signals_end_the_sweep():
                while unfinished or ended < limit:
                    again, unfinished = unfinished[: self.n_jobs], unfinished[self.n_jobs :]
                    batch = [self._draw(study, space, t.number) for t in again]
                    while len(batch) < min(self.n_jobs, limit - ended):
                        batch.append(self._draw(study, space, None))
                    self._run_trials(study, batch, fixed, limit)
                    ended += len(batch)
        except BaseException as error:
            self._report_search(study, names, arguments)
            if isinstance(error, Exception):
                raise
            from papermix.run.sweep import reraise

            reraise(error)
        return self._report_search(study, names, arguments)

    def _draw(self, study: Any, space: Mapping[str, Any], number: int | None) -> Any:
        """A new trial with all its parameters, or an unfinished one with those that it still lacks."""
        import optuna

        from papermix.run import search

        study.sampler = search.make_sampler(
            self.sampler, self.sampler_options, self.seed, len(study.trials) if number is None else number, space
        )
        if number is None:
            return study.ask(space)
        trial = optuna.Trial(study, study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number))
        for key, distribution in space.items():
            trial._suggest(key, distribution)
        return trial

    def _run_trials(self, study: Any, trials: Sequence[Any], fixed: Sequence[str], limit: int) -> None:
        """Run trials and tell the study how they went; a trial that fails, fails alone."""
        from papermix.errors import UserError
        from papermix.run import search
        from papermix.run.sweep import Job, run_jobs

        jobs: dict[Path, Job] = {}
        places: list[tuple[Any, Job]] = []
        for trial in trials:
            number, keys = trial.number, list(trial.params)
            own = [*fixed, *(f"{key}={search.as_text(v)}" for key, v in trial.params.items())]
            identity = None
            if self.pruner != "none":
                identity = {
                    "storage": self.journal,
                    "study": self.name,
                    "number": number,
                    "metric": self.metrics[0],
                    "pruner": search.PRUNERS[self.pruner],
                    "pruner_options": self.pruner_options,
                }
            try:
                job = self.loader.freeze(number + 1, own, identity)
            except UserError as error:  # a mix that does not go together
                job = Job(number + 1, own, self.place / f"trial-{number + 1}")
                self.task.announce([job], limit, keys)
                self.task.fail(job.folder, str(error))
            places.append((trial, job))
            jobs.setdefault(job.folder, job)  # two trials may draw the same point
        try:
            run_jobs(self.launcher, self.task, list(jobs.values()), limit, keys)
        finally:
            for trial, job in places:
                outcome = self.task.outcome(job.folder)
                if outcome and outcome["status"] != "stopped":
                    self._tell(study, trial, job, outcome)
            for _, job in places:
                self.task.drop(job.folder)

    def _tell(self, study: Any, trial: Any, job: Job, outcome: dict[str, Any]) -> None:
        """Tell the study how a trial went, and keep its row there."""
        from optuna.trial import TrialState

        from papermix.errors import UserError
        from papermix.run import search
        from papermix.run.sweep import row

        states = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
        values, state = None, states.get(outcome["status"], TrialState.FAIL)
        if state == TrialState.COMPLETE:
            try:
                values = [search.objective(outcome["result"], name) for name in self.metrics]
            except UserError as error:
                self.task.fail(job.folder, str(error))
                outcome, state = {"status": "failed", "error": str(error), "result": outcome["result"]}, TrialState.FAIL
        trial.set_user_attr("row", vars(row(job, outcome)))
        try:
            study.tell(trial, values, state)
        except RuntimeError:
            # a sampler that has drawn all there is wants to stop Optuna's own loop, which is not running
            if not study.trials[trial.number].state.is_finished():
                raise

    def _report_search(self, study: Any, names: Sequence[str | None], arguments: Sequence[str]) -> list[Row]:
        """Table, best parameters as a command line, pictures."""
        from papermix.run import search
        from papermix.run.search_pictures import draw
        from papermix.run.sweep import Row, command_line

        trials = study.get_trials(deepcopy=False)
        rows = [Row(**t.user_attrs["row"]) if "row" in t.user_attrs else self._waiting(t) for t in trials]
        if names != [None] and len(names) == 1:
            # order by what was searched for, which need not be what the task monitors
            for r, t in zip(rows, trials):
                if t.values:
                    r.name, r.value, r.mode = names[0], t.values[0], self.directions[0]
        best: list[dict[str, Any]] = [
            {"run": t.number + 1, "values": list(t.values), "command": command_line(rows[t.number].overrides)}
            for t in search.best_trials(study)
        ]
        labels = [n or next((r.name for r in rows if r.name), "value") for n in names]
        ordered = self._report(rows, arguments, metrics=labels, best=best, importances=search.importances(study))
        for b in best:
            values = ", ".join(f"{name}={value:.6g}" for name, value in zip(labels, b["values"]))
            print(f"best: run {b['run']} with {values}\n  {b['command']}", flush=True)
        draw(study, labels, self.place)
        return ordered

    @staticmethod
    def _waiting(trial: Any) -> Row:
        """The row of a trial that has not ended."""
        from papermix.run.search import as_text
        from papermix.run.sweep import Row

        return Row(trial.number + 1, [f"{k}={as_text(v)}" for k, v in trial.params.items()], "", "stopped")
