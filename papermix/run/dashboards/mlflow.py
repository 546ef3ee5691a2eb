"""The record of a run in MLflow: a run of an experiment, nested below its sweep."""

import contextlib
import fcntl
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from papermix.run.dashboards.about import About, Ledger, about, as_markdown, figures, flat, plain_name, result_lines

_ENDS = {"finished": "FINISHED", "pruned": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
# MLflow's page then opens an experiment as one of trainings, not of language agents
_KIND = {"mlflow.experimentKind": "custom_model_development"}
_LONGEST = 6000  # letters of a parameter's value that MLflow takes
_PARAMS = 100  # parameters that it takes at once


class MLflowRecord:
    """Parameters (every key of the config), tags, metrics, pictures, ``config.yaml``, and the result as the run's description.

    Args:
        place: the run folder; ``mlflow.json`` there says which record is its own.
        uri: tracking server, or database.
        pictures: folder for pictures and files where there is no server; None: the server's.
        experiment: MLflow's experiment, made when it is missing.
        name: the run's name; None: that of its folder.
    """

    def __init__(self, place: Path, uri: str, pictures: Path | None, experiment: str, name: str | None) -> None:
        self.place, self.uri, self.pictures = place, uri, pictures
        self.experiment_name, self.name = experiment, name
        self.ledger = Ledger(place / "mlflow.json")
        self.experiment: Any = None
        self._parents: list[str] = []
        self._id = ""

    def log_hyperparams(self, config: Mapping[str, Any]) -> None:
        """Find or make the record."""
        if self._id:
            return
        from mlflow.tracking import MlflowClient

        for noisy in ("alembic", "mlflow"):  # importing mlflow sets their levels
            logging.getLogger(noisy).setLevel(logging.ERROR)
        facts = about(self.place, config)
        with self._alone(facts):
            client = MlflowClient(self.uri)
            self._parents = self._groups(client, facts)
            identity = self._known(client, self.ledger)
            if identity is None:
                identity = client.create_run(self._experiment_id(client), run_name=self.name or facts.name).info.run_id
                self.ledger.begin(identity)
        if self.ledger.is_new("config", 0):
            self._introduce(client, identity, facts)
            self.ledger.note([("config", 0)])
        client.update_run(identity, status="RUNNING")
        self.experiment, self._id = client, identity

    @contextlib.contextmanager
    def _alone(self, facts: About) -> Iterator[None]:
        """One process at a time makes the database, the experiment and the records of groups."""
        lock = self.pictures.with_name(".mlflow.lock") if self.pictures else (facts.above or [self.place])[0] / ".mlflow.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with open(lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _experiment_id(self, client: Any) -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(self.experiment_name)
        if found is None:
            try:
                place = self.pictures.as_uri() if self.pictures else None
                return client.create_experiment(self.experiment_name, place, tags=_KIND)
            except MlflowException:
                found = client.get_experiment_by_name(self.experiment_name)  # another machine was faster
                if found is None:
                    raise
        return found.experiment_id

    def _known(self, client: Any, ledger: Ledger) -> str | None:
        """The record that a folder has, if it is still there."""
        from mlflow.exceptions import MlflowException

        if ledger.id is None:
            return None
        try:
            return ledger.id if client.get_run(ledger.id).info.lifecycle_stage == "active" else None
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _groups(self, client: Any, facts: About) -> list[str]:
        """Records of the sweep and of the run of several stages that this run is a part of, made by whoever comes first."""
        ids: list[str] = []
        for group in facts.above:
            ledger = Ledger(group / "mlflow.json")
            identity = self._known(client, ledger)
            if identity is None:
                tags = {"mlflow.parentRunId": ids[-1]} if ids else {}
                tags |= {key: facts.tags[key] for key in ("paper", "sweep") if key in facts.tags}
                identity = client.create_run(self._experiment_id(client), run_name=group.name, tags=tags).info.run_id
                ledger.begin(identity)
            client.update_run(identity, status="RUNNING")
            ids.append(identity)
        return ids

    def _introduce(self, client: Any, identity: str, facts: About) -> None:
        """Tags, parameters, ``config.yaml``."""
        from mlflow.entities import Param, RunTag

        git = facts.git or {}
        tags = {**facts.tags, "tags": ", ".join(facts.labels), "mlflow.source.name": facts.command, "mlflow.source.type": "LOCAL"}
        tags |= {"mlflow.source.git.commit": git.get("commit", ""), "git.dirty": str(git["dirty"]).lower() if git else ""}
        tags |= {"mlflow.parentRunId": self._parents[-1]} if self._parents else {}
        client.log_batch(identity, tags=[RunTag(k, str(v)[:_LONGEST]) for k, v in tags.items() if v])
        params = [Param(plain_name(k)[:250], _text(v)) for k, v in flat(facts.config).items()]
        for start in range(0, len(params), _PARAMS):
            client.log_batch(identity, params=params[start : start + _PARAMS])
        client.log_text(identity, yaml.safe_dump(facts.config, sort_keys=False, allow_unicode=True), "config.yaml")

    def log_rows(self, rows: Sequence[tuple[Mapping[str, float], int | None, float]]) -> None:
        """Add points: (numbers, step, time in seconds)."""
        from mlflow.entities import Metric

        points = [
            Metric(plain_name(name), float(value), round(1000 * when), step or 0)
            for numbers, step, when in rows
            for name, value in numbers.items()
            if self.ledger.is_new(name, step or 0)
        ]
        for start in range(0, len(points), 1000):  # what MLflow takes at once
            self.experiment.log_batch(self._id, metrics=points[start : start + 1000])
        self.ledger.note((name, step or 0) for numbers, step, _ in rows for name in numbers)

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Add an image file; MLflow shows those of one name as a series over the steps."""
        from PIL import Image

        series = f"picture {name}"
        if step <= self.ledger.last.get(series, -1):
            return
        with Image.open(path) as image:
            self.experiment.log_image(self._id, image.convert("RGB"), key=plain_name(name), step=step, synchronous=True)
        self.ledger.note([(series, step)])

    def log_result(self, result: Mapping[str, Any]) -> None:
        """Describe the run by its final table, keep ``result.json``, add sizes and costs to the metrics."""
        self.experiment.set_tag(self._id, "mlflow.note.content", as_markdown(result_lines(result)))
        self.experiment.set_tag(self._id, "status", str(result["status"]))
        self.experiment.log_dict(self._id, _finite(dict(result)), "result.json")
        self.log_rows([(figures(result), int(result.get("steps", 0)), time.time())])

    def close(self, status: str) -> None:
        """End the record, and those of its groups until another part of them begins."""
        for identity in [self._id, *self._parents[::-1]]:
            self.experiment.set_terminated(identity, _ENDS[status] if identity == self._id else "FINISHED")


def _text(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text[:_LONGEST]


def _finite(node: Any) -> Any:
    """The node with numbers that JSON does not know as text."""
    if isinstance(node, dict):
        return {k: _finite(v) for k, v in node.items()}
    if isinstance(node, list):
        return [_finite(v) for v in node]
    return str(node) if isinstance(node, float) and not math.isfinite(node) else node
