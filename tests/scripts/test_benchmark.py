"""scripts/benchmark.py: its arithmetic with clocks of our own, and one tiny round of every benchmark (no time is judged)."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from papermix.errors import UserError
from papermix.run.compose import compose
from scripts import benchmark
from scripts.benchmarks import NAMES, harness, startup
from scripts.benchmarks.harness import Check, Options, Report, Timing, Window


def ticks(step: float) -> Callable[[], float]:
    """A clock that moves on by ``step`` at every look."""
    times: Iterator[float] = (step * n for n in range(1000))
    return lambda: next(times)


# ---- arithmetic -----------------------------------------------------------------------------------------------------------


def test_interleaving_goes_round_and_forgets_the_warm_up():
    seen: list[str] = []

    def arm(name: str) -> Callable[[], Timing]:
        return lambda: (seen.append(name), Timing(float(len(seen)), 0.0))[1]

    timings = harness.interleave({"a": arm("a"), "b": arm("b")}, repetitions=2, warmup=1)
    assert seen == ["a", "b"] * 3
    assert [t.wall for t in timings["a"]] == [3, 5]
    assert [t.wall for t in timings["b"]] == [4, 6]


def test_a_repetition_is_needed():
    with pytest.raises(UserError, match="at least 1"):
        harness.interleave({}, repetitions=0)


def test_timed_counts_wall_cpu_and_units():
    assert harness.timed(lambda: 4, clock=ticks(2.0), cpu=ticks(1.0)) == Timing(2.0, 1.0, 4)
    assert Timing(2.0, 1.0, 4).each == 0.5
    assert Timing(2.0, 1.0, 4).cpu_each == 0.25


@pytest.mark.parametrize("skip", [0, 2])
def test_a_window_times_the_batches_after_the_first(skip):
    now = [0.0]
    window = Window(skip, count=3, clock=lambda: now[0], cpu=lambda: 10 * now[0])

    def batches() -> Iterator[int]:
        for number in range(skip + 4):
            now[0] += 1 if number < skip else 5  # what the loader takes
            yield number

    seen = []
    for number in window.watch(batches()):
        now[0] += 2  # what the step takes
        seen.append(number)
    assert seen == list(range(skip + 4))
    assert window.timing() == Timing(3 * 7, 10 * 3 * 7, 3)


def test_a_loop_that_is_too_short_has_no_speed():
    window = Window(1, 3)
    assert list(window.watch(range(3))) == [0, 1, 2]
    with pytest.raises(UserError, match="before batch 5"):
        window.timing()


def test_a_window_waits_for_the_device():
    waited: list[int] = []
    window = Window(1, 1, settle=lambda: waited.append(1))
    list(window.watch(range(3)))
    assert len(waited) == 2


def test_formulas_are_evaluated_in_every_round():
    timings = {"a": [Timing(2, 4, 2), Timing(6, 6, 2)], "b": [Timing(1, 1, 1), Timing(1, 2, 1)]}
    check = harness.each_round(timings, lambda s: s["a"] / s["b"], "a over b", 1.5, "<=")
    assert check.values == [1, 3]
    assert check.cpu_values == [2, 1.5]
    assert check.median == 2
    assert check.reached is False


def test_bounds_go_both_ways():
    assert Check("x", [1.0, 2.0, 9.0], 2.0).reached
    assert not Check("x", [1.0, 2.0, 9.0], 2.1).reached
    assert Check("x", [1.0, 2.0, 9.0], 2.0, "<=").reached
    assert Check("x", [1.0]).reached is None
    assert "NOT reached" in Check("x", [1.0], 2.0).text()
    assert "1.000 2.000 9.000   median 2.000" in Check("x", [1.0, 2.0, 9.0]).text()


# ---- a busy machine -------------------------------------------------------------------------------------------------------


def test_a_busy_machine_stops_the_benchmark():
    harness.check_idle(0.4, 2)
    harness.check_idle(3.9, 16)
    harness.check_idle(9.0, 2, force=True)
    with pytest.raises(UserError, match=r"busy \(load 0\.60 on 2 cores, at most 0\.50\).*--force"):
        harness.check_idle(0.6, 2)


def test_main_stops_before_anything_runs(monkeypatch):
    monkeypatch.setattr(harness, "load", lambda: 99.0)
    with pytest.raises(UserError, match="busy"):
        benchmark.main(["data"])


# ---- showing --------------------------------------------------------------------------------------------------------------

AROUND = {
    "machine": {"cpu": "a processor", "cores": 2, "device": None, "load_before": 0.1},
    "versions": {"python": "3.11"},
    "git": {"commit": "0123456789abcdef", "dirty": True},
}


def report() -> Report:
    timings = {"ours": [Timing(1.0, 0.5, 1000)] * 5, "theirs": [Timing(2.0, 1.0, 1000)] * 5}
    ratio = harness.each_round(timings, lambda s: s["theirs"] / s["ours"], "theirs over ours", 1.5)
    return Report("data", "image", {"small": timings}, [ratio], ["random bytes"])


def test_lines_show_every_value_and_the_median():
    text = "\n".join(harness.lines(report()))
    assert text.count("1,000/s  ") == 5
    assert "median 1,000/s, CPU 2,000/s" in text
    assert "2.000 2.000 2.000 2.000 2.000   median 2.000, by CPU time 2.000, wanted >= 1.5: reached" in text


def test_amounts():
    assert harness.amount(0.0015, "step") == "1.500 ms"
    assert harness.amount(12.0, "start") == "12.00 s"
    assert harness.amount(0.001, "token") == "1,000/s"


def test_markdown_names_machine_commit_and_bounds():
    text = harness.markdown(report(), AROUND)
    assert "a processor, 2 cores (load before: 0.1)" in text
    assert "0123456789 with changes" in text
    assert "| theirs over ours | 2 | 2 to 2 | at least 1.5 | reached |" in text
    assert "no commit" in harness.markdown(report(), {**AROUND, "git": None})


def test_blocks_are_added_and_replaced():
    page = harness.put_block("# Results\n", "data", "first")
    assert page == "# Results\n\n<!-- benchmark:data -->\n## Benchmark: data\n\nfirst\n<!-- /benchmark:data -->\n"
    page = harness.put_block(page + "\nmore\n", "data", "second")
    assert "first" not in page and page.count("second") == 1 and page.endswith("\nmore\n")
    page = harness.put_block(page, "text", "third")
    assert page.index("second") < page.index("third")


@pytest.mark.parametrize("page", ["<!-- benchmark:data -->\n", "<!-- /benchmark:data -->\n<!-- benchmark:data -->\n"])
def test_broken_markers_are_named(page):
    with pytest.raises(UserError, match="once each, where it belongs"):
        harness.put_block(page, "data", "block")


# ---- the command line -----------------------------------------------------------------------------------------------------


def test_names_are_checked():
    assert benchmark.chosen([]) == list(NAMES)
    with pytest.raises(UserError, match="did you mean 'overhead'"):
        benchmark.chosen(["overhed"])


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--repetitions", "4"], "at least 5"), (["--smoke", "--write"], "drop --write")]
)
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(UserError, match=message):
        benchmark.main(arguments)


def test_results_are_written(monkeypatch, tmp_path, capsys):
    module: Any = type(sys)("scripts.benchmarks.data")
    module.run = lambda options: report()
    monkeypatch.setitem(sys.modules, "scripts.benchmarks.data", module)
    page = tmp_path / "RESULTS.md"
    benchmark.main(["data", "--force", "--json", str(tmp_path / "out.json"), "--write"], page)
    stored = json.loads((tmp_path / "out.json").read_text())
    assert stored["benchmarks"]["data"]["checks"][0]["reached"] is True
    assert stored["benchmarks"]["data"]["timings"]["small"]["ours"][0] == {"wall": 1.0, "cpu": 0.5, "count": 1000}
    assert stored["machine"]["cores"] >= 1 and "torch" in stored["versions"]
    assert "<!-- benchmark:data -->" in page.read_text()
    assert "wanted >= 1.5: reached" in capsys.readouterr().out


# ---- every benchmark, once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["overhead", "data", "text", "metrics", "recipes", "optimizers", "sweep"])
def test_smoke(name):
    threads = torch.get_num_threads()
    found = importlib.import_module(f"scripts.benchmarks.{name}").run(Options(repetitions=1, smoke=True, threads=1))
    assert torch.get_num_threads() == threads
    assert found.name == name
    assert any(check.bound is not None for check in found.checks)
    assert all(t.wall > 0 and t.count > 0 for arms in found.timings.values() for arm in arms.values() for t in arm)
    json.dumps(found.as_json())


def test_every_recipe_that_is_timed_composes(tmp_path):
    from scripts.benchmarks import recipes

    for name, recipe in recipes.RECIPES.items():
        dataset = compose(recipes.overrides_of([*recipe, *recipes.FAKE], str(tmp_path))).dataset
        assert dataset.fake and ("workers" not in dataset or dataset.workers == 0), name


def test_hand_written_and_project_loops_see_as_many_batches(tmp_path):
    from scripts.benchmarks import overhead, parts

    config = parts.config_of(["hardware=cpu", "dataset.fake=true", "dataset.batch_size=4"], tmp_path / "run")
    window = Window(0, 1)
    by_hand = list(overhead.Batches(config, 9, torch.device("cpu"), window))
    ours = list(overhead.long(parts.data_of(config).loader("train"), 9))
    assert [len(b["label"]) for b in by_hand] == [len(b["label"]) for b in ours] == [4] * 9
    assert by_hand[0]["image"].shape == ours[0]["image"].shape


def test_startup_reaches_the_first_step_and_refuses(monkeypatch):
    """The whole of it takes half a minute; here each kind of start is made once, by the parts it is made of."""
    assert set(startup.REFUSED.values()) >= {"model=lstm_lm"}
    assert startup.start(["-c", "import sys; sys.exit(3)"], 3).wall > 0
    with pytest.raises(RuntimeError, match="ended with 3"):
        startup.start(["-c", "import sys; sys.exit(3)"], 0)
    assert startup.first_step("dataset.fake=true").count == 1
    calls: list[list[str]] = []
    monkeypatch.setattr(startup, "start", lambda command, code: (calls.append(command), Timing(1.0, 1.0))[1])
    found = startup.run(Options(repetitions=1, smoke=True))
    assert len(calls) == 5
    assert found.checks[0].values == [1 / 2.3]
