"""Sweeps: frozen at launch, robust against failing jobs, ended by a table; searches that go on after a kill."""

import copy
import csv
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from papermix.run.sweep import Job, Table, best_first, row

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
defaults:
  - model: small
  - override hydra/sweeper: papermix
  - override hydra/hydra_logging: none
  - override hydra/job_logging: none
  - _self_
lr: 0.1
seed: 1
test: last
resume: null
stages: {}
stage: null
init_from: null
traceback: false
sweep_trial: null
paths: {outputs: outputs, run: null}
hydra:
  output_subdir: null
  run: {dir: "${run_dir:}"}
  sweep: {dir: "${sweep_dir:}", subdir: "${run_name:}"}
"""

# the same main as papermix/run/cli.py, around a task without torch
APP = """
import json, os, signal, sys, time
from pathlib import Path
os.environ["HYDRA_FULL_ERROR"] = "1"
sys.path[:0] = [{root!r}, {plugins!r}]
import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from papermix.errors import UserError
from papermix.run import check
from papermix.run.explain import explain
from papermix.run.names import register_resolvers
register_resolvers()
# this application has groups and keys of its own
check._check_added = check._check_groups = check.check_values = lambda *_: None

def task(cfg):
    place = Path(HydraConfig.get().runtime.output_dir)
    frozen = cfg._stages_["main"]
    with open("calls.txt", "a") as calls:
        calls.write(f"{{frozen.model.size}} {{frozen.lr}} {{frozen.seed}} {{os.getpid()}}\\n")
{body}
    value = 1 - abs(frozen.lr - 0.3) - 0.001 * frozen.seed
    return {{"metrics": {{"val/accuracy": value, "test/accuracy": value}}, "monitor": {{"name": "val/accuracy", "mode": "max"}},
            "wall_seconds": 1.0, "size": frozen.model.size}}

if __name__ == "__main__":
    try:
        hydra.main(config_path=os.path.abspath("conf"), config_name="train", version_base="1.3")(task)()
    except (Exception, KeyboardInterrupt) as error:
        print("error:", explain(error, sys.argv[1:]), file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    assert "torch" not in sys.modules
"""


class App:
    """A small Hydra application in a folder of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "conf" / "model").mkdir(parents=True)
        (place / "conf" / "hydra").mkdir()
        (place / "conf" / "hydra" / "sweeper").symlink_to(ROOT / "conf" / "hydra" / "sweeper")
        (place / "conf" / "train.yaml").write_text(CONFIG)
        (place / "conf" / "model" / "small.yaml").write_text("size: 1\n")
        (place / "conf" / "model" / "large.yaml").write_text("size: 9\n")
        self.body("")

    def body(self, code: str) -> None:
        """What the task does before it returns its result."""
        plugins = str(ROOT / "papermix" / "run" / "plugins")
        text = textwrap.indent(textwrap.dedent(code), "    ")
        (self.place / "app.py").write_text(APP.format(root=str(ROOT), plugins=plugins, body=text))

    def start(self, *args: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "app.py", "-m", *args]
        return subprocess.Popen(command, cwd=self.place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *args: str) -> SimpleNamespace:
        proc = self.start(*args)
        out, err = proc.communicate(timeout=120)
        return SimpleNamespace(code=proc.returncode, out=out, err=err)

    def calls(self) -> list[list[str]]:
        path = self.place / "calls.txt"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def table(self) -> dict[str, Any]:
        (path,) = self.place.glob("outputs/sweeps/*/sweep.json")
        return json.loads(path.read_text())


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(tmp_path)


def test_all_combinations_run_and_a_failing_one_stops_no_other(app: App) -> None:
    app.body(
        """
        if frozen.lr == 0.2 and frozen.seed == 1:
            raise UserError("there is no such data: fetch it.")
        """
    )
    done = app.run("lr=0.1,0.2,0.3", "seed=1,2")
    assert done.code == 1
    assert "run 3 of 6 failed (lr=0.2 seed=1): there is no such data: fetch it." in done.err
    assert "error: 1 of 6 runs failed: see outputs/sweeps/" in done.err
    assert "Traceback" not in done.err
    table = app.table()
    assert [r["number"] for r in table["runs"]] == [5, 6, 4, 1, 2, 3]
    assert [r["status"] for r in table["runs"]] == ["finished"] * 5 + ["failed"]
    assert table["runs"][-1]["error"] == "there is no such data: fetch it."
    assert table["command"] == "python train.py -m lr=0.1,0.2,0.3 seed=1,2"
    assert table["over_seeds"][0]["overrides"] == ["lr=0.3"]
    best = table["over_seeds"][0]
    assert best["metrics"][best["name"]]["mean"] == pytest.approx(0.9985)
    (place,) = (app.place / "outputs" / "sweeps").iterdir()
    assert place.name.startswith("lr=0.1,0.2,0.3,seed=1,2-")
    with open(place / "sweep.csv", newline="") as f:
        lines = list(csv.DictReader(f))
    assert lines[0]["lr"] == "0.3" and lines[0]["run"] == "5" and float(lines[0]["val/accuracy"]) == pytest.approx(0.999)
    assert "| 3 | 0.2 | 1 |" in (place / "sweep.md").read_text()
    assert "6 runs, best first" in done.out
    # each run has a folder of its own name, and nothing else stays behind
    folders = {r["folder"] for r in table["runs"]}
    assert len(folders) == 6 and all(Path(f).parent == place for f in folders)
    assert sorted(p.name for p in place.iterdir() if p.name.startswith(".")) == [".lock"]

    # the same command is the same sweep
    app.body("")
    again = app.run("lr=0.1,0.2,0.3", "seed=1,2")
    assert again.code == 0, again.err
    assert {r["folder"] for r in app.table()["runs"]} == folders


def test_a_fault_in_the_last_job_stops_the_sweep_before_the_first(app: App) -> None:
    done = app.run("model=small,large,smal")
    assert done.code == 1 and app.calls() == []
    assert "run 3 of 3 (model=smal): model has no option 'smal'" in done.err
    done = app.run("lr=0.1,0.2", "seed=1,one")
    assert "run 2 of 4 (lr=0.1 seed=one): seed='one' is not of the right type" in done.err and app.calls() == []
    done = app.run("lr=interval(0.1,0.2)")
    assert "add hydra/sweeper=optuna" in done.err and app.calls() == []


def test_editing_the_config_during_a_sweep_changes_nothing(app: App) -> None:
    app.body('Path("conf/model/large.yaml").write_text("size: 100\\n")\nPath("conf/train.yaml").write_text("broken: [")\n')
    done = app.run("model=small,large", "+twice=1,1")
    assert done.code == 0, done.err
    assert [c[0] for c in app.calls()] == ["1", "9"]
    assert "sweep of 2 runs (2 given twice)" in done.out


def test_ctrl_c_and_sigterm_stop_everything_and_still_write_the_table(app: App) -> None:
    # Lightning answers Ctrl-C with an exit of its own
    app.body(
        """
        if frozen.seed == 2 and not Path("told").exists():
            Path("told").touch()
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)
            except KeyboardInterrupt:
                sys.exit(1)
        if frozen.seed == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        """
    )
    done = app.run("seed=1,2,3,4")
    assert done.code == 1 and "stopped by the keyboard" in done.err
    assert [(r["number"], r["status"]) for r in app.table()["runs"]] == [
        (1, "finished"),
        (2, "stopped"),
        (3, "waiting"),
        (4, "waiting"),
    ]
    done = app.run("seed=1,2,3,4")
    assert done.code == 143 and "stopped by SIGTERM: the same command continues the sweep." in done.err
    assert [r["status"] for r in app.table()["runs"]] == ["finished", "finished", "stopped", "waiting"]


def test_joblib_runs_jobs_elsewhere_and_their_failures_come_back(app: App) -> None:
    app.body(
        """
        class Odd(Exception):
            def __init__(self, a, b):  # cannot be sent between processes
                super().__init__(a + b)
        print("chatter of a job")
        if frozen.seed == 2:
            raise Odd("odd ", "failure")
        if frozen.seed == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = app.run("seed=1,2,3,4", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert done.code == 1, done.err
    runs = {r["number"]: r for r in app.table()["runs"]}
    assert {n: r["status"] for n, r in runs.items()} == {1: "finished", 4: "finished", 2: "failed", 3: "failed"}
    assert "odd failure" in runs[2]["error"] and "its process died" in runs[3]["error"]
    assert "run 2 of 4 failed (seed=2)" in done.err
    assert "chatter" not in done.out and "chatter" in Path(runs[1]["folder"], "job.log").read_text()
    assert str(os.getpid()) not in {c[3] for c in app.calls()}


SEARCH = ("hydra/sweeper=optuna", "hydra.sweeper.direction=max", "lr=tag(log,interval(0.001,1))", "model=small,large")


def test_a_killed_search_goes_on_as_if_it_had_not_been(app: App, tmp_path_factory: pytest.TempPathFactory) -> None:
    kill = """
        if len(Path("calls.txt").read_text().splitlines()) == 4 and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if frozen.model.size == 9 and frozen.lr < 0.02:
            raise UserError("diverged.")
    """
    app.body(kill)
    assert app.run(*SEARCH, "hydra.sweeper.n_trials=5").code == -signal.SIGKILL
    # more trials are still the same study
    app.run(*SEARCH, "hydra.sweeper.n_trials=6")
    whole = App(tmp_path_factory.mktemp("whole"))
    (whole.place / "killed").touch()
    whole.body(kill)
    whole.run(*SEARCH, "hydra.sweeper.n_trials=6")
    drawn = [c[:3] for c in app.calls()]
    assert drawn[3] == drawn[4]  # the trial that was killed runs again under its own number
    assert drawn[:4] + drawn[5:] == [c[:3] for c in whole.calls()] and len(drawn) == 7
    first, second = app.table(), whole.table()
    assert [(r["number"], r["value"]) for r in first["runs"]] == [(r["number"], r["value"]) for r in second["runs"]]
    assert first["best"][0]["run"] == first["runs"][0]["number"]
    assert first["best"][0]["command"].startswith("python train.py ")
    (place,) = (app.place / "outputs" / "sweeps").iterdir()
    for name in ("history", "importance", "coordinates"):
        assert (place / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_parallel_coordinates_show_each_trial_on_each_axis() -> None:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    from papermix.run.search_pictures import coordinates

    spaces = {"lr": FloatDistribution(1e-4, 1.0, log=True), "width": IntDistribution(8, 64), "m": CategoricalDistribution(["a", "b"])}
    study = optuna.create_study(direction="minimize")
    drawn = [(0.001, 8, "a", 3.0), (0.01, 16, "b", 1.0), (0.1, 40, "a", 2.0)]
    for *values, loss in drawn[:1]:
        study.add_trial(optuna.create_trial(params=dict(zip(spaces, values)), distributions=spaces, value=loss))
    assert coordinates(study, "loss") is None
    for *values, loss in drawn[1:]:
        study.add_trial(optuna.create_trial(params=dict(zip(spaces, values)), distributions=spaces, value=loss))
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.PRUNED))
    figure = coordinates(study, "loss")
    assert figure is not None
    lines = [line.get_ydata().tolist() for line in figure.axes[0].lines[:3]]
    # worst first, so that the best lies on top
    expected = [[0.0, 0.0, 0.25, 1.0], [1.0, 1.0, 0.25, 0.5], [0.5, 0.25, 0.75, 0.0]]
    assert np.allclose(lines, expected)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["lr", "width", "m", "loss"]


def test_search_settings_are_checked_before_a_trial_runs(app: App) -> None:
    for extra, sentence in [
        (["hydra.sweeper.sampler=tpee"], "hydra.sweeper.sampler='tpee' is not known (did you mean 'tpe'?)"),
        (["hydra.sweeper.sampler=grid"], "grid needs listed values, but lr is an interval"),
        (["hydra.sweeper.direction=up"], "hydra.sweeper.direction='up' is not known"),
        (["hydra.sweeper.pruner_options={n_warm_steps:1}", "hydra.sweeper.pruner=median"], "did you mean 'n_warmup_steps'?"),
        (["model=small,lage"], "model has no option 'lage'"),
    ]:
        done = app.run(*SEARCH, *extra)
        assert done.code == 1 and sentence in done.err, done.err
    assert app.calls() == []


def test_grid_and_trade_offs(app: App) -> None:
    done = app.run(
        "hydra/sweeper=optuna", "hydra.sweeper.sampler=grid", "hydra.sweeper.metric=[val/accuracy,size]",
        "hydra.sweeper.direction=[max,min]", "lr=0.1,0.3", "model=small,large",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert sorted(c[:2] for c in app.calls()) == [["1", "0.1"], ["1", "0.3"], ["9", "0.1"], ["9", "0.3"]]
    table = app.table()
    assert [b["command"] for b in table["best"]] == ["python train.py " + " ".join(sorted(["lr=0.3", "model=small"]))]
    assert table["metrics"] == ["val/accuracy", "size"]


def test_pruning_stops_the_hopeless_and_only_them(app: App) -> None:
    import optuna

    from callbacks.pruning import Pruned, Pruning

    app.body('(place / "trial.json").write_text(json.dumps(OmegaConf.to_container(frozen.sweep_trial)))\n')
    args = ["hydra/sweeper=optuna", "hydra.sweeper.direction=max", "lr=0.1,0.3", "hydra.sweeper.n_trials=3"]
    options = ["hydra.sweeper.pruner=median", "hydra.sweeper.pruner_options={n_startup_trials:1}"]
    assert app.run(*args, *options).code == 0
    trial = json.loads(next(app.place.glob("outputs/sweeps/*/*/trial.json")).read_text())
    # what the callback gets is what the sweeper hands out; its study is played here with two trials more
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(trial["storage"]))
    study = optuna.load_study(study_name=trial["study"], storage=storage)
    assert len(study.trials) == 3 and all(t.state.is_finished() for t in study.trials)

    class Trainer:
        state = SimpleNamespace(fn="fit")
        sanity_checking, is_global_zero, world_size = False, True, 1

    def live(number: int, values: list[float]) -> Pruning:
        callback = Pruning(**{**trial, "number": number})
        for value in values:
            trainer: Any = Trainer()
            trainer.callback_metrics = {"val/accuracy": value}
            callback.on_validation_end(trainer, SimpleNamespace(task=SimpleNamespace(monitor="val/accuracy")))  # type: ignore[arg-type]
        return callback

    good = study.ask().number
    assert live(good, [0.5, 0.8, 0.9]).state_dict() == {"validations": 3}
    study.tell(good, 0.9)
    assert study.trials[good].intermediate_values == {1: 0.5, 2: 0.8, 3: 0.9}
    bad = study.ask().number
    with pytest.raises(Pruned, match="pruned after 2 validations"):
        live(bad, [0.6, 0.1, 0.9])
    study.tell(bad, state=optuna.trial.TrialState.PRUNED)
    live(bad, [0.0])  # a closed trial is left alone


def test_a_pruned_trial_is_told_so(app: App) -> None:
    app.body('if frozen.seed == 2:\n    return {"status": "pruned", "metrics": {}}\n')
    args = ["hydra/sweeper=optuna", "hydra.sweeper.sampler=grid", "hydra.sweeper.direction=max", "seed=1,2,3"]
    assert app.run(*args).code == 0
    assert sorted(r["status"] for r in app.table()["runs"]) == ["finished", "finished", "pruned"]


def result(value: float, mode: str = "max") -> dict[str, Any]:
    return {
        "status": "finished",
        "result": {"metrics": {"val/x": value}, "monitor": {"name": "val/x", "mode": mode}, "wall_seconds": 1},
    }


@pytest.mark.parametrize(("mode", "order"), [("max", [3, 1, 2, 4, 5]), ("min", [1, 3, 2, 4, 5])])
def test_order_of_the_table(mode: str, order: list[int]) -> None:
    outcomes: list[Any] = [
        result(0.1, mode),
        result(float("nan"), mode),
        result(0.7, mode),
        {"status": "failed", "error": "no | good"},
        None,
    ]
    rows = [row(Job(n, [f"a={n}", "b=1"], Path(str(n))), outcome) for n, outcome in enumerate(outcomes, 1)]
    assert [r.number for r in best_first(rows)] == order
    table = Table(rows, "c")
    assert table.keys == ["a"]
    assert table.lines()[0] == ["run", "a", "val/x", "time", "status", "what happened"]


def test_frozen_loader_travels_without_what_it_need_not_have(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from papermix.run.sweep import FrozenLoader

    class Inner:
        class repository:
            pass

    loader = FrozenLoader(Inner(), OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    loader._file(["a=1"]).parent.mkdir()
    loader._file(["a=1"]).write_bytes(pickle.dumps(OmegaConf.create({"a": 1})))
    other = pickle.loads(pickle.dumps(loader))
    assert other.inner is None and other.load_sweep_config(None, ["a=1"]).a == 1
    first = other.load_sweep_config(None, ["a=1"])
    first.a = 2
    assert other.load_sweep_config(None, ["a=1"]).a == 1
    assert copy.deepcopy(loader.inner.repository) is loader.inner.repository


def test_spaces_are_read_from_sweep_overrides() -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from papermix.errors import UserError
    from papermix.run import search

    def read(text: str) -> Any:
        return search.distribution(OverridesParser.create().parse_override(text))

    lr = read("lr=tag(log,interval(0.001,1))")
    assert (lr.low, lr.high, lr.log) == (0.001, 1.0, True)
    depth = read("depth=int(interval(1,8))")
    assert (depth.low, depth.high) == (1, 8) and isinstance(depth.low, int)
    width = read("width=range(16,65,16)")
    assert (width.low, width.high, width.step) == (16, 64, 16)
    assert read("model=a,b").choices == ("a", "b")
    assert read("flag=true,false").choices == ("True", "False")
    assert search.corners({"a": lr, "m": read("m=x,y")}) == [["a=0.001", "m=x"], ["a=1.0", "m=x"], ["a=0.001", "m=y"]]
    assert search.grid_size({"w": width, "m": read("m=x,y")}) == 8
    assert [search.as_text(v) for v in (0.0123456789, 3.0, 1e-7, 4, "x")] == ["0.0123457", "3.0", "1e-07", "4", "x"]
    for bad, sentence in [
        ("m=tag(log,choice(a,b))", "goes with interval"),
        ("a=tag(logg,interval(1,2))", "the tag 'logg' is not known"),
        ("a=tag(log,interval(0,1))", "is no space to search in"),
        ("a=range(5,5)", "no value"),
    ]:
        with pytest.raises(UserError, match=sentence):
            read(bad)
    with pytest.raises(UserError, match=r"no number 'val/acuracy' \(did you mean 'val/accuracy'"):
        search.objective({"metrics": {"val/accuracy": 1.0}}, "val/acuracy")
    assert search.objective({"parameters": {"total": 7}}, "parameters") == 7.0


def test_a_journal_cut_short_is_mended(tmp_path: Path) -> None:
    from papermix.run.search import mend_journal, open_study

    path = tmp_path / "study.journal"
    open_study(str(path), "s", ["min"]).ask()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "worker')
    Path(f"{path}.lock").symlink_to(path)
    mend_journal(path)
    assert path.read_bytes() == whole
    assert len(open_study(str(path), "s", ["min"]).trials) == 1
