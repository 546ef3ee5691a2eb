"""ALERT in whole runs: simulated and served streams, networks of other runs, what is written, bad input."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.alert import AlertServing, AlertSimulation
from papermix.alert.profile import Profile
from papermix.errors import UserError
from papermix.run.stage import load_network
from tests.machine import Killed, StopBefore, run, weights
from tests.settings import TINY

SMALL = [*TINY, "dataset.batch_size=8", "dataset.limit=160"]
NESTED = [*SMALL, "model=nested_mlp", "model.width=4", "model.layers=1", "model.exits=3", "method=multi_exit"]
SIMULATED = ["callbacks=[checkpoints,rng,nonfinite,alert_simulation]", "callbacks.alert_simulation.inputs=60"]
SERVED = [
    "callbacks=[checkpoints,rng,nonfinite,alert]", "callbacks.alert.inputs=12", "callbacks.alert.repeats=2",
    "callbacks.alert.phases=[{inputs:4,load:0},{inputs:4,load:1}]", "callbacks.alert.deadline=20",
    "callbacks.alert.baselines=[no_coordination,oracle,oracle_static]",
]  # fmt: skip
KEYS = ("accuracy", "late", "over_budget", "energy", "latency")


def test_a_simulated_stream_of_the_run_s_network(tmp_path: Path) -> None:
    found = run([*NESTED, *SIMULATED, "callbacks.alert_simulation.flops_per_second=1e5"], tmp_path)
    names = ["", "_mean_only", "_oracle", "_oracle_static", "_app_only", "_sys_only", "_no_coordination"]
    assert all(f"stream/{key}{name}" in found["metrics"] for key in KEYS for name in names)
    profile = Profile.load(tmp_path / "profile.json")
    assert profile.settings == ["15 W", "25 W", "40 W"] and profile.fail == 0.1
    flops = found["metrics"]["test/flops_exit1"]
    assert profile.configurations[0].latency[0] == pytest.approx(1.8 * flops / 1e5)
    with open(tmp_path / "stream.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7 * 60 and {r["scheduler"] for r in rows} >= {"alert", "oracle"}
    score = [float(r["score"]) for r in rows if r["scheduler"] == "alert"]
    assert sum(score) / 60 == pytest.approx(found["metrics"]["stream/accuracy"]) and set(score) <= {0.0, 0.1, 1.0}
    assert (tmp_path / "pictures" / "stream.png").stat().st_size > 20000
    assert "stream/accuracy" in (tmp_path / "metrics.csv").read_text()


def test_the_same_seed_meets_the_same_stream_also_when_stopped_between(tmp_path: Path) -> None:
    command = [*NESTED, *SIMULATED, "callbacks.alert_simulation.deadline=[0.2,2]"]
    whole = run(command, tmp_path / "whole")
    with pytest.raises(Killed):
        run(command, tmp_path / "cut", StopBefore(5))
    cut = run(command, tmp_path / "cut")
    assert whole["metrics"] == cut["metrics"]
    other = run([*command, "callbacks.alert_simulation.seed=7"], tmp_path / "other")
    assert other["metrics"]["stream/energy"] != whole["metrics"]["stream/energy"]
    # a recorded environment is met again, whatever the seed
    trace = f"callbacks.alert_simulation.trace={tmp_path / 'whole' / 'stream.csv'}"
    run([*command, "callbacks.alert_simulation.seed=7", trace], tmp_path / "again")
    first, second = (list(csv.DictReader(open(tmp_path / name / "stream.csv"))) for name in ("whole", "again"))
    assert [r["slowdown"] for r in first[:60]] == [r["slowdown"] for r in second[:60]]


def test_stated_networks_need_no_training(tmp_path: Path) -> None:
    tiny = ["hardware=cpu", "hardware.threads=1", "dataset.fake=true", "dataset.limit=160", "model.hidden=[4]"]
    found = run(["experiment=alert/simulation", *tiny, "callbacks.alert_simulation.inputs=400"], tmp_path)
    metrics = found["metrics"]
    assert found["steps"] == 0 and metrics["stream/accuracy_oracle"] == pytest.approx(0.65, abs=0.002)
    assert (
        metrics["stream/accuracy"] == pytest.approx(0.648, abs=0.006)
        and metrics["stream/late"] < metrics["stream/late_mean_only"]
    )


def test_a_served_stream_with_networks_of_other_runs(tmp_path: Path) -> None:
    plain = [*SMALL, "model=mlp", "model.hidden=[8]"]
    run(plain, tmp_path / "plain")
    before = torch.get_num_threads()
    command = [*NESTED, *SERVED, f"callbacks.alert.runs=[{tmp_path / 'plain'}]"]
    found = run(command, tmp_path / "served")
    assert torch.get_num_threads() == before
    metrics = found["metrics"]
    assert all(f"stream/{key}{name}" in metrics for key in KEYS for name in ("", "_oracle", "_oracle_static", "_no_coordination"))
    assert metrics["stream/decision_seconds"] > 0 and metrics["stream/deadline"] > 0
    profile = Profile.load(tmp_path / "served" / "profile.json")
    assert (
        len(profile.configurations) == 4
        and set(profile.networks) == {"network", "plain"}
        and profile.settings == ["1 thread", "2 threads"]
    )
    rows = list(csv.DictReader(open(tmp_path / "served" / "stream.csv")))
    assert [r["phase"] for r in rows[:12]] == list("000011110000")
    # what that machine is and met, simulated
    place = tmp_path / "served"
    again = [
        f"callbacks.alert_simulation.profile={place / 'profile.json'}",
        f"callbacks.alert_simulation.trace={place / 'stream.csv'}",
    ]
    simulated = run([*SMALL, "model=mlp", "model.hidden=[8]", *SIMULATED, *again], tmp_path / "simulated")
    assert Profile.load(tmp_path / "simulated" / "profile.json") == profile and "stream/accuracy_oracle" in simulated["metrics"]
    # the other run's network is what it was after its training
    network = load_network(str(tmp_path / "plain"), tmp_path / "served")
    trained = {k.removeprefix("model."): v for k, v in weights(tmp_path / "plain").items() if k.startswith("model.")}
    assert all(torch.equal(v, trained[k]) for k, v in network.state_dict().items())


def test_loading_a_network_draws_no_random_number(tmp_path: Path) -> None:
    run([*SMALL, "model=mlp", "model.hidden=[8]"], tmp_path / "plain")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_network(str(tmp_path / "plain"), tmp_path)
    assert torch.equal(torch.rand(1), expected)


SIM: dict[str, Any] = {"settings": [{"power": 40}], "phases": [{"inputs": 10}]}
SERVE: dict[str, Any] = {"threads": [1], "phases": [{"inputs": 10, "load": 0}]}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scheduler": "alrt"}, "did you mean 'alert'"),
        ({"baselines": ["oracle", "statc"]}, "no scheduler 'statc'"),
        ({"deadline": [2.0, 1.0]}, "the smaller one first"),
        ({"deadline": 0}, "above 0"),
        ({"objective": "energy"}, "needs an accuracy"),
        ({"objective": "time"}, "must be accuracy or energy"),
        ({"inputs": 0}, "inputs=0"),
        ({"settings": [{"pwer": 3}]}, "did you mean 'power'"),
        ({"settings": []}, "settings is empty"),
        ({"settings": [{"power": 4}, {"power": 4}]}, "twice"),
        ({"settings": [{"power": 4, "slowdown": 0.0}]}, "must be above 0"),
        ({"phases": [{"inputs": 0}]}, "cannot be"),
        ({"phases": []}, "phases is empty"),
        ({"stated": {"n": {"latency": [0.1]}}}, r"stated.n lacks accuracy"),
        ({"flops_per_second": 0}, "above 0"),
    ],
)
def test_a_simulation_that_cannot_be_is_refused_in_one_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        AlertSimulation(**{**SIM, **options})
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threads": []}, "different numbers"),
        ({"threads": [0]}, "threads=0"),
        ({"phases": [{"inputs": 5, "load": -1}]}, "load of at least 0"),
        ({"phases": [{"inputs": 5, "laod": 1}]}, "did you mean 'load'"),
        ({"batch": 0}, "batch=0"),
        ({"idle_watts": -1.0}, "watts cannot be"),
    ],
)
def test_a_machine_that_cannot_be_is_refused_in_one_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        AlertServing(**{**SERVE, **options})
    assert "\n" not in str(caught.value)


def test_caps_without_rapl_and_data_without_labels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("callbacks.alert.Rapl.find", lambda: None)
    with pytest.raises(UserError, match="RAPL cannot be read"):
        AlertServing(**SERVE, caps=[15])
    text = [*TINY, "dataset=pydocs_char", "dataset.batch_size=4", "dataset.seq_len=12", "dataset.limit=1200", "model=lstm_lm"]
    with pytest.raises(UserError, match="needs 'label'"):
        run([*text, "model.width=8", "callbacks=[checkpoints,rng,alert]"], tmp_path)


def test_a_run_that_is_named_wrongly(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        run([*NESTED, *SERVED, "callbacks.alert.runs=[nowhere]"], tmp_path)
