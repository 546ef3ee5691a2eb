"""Claims: the parser, the rule of the verdict, runs that fail, and what is kept."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from papermix.errors import UserError
from papermix.run.launch import Stopped
from papermix.run.reporting import blocks, catalog_page, claims, claims_page
from papermix.run.reporting.inequality import Expression, inequality
from papermix.run.reporting.verdict import CONFIRMED, OPEN, REFUTED, judge, overall, t_quantile
from scripts.claims import main, show

CLAIM = """
claim: Pruning keeps what one shot loses.
measure: test/accuracy
seeds: [1, 2, 3]
common: [trainer.max_epochs=1]
arms:
  dense: []
  pruned: [sparsity=magnitude]
expect: ["pruned >= dense - 0.1"]
"""


# ---- the parser ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", 2.0),
        ("-a + 3 * b", 13.0),
        ("(a + b) / 2 - 1e-1", 3.4),
        ("max(a, b, 1) - min(a, b)", 3.0),
        ("abs(a - b)", 3.0),
        ("test/accuracy", 0.75),
        ("1 - 'test/accuracy'", 0.25),
        ("'test/accuracy' / a", 0.375),
    ],
)
def test_expressions(text: str, value: float) -> None:
    assert Expression(text).value({"a": 2, "b": 5, "test/accuracy": 0.75}) == pytest.approx(value)


def test_division_by_zero_and_nan_are_nan() -> None:
    assert math.isnan(Expression("1 / a").value({"a": 0.0}))
    assert math.isnan(Expression("max(1, a)").value({"a": math.nan})) and math.isnan(
        Expression("min(a, 1)").value({"a": math.nan})
    )


def test_names() -> None:
    assert Expression("max(a, 2 * b) - 'val/loss'").names == {"a", "b", "val/loss"}
    assert Expression("3").names == set()


@pytest.mark.parametrize(
    "text",
    ["__import__('os').system('x')", "a.b", "a[0]", "a ** 9", "lambda: 1", "[a]", "pow(a, 2)", "max(*a)", "min(a, key=b)",
     "a if b else 1", "True", "a and b", "abs(a, b)", "max()", "(x := 1)", "f'{a}'", "a //b", "~a", "None"],
)  # fmt: skip
def test_anything_but_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=re.escape(repr(text))):
        Expression(text)


@pytest.mark.parametrize("text", ["", "a +", "1 2", "a\0b", "import os"])
def test_what_cannot_be_read_is_told(text: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        Expression(text)


@pytest.mark.parametrize(
    ("text", "slack"),
    [("a >= b - 1", 2.0), ("a <= b - 1", -2.0), ("a > 2 * b", -2.0), ("b < a", 1.0), ("0.5 * (a + b) >= 3", 0.5)],
)
def test_slack(text: str, slack: float) -> None:
    assert inequality(text).slack({"a": 4, "b": 3}) == pytest.approx(slack)


@pytest.mark.parametrize("text", ["a", "a == b", "a >= b >= c", "a != b", "a in b", "a >= b.c", "a >= "])
def test_what_is_no_inequality_is_told(text: str) -> None:
    with pytest.raises(UserError):
        inequality(text)


def test_alone() -> None:
    assert inequality("a >= b - 1").alone == "a" and inequality("a - b >= 0").alone is None and inequality("1 <= a").alone is None


# ---- the verdict ---------------------------------------------------------------------------------------------------------------


def arms(a: list[float], b: list[float]) -> dict[str, dict[int, float]]:
    """Values of two arms with seeds 1, 2, ..."""
    return {"a": dict(enumerate(a, 1)), "b": dict(enumerate(b, 1))}


def test_three_verdicts() -> None:
    rule = inequality("a >= b - 0.1")
    surely = judge(rule, arms([0.90, 0.91, 0.92], [0.90, 0.92, 0.91]))
    assert surely.verdict == CONFIRMED and surely.slack == pytest.approx(0.1) and surely.seeds == 3
    # differences -0.0, -0.01, 0.01: standard error 0.01 / sqrt(3), t = 4.3027 with two degrees of freedom
    assert surely.uncertainty == pytest.approx(4.302653 * 0.01 / math.sqrt(3), rel=1e-5)
    assert judge(rule, arms([0.50, 0.51, 0.52], [0.90, 0.92, 0.91])).verdict == REFUTED
    assert judge(rule, arms([0.70, 0.90, 0.85], [0.90, 0.92, 0.91])).verdict == OPEN


def test_arms_are_compared_seed_by_seed() -> None:
    """The same spread of both arms cancels: only the differences of each seed count."""
    rule = inequality("a >= b + 0.01")
    assert judge(rule, arms([0.52, 0.72, 0.92], [0.50, 0.70, 0.90])).verdict == CONFIRMED
    assert judge(rule, arms([0.92, 0.72, 0.52], [0.50, 0.70, 0.90])).verdict == OPEN


def test_an_edge_without_spread() -> None:
    assert judge(inequality("a >= b"), arms([1, 1], [1, 1])).verdict == CONFIRMED
    assert judge(inequality("a > b"), arms([1, 1], [1, 1])).verdict == REFUTED
    assert judge(inequality("a < b"), arms([1, 1], [2, 2])).verdict == CONFIRMED
    assert judge(inequality("a <= b"), arms([2, 2], [1, 1])).verdict == REFUTED


def test_too_little_is_inconclusive() -> None:
    rule = inequality("a >= b")
    single = judge(rule, arms([0.9], [0.1]))
    assert single.verdict == OPEN and single.slack == pytest.approx(0.8) and single.uncertainty is None
    assert judge(rule, arms([0.9, 0.9], [0.1, 0.1]), complete=False).verdict == OPEN
    assert judge(rule, arms([], [0.1, 0.2])) == type(single)("a >= b", None, None, 0, OPEN)
    assert judge(rule, arms([math.nan, 0.9], [0.1, 0.1])).verdict == OPEN
    assert judge(rule, {"a": {1: 0.9, 2: 0.9}, "b": {2: 0.1, 3: 0.1}}).seeds == 1


def test_the_quantile_is_student_s() -> None:
    assert [round(t_quantile(n), 3) for n in (1, 4, 30)] == [12.706, 2.776, 2.042]


def test_overall() -> None:
    def one(verdict: str) -> Any:
        return type("J", (), {"verdict": verdict})()

    assert overall([one(CONFIRMED), one(CONFIRMED)]) == CONFIRMED
    assert overall([one(CONFIRMED), one(OPEN)]) == OPEN
    assert overall([one(OPEN), one(REFUTED)]) == REFUTED


# ---- what is declared ----------------------------------------------------------------------------------------------------------


def load(tmp_path: Path, text: str = CLAIM) -> claims.Claim:
    """The claim of a text."""
    (tmp_path / "claim").mkdir(exist_ok=True)
    (tmp_path / "claim" / "ours.yaml").write_text(text)
    return claims.load_claim("ours", tmp_path)


def test_load(tmp_path: Path) -> None:
    claim = load(tmp_path)
    assert claim.arms == {"dense": ["trainer.max_epochs=1"], "pruned": ["trainer.max_epochs=1", "sparsity=magnitude"]}
    assert claim.seeds == (1, 2, 3) and claim.measure.names == {"test/accuracy"}


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("seeds: [1, 2, 3]", "seed: [1]", r"unknown key 'seed' \(did you mean 'seeds'\?\)"),
        ("seeds: [1, 2, 3]", "seeds: [1, 1]", "different whole numbers"),
        ("seeds: [1, 2, 3]", "seeds: []", "different whole numbers"),
        ("measure: test/accuracy", "", "lacks 'measure'"),
        ("measure: test/accuracy", "measure: a.b", "only numbers, names"),
        ("pruned >=", "prune >=", r"'prune', which is no arm \(did you mean 'pruned'\?\)"),
        ('["pruned >= dense - 0.1"]', "[]", "at least one inequality"),
        ("pruned >= dense", "pruned == dense", "one inequality"),
        ("dense: []", "dense: [seed=3]", "list the seeds under seeds"),
        ("dense: []", "dense: {optimizer.lr: 1}", "arms.dense must be a list of overrides"),
        ("dense: []", "dense: [fast]", "arms.dense must be a list of overrides"),
        ("dense: []", "a-b: []", "arm 'a-b' must be a name"),
        ("measure:", "paper: nobody\nmeasure:", "no paper 'nobody' in conf/paper"),
    ],
)
def test_a_bad_claim_is_told(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in CLAIM
    with pytest.raises(UserError, match=sentence):
        load(tmp_path, CLAIM.replace(old, new))


def test_an_unknown_claim(tmp_path: Path) -> None:
    load(tmp_path)
    with pytest.raises(UserError, match=r"no claim 'our' \(did you mean 'ours'\?\)"):
        claims.load_claim("our", tmp_path)


def test_the_claims_of_this_project_can_be_read() -> None:
    for name in claims.claim_names():
        assert len(claims.load_claim(name).seeds) >= 2


# ---- running -------------------------------------------------------------------------------------------------------------------


class Runs:
    """Stands in for training: the accuracy of an arm comes from its overrides and seed; keeps what was started."""

    def __init__(self, broken: str | None = None) -> None:
        self.started: list[str] = []
        self.broken = broken

    def __call__(self, cfg: Any, place: Path, overrides: list[str]) -> dict[str, Any]:
        self.started.append(" ".join(overrides))
        if self.broken and self.broken in overrides:
            raise UserError("the loss is not finite")
        print("much output")
        value = 0.9 + 0.001 * cfg.seed - (0.02 if cfg.sparsity.get("_target_") else 0)
        return {
            "metrics": {"test/accuracy": value}, "density": 1.0, "parameters": 10, "wall_seconds": 2.0,
            "versions": {"papermix": "0.1.0"}, "git": {"commit": "0" * 40, "dirty": False},
        }  # fmt: skip


def test_runs_go_seed_by_seed_and_say_little(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs, claim = Runs(), load(tmp_path)
    found = claims.summary(claim, claims.run(claim, tmp_path / "out", start=runs))
    assert len(runs.started) == 6 and [o.endswith("seed=1") for o in runs.started] == [True, True, False, False, False, False]
    assert found["verdict"] == CONFIRMED and found["arms"]["pruned"]["mean"] == pytest.approx(0.882)
    assert found["expect"][0]["slack"] == pytest.approx(0.08) and found["run_seconds"] == 12 and found["commits"] == ["0" * 40]
    out = capsys.readouterr().out
    assert "much output" not in out and len(out.splitlines()) == 6
    assert (tmp_path / "out" / "claims" / "ours" / "log.txt").read_text().count("much output") == 6


def test_folders_are_those_of_the_config(tmp_path: Path) -> None:
    def folders(text: str = CLAIM) -> list[Path]:
        return [p.folder for p in claims.plan(load(tmp_path, text), tmp_path, [1]) if isinstance(p, claims.Plan)]

    one, other = folders(), folders(CLAIM.replace("epochs=1", "epochs=2"))
    assert len(one) == 2 and one == folders() and not set(one) & set(other)
    assert one[0].parent == tmp_path / "claims" / "ours" / "dense"


def test_a_failing_arm_is_reported_and_the_others_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    text = CLAIM.replace("dense: []", "dense: []\n  typo: [sparsity=magnitud]\n  broken: [optimizer.lr=9]")
    text = text.replace('- 0.1"]', '- 0.1", "broken >= dense", "typo >= dense"]')
    claim = load(tmp_path, text)
    found = claims.summary(claim, claims.run(claim, tmp_path / "out", [1, 2], Runs("optimizer.lr=9")), [1, 2])
    assert [e["verdict"] for e in found["expect"]] == [CONFIRMED, OPEN, OPEN] and found["verdict"] == OPEN
    assert found["arms"]["broken"]["failed"] == {"1": "the loss is not finite", "2": "the loss is not finite"}
    assert "did you mean 'magnitude'?" in found["arms"]["typo"]["failed"]["1"] and found["arms"]["typo"]["mean"] is None
    assert len(found["arms"]["dense"]["values"]) == 2
    show(found)
    out = capsys.readouterr().out
    assert "broken, seed 1: failed: the loss is not finite" in out
    root = tmp_path / "root"
    root.mkdir()
    claims_page.keep(found, root)
    assert "- broken, seed 1: the loss is not finite" in claims_page.results_page(root)


def test_many_seeds_are_a_range_on_the_page_and_all_in_the_file(tmp_path: Path) -> None:
    outcomes = {arm: {s: claims.Outcome(0.5 + s / 100) for s in range(1, 21)} for arm in ("dense", "pruned")}
    found = claims.summary(load(tmp_path, CLAIM.replace("[1, 2, 3]", str(list(range(1, 21))))), outcomes)
    assert "| 51.00 % to 70.00 % |" in claims_page.section(found) and "seeds 1, 2, 3, 4, 5, 6, 7, 8" in claims_page.section(found)
    assert len(found["arms"]["dense"]["values"]) == 20


def test_a_signal_stops_the_claim(tmp_path: Path) -> None:
    def start(cfg: Any, place: Path, overrides: list[str]) -> dict[str, Any]:
        raise Stopped("stopped by a signal")

    with pytest.raises(Stopped):
        claims.run(load(tmp_path), tmp_path / "out", [1], start)


def test_the_measure_may_be_arithmetic(tmp_path: Path) -> None:
    result = Runs()(load_cfg(), tmp_path, [])
    claim = load(tmp_path, CLAIM.replace("measure: test/accuracy", "measure: (1 - 'test/accuracy') * parameters / density"))
    assert claims.measured(claim, result) == pytest.approx(0.99)
    claim = load(tmp_path, CLAIM.replace("measure: test/accuracy", "measure: test/acuracy"))
    with pytest.raises(UserError, match=r"'test/acuracy', which the run's result lacks \(did you mean 'test/accuracy'\?\)"):
        claims.measured(claim, result)


def load_cfg() -> Any:
    """A config with what :class:`Runs` looks at."""
    return type("Cfg", (), {"seed": 1, "sparsity": {}})()


def test_what_is_kept(tmp_path: Path) -> None:
    claim = load(tmp_path)
    root = tmp_path / "root"
    (root / "docs").mkdir(parents=True)
    (root / "README.md").write_text("<!-- papers -->\n<!-- /papers -->\n")
    (root / "docs" / "RESULTS.md").write_text("# Results\n\nWritten by hand.\n")
    found = claims.summary(claim, claims.run(claim, tmp_path / "out", start=Runs()))
    data, picture = claims_page.keep(found, root)
    assert json.loads(data.read_text()) == found and picture.stat().st_size > 5000
    assert "docs/RESULTS.md" in " ".join(blocks.write(catalog_page.pages(root)))
    page = (root / "docs" / "RESULTS.md").read_text()
    assert page.startswith("# Results\n\nWritten by hand.\n") and "### ours: confirmed" in page
    for text in (
        "python scripts/claims.py ours",
        "0" * 40,
        "papermix 0.1.0",
        "90.20 %",
        "claims/ours.png",
        "88.10 %, 88.20 %, 88.30 %",
    ):
        assert text in page, text
    assert str(tmp_path) not in page + data.read_text()
    assert blocks.write(catalog_page.pages(root)) == []
    data.write_text("{")
    with pytest.raises(UserError, match=r"ours\.json cannot be read"):
        claims_page.results_page(root)


# ---- the command ---------------------------------------------------------------------------------------------------------------


def test_dry_shows_and_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["foundation", "--dry", "--seeds", "7", "--outputs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("to do") == 3 and "seed=7" in out and "gradual >= dense" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name claims, or --all"),
        (["foundation", "--all"], "name claims, or --all"),
        (["fundation"], "did you mean 'foundation'"),
        (["foundation", "--seeds", "1", "1"], "--seeds: seeds must be different"),
    ],
)
def test_bad_command_lines(arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        main(arguments)


def test_other_seeds_than_the_declared_ones_write_no_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("papermix.run.job.run", Runs())
    assert main(["foundation", "--seeds", "7", "--outputs", str(tmp_path / "out")], tmp_path) == 0
    assert not (tmp_path / "docs").exists()
