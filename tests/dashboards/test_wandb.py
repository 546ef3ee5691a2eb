"""Weights & Biases: its real client, offline and against a small server of our own; one record for each run folder; sweeps by its agent."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from papermix.errors import UserError
from papermix.run.dashboards.sweep_file import sweep_file
from papermix.run.folder import read_json
from scripts import wandb_sweep
from tests import machine
from tests.dashboards.world import BIN, COMMAND, ROOT, WANDB, At, FakeWandb, series
from tests.machine import Killed

TINY = [*COMMAND, "trainer.max_epochs=1"]


def chunks(file: bytes, block: int = 32 * 1024, head: int = 7) -> Iterator[bytes]:
    """The records of wandb's own file: a log in blocks, each piece with checksum, length, and whether it is whole or a part."""
    at, parts = head, b""
    while at + head <= len(file):
        if block - at % block < head:
            at += block - at % block
            continue
        length, kind = int.from_bytes(file[at + 4 : at + 6], "little"), file[at + 6]
        parts += file[at + head : at + head + length]
        at += head + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def read_back(place: Path) -> tuple[list[dict[str, Any]], dict[str, Any], list[Any]]:
    """(lines, config, runs) of all offline files of a run folder."""
    from wandb.proto import wandb_internal_pb2

    lines, config, runs = [], {}, []
    for path in sorted((place / "wandb").glob("offline-run-*/*.wandb")):
        for data in chunks(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "history":
                lines.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
            elif kind == "run":
                runs.append(record.run)
                config |= {i.key: json.loads(i.value_json) for i in record.run.config.update}
            elif kind == "config":
                config |= {i.key: json.loads(i.value_json) for i in record.config.update}
    return lines, config, runs


def test_offline_and_continued(tmp_path: Path) -> None:
    place = tmp_path / "run"
    command = [*COMMAND, "logger=[csv,wandb]", "logger.wandb.mode=offline", "callbacks.checkpoints.every_n_steps=3"]
    command += ["experiment=avagrad/digits", "tags=[night]"]

    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        machine.run(command, place, At(10, kill))
    machine.run(command, place)
    lines, config, runs = read_back(place)
    assert {run.run_id for run in runs} == {read_json(place / "wandb.json")["id"]}
    for name, points in series(place).items():
        found = [(line["trainer/global_step"], line[name]) for line in lines if name in line]
        assert found == [(step, pytest.approx(value)) for step, value in points], name
    pictures = [line for line in lines if any(key.startswith("val/predictions") for key in line)]
    assert [line["trainer/global_step"] for line in pictures] == [6, 24]
    assert any(key.startswith("result/table") for line in lines for key in line)
    assert config["optimizer"]["lr"] == 0.1 and config["about"]["git"]["commit"]
    assert {"avagrad", "supervised", "digits", "night"} <= set(runs[-1].tags)
    assert runs[-1].display_name == "run"


@pytest.mark.slow
def test_online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "run"
    with FakeWandb() as server:
        for key, value in {**WANDB, "WANDB_BASE_URL": server.address}.items():
            monkeypatch.setenv(key, value)
        machine.run([*TINY, "logger=[csv,wandb]", "logger.wandb.project=papermix"], place)
        assert server.runs[0]["project"] == "papermix" and server.runs[0]["name"] == read_json(place / "wandb.json")["id"]
        lines = [json.loads(line) for line in server.lines]
    losses = [(line["trainer/global_step"], line["train/loss"]) for line in lines if "train/loss" in line]
    assert losses == [(step, pytest.approx(value)) for step, value in series(place)["train/loss"]]


def test_the_sweep_file_says_what_hydra_would_run() -> None:
    made = yaml.safe_load(wandb_sweep.main(["trainer.max_epochs=1", "optimizer.lr=0.1,0.3", "seed=range(1,4)", "model=mlp,small_cnn"]))
    assert made["method"] == "grid" and made["metric"] == {"name": "val/accuracy", "goal": "maximize"}
    assert made["parameters"] == {
        "model": {"values": ["mlp", "small_cnn"]},
        "optimizer.lr": {"values": [0.1, 0.3]},
        "seed": {"values": [1, 2, 3]},
    }
    assert made["program"] == "train.py" and "trainer.max_epochs=1" in made["command"]
    drawn = sweep_file(["optimizer.lr=tag(log,interval(0.01,1))", "dataset.batch_size=int(interval(8,64))"])
    assert drawn["method"] == "bayes"
    assert drawn["parameters"]["optimizer.lr"] == {"distribution": "log_uniform_values", "min": 0.01, "max": 1.0}
    assert drawn["parameters"]["dataset.batch_size"] == {"distribution": "int_uniform", "min": 8, "max": 64}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["optimizer.lr=0.1"], "nothing to sweep over"),
        (["model=mlp,resnet2"], "did you mean 'resnet20'"),
        (["optimizer.lr=0.1,abc"], "optimizer.lr='abc' is not of the right type"),
        (["seed=1,2", "logger=csv"], "logger lacks wandb"),
        (["seed=tag(log,int(interval(1,8)))"], "list them"),
        (["seed=1,2", 'stages={a: [], b: ["init_from=a"]}'], "several stages"),
        (["seed=1,"], "cannot be read"),
    ],
)
def test_the_sweep_file_refuses(overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        sweep_file(overrides)


def test_the_sweep_file_takes_a_search() -> None:
    with pytest.raises(UserError, match="list them"):
        sweep_file(["optimizer.lr=interval(0.1,1)"], method="grid")
    with pytest.raises(UserError, match="did you mean 'bayes'"):
        sweep_file(["seed=1,2"], method="bayse")
    with pytest.raises(UserError, match="--goal is needed"):
        sweep_file(["seed=1,2"], metric="parameters")
    assert sweep_file(["seed=1,2"], metric="parameters", goal="min")["metric"] == {"name": "parameters", "goal": "minimize"}


def test_the_agent_runs_a_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.wandb_agent import Agent

    lists = ["optimizer.lr=0.1,0.3", "seed=1,2", "model.hidden=choice([8],[16,8])", "logger=[csv,wandb]", "logger.wandb.mode=offline"]
    made = sweep_file([*TINY, *lists])
    monkeypatch.chdir(ROOT)
    for key, value in {"PATH": f"{BIN}:{os.environ['PATH']}", "WANDB_SWEEP_ID": "abcd1234", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(key, value)
    for key in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # which the agent sets
        monkeypatch.setenv(key, "")
    agent = Agent(None, multiprocessing.Queue(), sweep_id="abcd1234")
    agent._sweep_command = made["command"]
    point = {"optimizer.lr": {"value": 0.3}, "seed": {"value": 2}, "model.hidden": {"value": "[16,8]"}}
    agent._command_run({"run_id": "point0001", "program": made["program"], "args": point})
    assert agent._run_processes["point0001"].wait(240) == 0
    (place,) = (tmp_path / "outputs").iterdir()
    frozen = yaml.safe_load((place / "config.yaml").read_text())
    assert (frozen["optimizer"]["lr"], frozen["seed"], frozen["model"]["hidden"]) == (0.3, 2, [16, 8])
    assert read_json(place / "wandb.json")["id"] == "point0001"
    _, config, runs = read_back(place)
    assert runs[-1].sweep_id == "abcd1234" and config["optimizer.lr"] == 0.3 and config["optimizer"]["lr"] == 0.3
