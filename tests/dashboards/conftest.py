"""The run against which all others are held: the same one with no dashboard at all."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from papermix.run import loggers
from tests.dashboards.world import COMMAND, outcome


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """What the run comes to with ``logger=csv``."""
    place: Path = tmp_path_factory.mktemp("alone")
    return outcome(COMMAND, place)


@pytest.fixture(scope="session")
def _empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow: making one takes seconds."""
    place: Path = tmp_path_factory.mktemp("empty")
    logger = loggers.mlflow(str(place), timeout=60)
    logger.log_hyperparams({})
    logger.close("finished")
    client = logger.experiment
    for run in client.search_runs([client.get_experiment_by_name("papermix").experiment_id]):
        client.delete_run(run.info.run_id)
    client.rename_experiment(client.get_experiment_by_name("papermix").experiment_id, "of the fixture")
    return place / "mlflow.db"


@pytest.fixture
def outputs(_empty: Path, tmp_path: Path) -> Path:
    """The folder of all runs, with a database in which nothing is."""
    folder = tmp_path / "outputs"
    folder.mkdir()
    shutil.copy(_empty, folder / "mlflow.db")
    return folder
