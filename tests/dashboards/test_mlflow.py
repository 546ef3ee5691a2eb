"""MLflow: a sweep of runs of two stages as one tree of records with all that is known about them; continued runs go on in theirs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from papermix.run.folder import read_json
from tests import machine
from tests.dashboards.world import COMMAND, ROOT, At, outcome, series
from tests.machine import Killed, states_equal

STAGES = 'stages={pretrain: [], probe: ["method=linear_probe","init_from=pretrain","trainer.max_epochs=1"]}'


def client(outputs: Path) -> Any:
    """What reads the database."""
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")


def records(outputs: Path) -> dict[str, Any]:
    """name -> record, of all in the database."""
    reader = client(outputs)
    return {r.info.run_name: r for r in reader.search_runs([reader.get_experiment_by_name("papermix").experiment_id])}


def history(outputs: Path, identity: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of a metric."""
    return [(m.step, m.value) for m in client(outputs).get_metric_history(identity, name)]


def test_a_continued_run_goes_on_in_its_record(outputs: Path, tmp_path: Path) -> None:
    often = [*COMMAND, "logger=[csv,mlflow]", "callbacks.checkpoints.every_n_steps=3", "experiment=avagrad/digits", "tags=[night]"]
    place = tmp_path / "cut"

    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        machine.run(often, place, At(10, kill))
    assert records(outputs)["cut"].info.status == "FAILED"
    first, second = outcome(often, place), outcome([*often, "logger=csv"], tmp_path / "whole")
    assert states_equal(first, second)
    (record,) = records(outputs).values()
    for name, points in series(place).items():
        found = history(outputs, record.info.run_id, name)
        assert [step for step, _ in found] == [step for step, _ in points], name
        assert [value for _, value in found] == pytest.approx([value for _, value in points])
    assert record.info.status == "FINISHED"
    # the whole config as it is typed
    assert record.data.params["optimizer.lr"] == "0.1" and record.data.params["trainer.max_epochs"] == "4"
    assert record.data.params["stages"] == "null" and record.data.params["tags"] == '["night"]'
    tags = record.data.tags
    assert (tags["paper"], tags["dataset"], tags["method"], tags["tags"]) == ("avagrad", "digits", "supervised", "night")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert tags["mlflow.source.git.commit"] == commit and tags["git.dirty"] in ("true", "false")
    assert "| test accuracy | " in tags["mlflow.note.content"]
    assert record.data.metrics["result/parameters"] > 100
    files = [f.path for f in client(outputs).list_artifacts(record.info.run_id)]
    assert {"config.yaml", "images", "result.json"} <= set(files)
    steps = [f.path.split("+step+")[1].split("+")[0] for f in client(outputs).list_artifacts(record.info.run_id, "images")]
    # a picture and its small copy
    assert sorted(steps, key=int) == ["6", "6", "24", "24"]


def test_a_record_that_was_deleted_is_made_anew(outputs: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    command = [*COMMAND, "logger=[csv,mlflow]", "trainer.max_epochs=1"]
    machine.run(command, place)
    (record,) = records(outputs).values()
    client(outputs).delete_run(record.info.run_id)
    (place / "result.json").unlink()
    machine.run(command, place)
    assert records(outputs)["run"].info.run_id == read_json(place / "mlflow.json")["id"] != record.info.run_id


@pytest.mark.slow
def test_a_sweep_is_a_tree(outputs: Path) -> None:
    command = [*COMMAND, "logger=[csv,mlflow]", "trainer.max_epochs=1", STAGES, "seed=1,2"]
    env = {**os.environ, "PAPERMIX_OUTPUTS": str(outputs)}
    done = subprocess.run(
        [sys.executable, "train.py", "-m", *command], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (sweep,) = (outputs / "sweeps").iterdir()
    found = records(outputs)
    runs = sorted(p.name for p in sweep.iterdir() if p.is_dir() and not p.name.startswith("."))
    assert len(runs) == 2 and sorted(found) == sorted([sweep.name, *runs, *(f"{r}/{s}" for r in runs for s in ("pretrain", "probe"))])
    for run in runs:
        assert found[run].data.tags["mlflow.parentRunId"] == found[sweep.name].info.run_id
        for stage, method in (("pretrain", "supervised"), ("probe", "linear_probe")):
            tags = found[f"{run}/{stage}"].data.tags
            assert tags["mlflow.parentRunId"] == found[run].info.run_id
            assert (tags["stage"], tags["sweep"], tags["method"]) == (stage, sweep.name, method)
            assert tags["mlflow.source.name"].startswith("python train.py ")
    assert {r.info.status for r in found.values()} == {"FINISHED"}
