"""Reports: runs equal up to the seed are one line, the best first; what cannot be read is told and left out."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from papermix.errors import UserError
from papermix.run.reporting import report, tables
from papermix.run.reporting.papers import Paper, Published
from papermix.run.reporting.runs import choices, curves, groups, holds, identity, read_runs, select
from scripts.report import main
from tests.scripts.made import make_run


@pytest.fixture()
def root(tmp_path: Path) -> Path:
    """Two settings with two seeds each, on digits; one run on another dataset."""
    runs = tmp_path / "runs"
    for seed, low, high in ((1, 0.90, 0.97), (2, 0.92, 0.99)):
        make_run(runs, f"a{seed}", ["model=mlp", f"seed={seed}"], {"test/accuracy": low, "val/accuracy": 0.9, "val/loss": 0.3})
        make_run(
            runs, f"b{seed}", ["model=small_cnn", f"seed={seed}"], {"test/accuracy": high, "val/loss": 0.2}, density=0.5,
            effective_flops=1000, tags=["night"],
        )  # fmt: skip
    make_run(runs, "c", ["dataset=fashion_mnist"], {"test/accuracy": 0.8, "val/loss": 0.5})
    return runs


def test_runs_equal_up_to_the_seed_are_one_line(root: Path) -> None:
    found, notes = report.sections(read_runs(root).runs, {})
    assert not notes and [s.dataset for s in found] == ["digits", "fashion_mnist"]
    best, second = found[0].groups
    assert (best.name, second.name) == ("model=small_cnn", "model=mlp")
    assert best.mean == pytest.approx(0.98) and best.std == pytest.approx(0.0141421, rel=1e-5) and len(best.values) == 2
    header, lines = tables.lines(found[0])
    assert lines[0] == ["model=small_cnn", "2", "98.00 %", "± 1.41 %", "1 k", "50 %", "1 k", "10 s"]
    assert header[2] == "test accuracy" and "published" not in header


def test_less_is_better_for_a_loss(root: Path) -> None:
    found, notes = report.sections(read_runs(root).runs, {}, "val/loss")
    assert found[0].mode == "min" and [g.name for g in found[0].groups] == ["model=small_cnn", "model=mlp"]
    found, notes = report.sections(read_runs(root).runs, {}, "val/accuracy")
    assert len(notes) == 1 and "3 runs without val/accuracy were left out" in notes[0]
    with pytest.raises(UserError, match=r"no run has a metric 'val/los' \(did you mean 'val/loss'\?\)"):
        report.sections(read_runs(root).runs, {}, "val/los")


def test_identity_forgets_seed_folder_and_tags_only(root: Path) -> None:
    by = {run.folder.name: run for run in read_runs(root).runs}
    assert identity(by["a1"]) == identity(by["a2"]) != identity(by["b1"])
    lr = make_run(root, "d", ["model=mlp", "optimizer.lr=0.2"], {"test/accuracy": 0.9})
    assert identity(next(r for r in read_runs(root).runs if r.folder == lr)) != identity(by["a1"])
    # split_seed is no seed of the run, although it may be the same number
    config = lr / "config.yaml"
    config.write_text(config.read_text().replace("0.2", "0.1"))
    assert identity(next(r for r in read_runs(root).runs if r.folder == lr)) == identity(by["a1"])
    config.write_text(config.read_text().replace("split_seed: 0", "split_seed: 1"))
    assert identity(next(r for r in read_runs(root).runs if r.folder == lr)) != identity(by["a1"])


def test_a_repeated_seed_counts_once(root: Path) -> None:
    make_run(root, "again", ["model=mlp", "seed=1"], {"test/accuracy": 0.91})
    kept, repeats = groups(read_runs(root).runs)
    assert repeats == 1 and sorted(len(same) for same in kept.values()) == [1, 2, 2]
    _, notes = report.sections(read_runs(root).runs, {})
    assert notes == ["1 repeats of a seed were left out (of each seed the newest run counts)."]


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        (["model=mlp"], ["a1", "a2", "c"]),
        (["model=mlp,small_cnn", "dataset=digits"], ["a1", "a2", "b1", "b2"]),
        (["model=small*", "seed=2"], ["b2"]),
        (["seed=1,2", "tag=night"], ["b1", "b2"]),
        (["optimizer.lr=1e-1", "dataset=fashion*"], ["c"]),
        (["model.widths=[32, 64]", "paper=null", "seed=2"], ["a2", "b2"]),
        (["tag=day"], []),
    ],
)
def test_where(root: Path, conditions: list[str], names: list[str]) -> None:
    for run in (runs := read_runs(root).runs):
        run.configs[0]["paper"] = None
    assert [run.folder.name for run in select(runs, conditions)] == names


def test_where_that_cannot_be_meant(root: Path) -> None:
    runs = read_runs(root).runs
    with pytest.raises(UserError, match=r"no run has a key 'optimizer\.l' \(did you mean 'optimizer\.lr'\?\)"):
        select(runs, ["optimizer.l=0.1"])
    with pytest.raises(UserError, match="write key=value"):
        select(runs, ["mlp"])


def test_choices_are_those_of_the_command_line_its_recipe_and_the_defaults() -> None:
    chosen = choices(["experiment=foundation/pydocs_char", "optimizer=sgd", "optimizer.lr=3"])
    assert chosen["dataset"] == "pydocs_char" and chosen["optimizer"] == "sgd" and chosen["method"] == "supervised"
    assert "optimizer.lr" not in chosen
    assert choices([])["dataset"] == "digits" and choices(["callbacks=[default,ema]"])["callbacks"] == "[default,ema]"


def test_published_numbers_stand_beside_measured_ones(root: Path) -> None:
    numbers = (
        Published("test/accuracy", "digits", "mlp", 0.95, "Table 1"),
        Published("test/accuracy", "digits", "mlp", 0.93, "Table 2", ("optimizer=adam",)),
        Published("test/accuracy", "cifar10", "mlp", 0.5, "Table 3"),
    )
    papers = {"ours": Paper("ours", "T", ("A",), "V", 2020, None, (), numbers)}
    make_run(root, "p", ["model=mlp", "optimizer.lr=0.3"], {"test/accuracy": 0.94}, paper="ours")
    make_run(root, "q", ["optimizer=adam", "optimizer.lr=0.4"], {"test/accuracy": 0.96}, paper="ours")
    found, _ = report.sections(read_runs(root).runs, papers)
    header, lines = tables.lines(found[0])
    shown = {line[0]: line[-1] for line in lines}
    assert header[-1] == "published"
    assert shown["model=mlp optimizer.lr=0.3"] == "95.00 % (ours, Table 1)"
    assert shown["optimizer=adam optimizer.lr=0.4"] == "95.00 % (ours, Table 1), 93.00 % (ours, Table 2)"
    assert shown["model=mlp"] == ""


def test_unusable_results_are_named_and_counted(root: Path, capsys: pytest.CaptureFixture) -> None:
    for name, text in {"broken": '{"metrics": {', "list": "[1]", "empty": "{}"}.items():
        (root / name).mkdir()
        (root / name / "result.json").write_text(text)
    (root / "running").mkdir()
    (root / "running" / "config.yaml").write_text("seed: 1")
    (root / "a1" / "metrics.csv").write_text("step,epoch,name,value\n1,0,val/accuracy,high\n")
    main([str(root)])
    out, err = capsys.readouterr()
    assert "5 of 5 runs, 1 unfinished, 3 unreadable" in out
    assert "runs/running is not finished (stopped or still running, before its first number)" in err
    for name in ("broken", "list", "empty"):
        assert sum(f"{name}/result.json cannot be used" in line for line in err.splitlines()) == 1
    page = (root / "report" / "report.md").read_text()
    assert "a1/metrics.csv has no curves (line 2 is no number)" in page


def test_a_run_of_stages_is_one_run(root: Path) -> None:
    place = make_run(root, "staged", ["model=mlp"], {"test/accuracy": 0.5}, stages_done=["pretrain", "probe"])
    for name in ("pretrain", "probe"):
        stage = make_run(place, name, ["model=mlp"], {"test/accuracy": 0.4}, stage=name)
        result = json.loads((stage / "result.json").read_text())
        (stage / "result.json").write_text(json.dumps({k: v for k, v in result.items() if k != "stages_done"}))
    (place / "config.yaml").unlink()
    found = read_runs(root)
    staged = [run for run in found.runs if "staged" in run.folder.parts]
    assert len(found.runs) == 6 and not found.problems and len(staged) == 1
    assert staged[0].metrics_file == place / "probe" / "metrics.csv" and holds(staged[0], "model.name=mlp")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"metrics": [1]}, "its metrics is no dict"),
        ({"seed": "one"}, "its seed is no int"),
        ({"command": None}, "its command is no str"),
        ({"command": "python 'train.py"}, "No closing quotation"),
        ({"monitor": "val/accuracy"}, "its monitor is no dict"),
        ({"monitor": {"name": "val/accuracy"}}, "its monitor has no name and mode"),
        ({"tags": 3}, "its tags is no list"),
        ({"stages_done": ["nowhere"]}, "No such file"),
    ],
)
def test_a_result_of_the_wrong_kind_is_named_and_no_other_suffers(root: Path, change: dict, why: str) -> None:
    path = root / "a1" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    found = read_runs(root)
    assert len(found.runs) == 4 and len(found.problems) == 1
    assert "a1/result.json cannot be used" in found.problems[0] and why in found.problems[0]


def test_unfinished_runs_say_how_far_they_came(root: Path) -> None:
    sweep = root / "sweep"
    rows = [
        {"folder": "/moved/away/sweep/f", "status": "failed", "error": "out of\n  memory."},
        {"folder": "/moved/away/sweep/w", "status": "waiting", "error": None},
        {"folder": "/moved/away/sweep/s", "status": "stopped", "error": "stopped: the same command continues it"},
        {"folder": "/moved/away/sweep/done", "status": "finished", "error": None},
    ]
    make_run(sweep, "done", ["model=mlp", "seed=3"], {"test/accuracy": 0.9})
    (sweep / "sweep.json").write_text(json.dumps({"runs": rows}))
    (sweep / "f").mkdir()
    (sweep / "f" / "config.yaml").write_text("seed: 1")
    crashed = root / "crashed"
    crashed.mkdir()
    (crashed / "origin.json").write_text(json.dumps({"stages": ["main"]}))
    (crashed / "error.txt").write_text("Traceback\n  line\nValueError: bad thing\n")
    staged = root / "staged"  # its first stage is done: neither stage is a run
    make_run(staged, "pretrain", ["model=mlp"], {"test/accuracy": 0.4}, stage="pretrain")
    result = json.loads((staged / "pretrain" / "result.json").read_text())
    (staged / "pretrain" / "result.json").write_text(json.dumps({k: v for k, v in result.items() if k != "stages_done"}))
    (staged / "probe").mkdir()
    (staged / "probe" / "config.yaml").write_text("seed: 1")
    (staged / "origin.json").write_text(json.dumps({"stages": ["pretrain", "probe"]}))
    make_run(root, "pruned", ["model=mlp"], {"val/accuracy": 0.1}, status="pruned", steps=12)
    found = read_runs(root)
    assert len(found.runs) == 6 and not found.problems
    assert {str(u.folder.relative_to(root)): u.why for u in found.unfinished} == {
        "sweep/f": "failed: out of memory.",
        "sweep/w": "waiting",
        "sweep/s": "stopped: the same command continues it",
        "crashed": "failed: ValueError: bad thing",
        "staged": "stopped or still running, after step 30",
        "pruned": "pruned by the search, after step 12",
    }


def test_several_folders_are_one_report_and_each_run_counts_once(root: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    files = main([str(root / "a1"), str(root / "a2"), str(root / "b1"), str(root / "a1" / ".." / "b1")])
    assert {p.name for p in files if p.parent == outputs / "report"} >= {"report.html", "report.md", "report.tex", "report.csv"}
    with open(outputs / "report" / "report.csv", newline="") as file:
        assert [(row["run"], row["seeds"]) for row in csv.DictReader(file)] == [("model=small_cnn", "1"), ("model=mlp", "1 2")]
    assert main([str(root), "--to", str(tmp_path / "here")])[0] == tmp_path / "here" / "report.html"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write into .*: choose another folder with --to FOLDER"):
        main([str(root), "--to", str(tmp_path / "file")])


def test_runs_without_a_monitored_metric_need_one_named(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "a", [], {"loss": 1.0}, monitor=None)
    with pytest.raises(UserError, match="has no finished run with a monitored metric: name one of its numbers with --metric"):
        main([str(tmp_path / "runs")])


def test_names_are_no_markup(root: Path, capsys: pytest.CaptureFixture) -> None:
    make_run(root, "m", ["callbacks=[default,ema]", "tags=[x]"], {"test/accuracy": 0.5})
    make_run(root, "n", ["+note=<b>|[/x]`", "optimizer.lr=3"], {"test/accuracy": 0.4}, command="python train.py '+note=<b>|[/x]`' optimizer.lr=3")
    main([str(root)])
    out = capsys.readouterr().out
    assert "callbacks=[default,ema]" in out and "+note=<b>|[/x]`" in out
    assert r"+note=&lt;b>\|\[/x\]\` optimizer.lr=3 |" in (root / "report" / "report.md").read_text()


def test_what_varies_is_compared_by_value(root: Path) -> None:
    make_run(root, "v", ["model=mlp", "optimizer.lr=1e-1", "callbacks=[default,ema]", "logger=[csv,wandb]"], {"test/accuracy": 0.6})
    make_run(root, "w", ["model=small_cnn", "optimizer.lr=0.3"], {"test/accuracy": 0.5})
    found, _ = report.sections([run for run in read_runs(root).runs if run.folder.name in ("a1", "v", "w")], {})
    (section,) = (s for s in found if s.dataset == "digits")
    assert [g.name for g in section.groups][-1] == "model=small_cnn optimizer.lr=0.3"
    assert report.varied(section) == {"model": ["mlp", "mlp", "small_cnn"][: len(section.groups)], "optimizer.lr": ["0.1", "0.1", "0.3"]} | (
        {"callbacks": [g.runs[0].choices["callbacks"] for g in section.groups]}
    )


def test_files(root: Path, capsys: pytest.CaptureFixture) -> None:
    files = main([str(root), "--where", "dataset=digits"])
    assert "4 of 5 runs" in capsys.readouterr().out
    names = sorted(p.relative_to(root / "report").as_posix() for p in files)
    assert [n for n in names if n.startswith("digits")] == ["digits-test_accuracy-costs.png"]
    assert sum(n.startswith("curves/") for n in names) == 2 and all(p.stat().st_size > 0 for p in files)
    with open(root / "report" / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["model=small_cnn", "model=mlp"]
    assert float(rows[0]["mean"]) == pytest.approx(0.98) and rows[0]["values"] == "0.97 0.99" and rows[0]["seeds"] == "1 2"
    text = (root / "report" / "report.md").read_text()
    assert {"report.html", "report.md", "report.tex", "report.csv"} <= set(names)
    assert "| model=small_cnn | 2 | 98.00 % |" in text and "(curves/" in text
    # the report itself is no run
    assert len(read_runs(root).runs) == 5


def test_nothing_to_report(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*run \(did you mean 'runs'\?\)"):
        main([str(tmp_path / "run")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no finished run"):
        main([str(tmp_path / "empty")])
    with pytest.raises(UserError, match=r"none of 5 runs in .* has seed=9"):
        main([str(root), "--where", "seed=9"])


def test_curves_need_the_long_format(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(ValueError, match="step,epoch,name,value"):
        curves(tmp_path / "m.csv")


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; import scripts.report, scripts.claims, scripts.catalog\n"
        "assert not {'torch', 'matplotlib', 'hydra', 'scipy', 'yaml'} & set(sys.modules)\n"
        "import papermix.run.reporting.report, papermix.run.reporting.runs, papermix.run.reporting.catalog_page\n"
        "assert not {'torch', 'matplotlib', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
