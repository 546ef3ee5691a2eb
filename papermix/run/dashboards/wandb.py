"""The record of a run in Weights & Biases, online, offline, or as a point of one of its sweeps."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from papermix.run.dashboards.about import Ledger, about, figures, result_lines
from papermix.run.dashboards.guard import warn

_STEP = "trainer/global_step"  # the axis of all charts; Lightning's users know the name


class WandbRecord:
    """Config, tags, git state, charts over the optimizer steps, pictures, and the result as a table and in the summary.

    Args:
        place: the run folder; ``wandb.json`` there says which record is its own.
        project, entity, name: see :func:`papermix.run.loggers.wandb`.
        offline: keep everything in the run folder for ``wandb sync``.
        timeout: seconds that the start, and the end, may take when the server is silent.
    """

    def __init__(
        self, place: Path, project: str, entity: str | None, name: str | None, offline: bool, timeout: float
    ) -> None:
        self.place, self.timeout, self.offline = place, timeout, offline
        self.project, self.entity, self.name = project, entity, name
        self.ledger = Ledger(place / "wandb.json")
        self.experiment: Any = None

    def log_hyperparams(self, config: Mapping[str, Any]) -> None:
        """Begin the record, or go on with it."""
        if self.experiment is not None:
            return
        facts = about(self.place, config)
        tags = [*facts.labels, *(facts.tags[k] for k in ("paper", "method", "dataset", "stage") if k in facts.tags)]
        known = self.ledger.id
        options: dict[str, Any] = {}
        # the agent of a sweep has chosen project and id already
        if not os.environ.get("WANDB_SWEEP_ID"):
            options = {"project": self.project, "entity": self.entity, "id": known or uuid4().hex[:8]}
            # offline there is no record to look up: `wandb sync` joins the parts by their id
            options["resume"] = None if self.offline else "allow"
        options |= {
            "name": self.name or facts.name,
            "dir": str(self.place),
            "group": facts.above[0].name if facts.above else None,
            "job_type": facts.tags.get("stage"),
            "tags": list(dict.fromkeys(t[:64] for t in tags if t)),
            "reinit": "finish_previous",  # a sweep runs all its jobs in one process
        }
        run = self._begin(options)
        run.config.update(
            {**facts.config, "about": {**facts.tags, "command": facts.command, "git": facts.git}}, allow_val_change=True
        )
        run.define_metric(_STEP)
        run.define_metric("*", step_metric=_STEP, step_sync=True)
        if run.id != known:
            self.ledger.begin(run.id)
        self.experiment = run

    def _begin(self, options: dict[str, Any]) -> Any:
        """A run of wandb; on disk only, when its server cannot be reached."""
        import wandb

        # the progress bar is no record; half the time is left for the way without the server
        half = self.timeout / 2
        limits = wandb.Settings(console="off", init_timeout=half, login_timeout=half, finish_timeout=half)
        if self.offline:
            return wandb.init(mode="offline", settings=limits, **options)
        try:
            return wandb.init(settings=limits, **options)
        except wandb.errors.CommError as error:
            wandb.teardown()  # its service still holds the id
            run = wandb.init(mode="offline", settings=limits, **{**options, "resume": None})
            why = str(error).splitlines()[0][:120]
            warn("wandb", f"cannot reach its server ({why}) and the run goes on; send it later with: wandb sync {Path(run.dir).parent}")
            return run

    def log_rows(self, rows: Sequence[tuple[Mapping[str, float], int | None, float]]) -> None:
        """Add points: (numbers, step, time in seconds)."""
        for numbers, step, when in rows:
            new = {name: value for name, value in numbers.items() if self.ledger.is_new(name, step or 0)}
            if new:
                self.experiment.log({**new, _STEP: step or 0, "_timestamp": when})
        self.ledger.note((name, step or 0) for numbers, step, _ in rows for name in numbers)

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Add an image file."""
        import wandb

        series = f"picture {name}"
        if step <= self.ledger.last.get(series, -1):
            return
        self.experiment.log({name: wandb.Image(str(path)), _STEP: step})
        self.ledger.note([(series, step)])

    def log_result(self, result: Mapping[str, Any]) -> None:
        """Add the final table, sizes and costs, and every metric to the summary."""
        import wandb

        table = wandb.Table(columns=["result", "value"], data=[list(line) for line in result_lines(result)])
        self.experiment.log({"result/table": table, _STEP: int(result.get("steps", 0))})
        self.experiment.summary.update({**result["metrics"], **figures(result), "status": result["status"]})

    def close(self, status: str) -> None:
        """End the record: what the server has not taken is in the run folder, for ``wandb sync``."""
        self.experiment.finish(exit_code=0 if status in ("finished", "pruned") else 1)
