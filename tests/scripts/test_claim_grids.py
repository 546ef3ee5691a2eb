"""Claims over a grid: what is swept, the best of each line, names in inequalities, tables and heat maps."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from papermix.errors import UserError
from papermix.run.reporting import blocks, catalog_page, claims, claims_page, grid
from papermix.run.reporting.inequality import inequality
from papermix.run.reporting.verdict import CONFIRMED, OPEN
from scripts.claims import main, show

CLAIM = """
claim: The best rate of one optimizer stays, that of the other moves with eps.
measure: test/accuracy
seeds: [1, 2]
common: [trainer.max_epochs=1]
tune: {optimizer.lr: max}
arms:
  plain: []
  stays: [optimizer=adamw, "optimizer.eps=1,10", "optimizer.lr=0.1,1,10"]
  moves: [optimizer=adam, "optimizer.eps=1,10", "optimizer.lr=0.1,1,10"]
expect:
  - max('stays.lr') / min('stays.lr') <= 1
  - max('moves.lr') / min('moves.lr') >= 10
  - min(moves) >= plain - 0.01
"""


def load(tmp_path: Path, text: str = CLAIM) -> claims.Claim:
    """The claim of a text."""
    (tmp_path / "claim").mkdir(exist_ok=True)
    (tmp_path / "claim" / "ours.yaml").write_text(text)
    return claims.load_claim("ours", tmp_path)


def start(cfg: Any, place: Path, overrides: list[str]) -> dict[str, Any]:
    """Stands in for training: one arm is best at lr 1, the other at lr = eps; lr 0.1 with eps 10 has no number."""
    lr, eps, moves = cfg.optimizer.lr, cfg.optimizer.get("eps"), cfg.optimizer._target_.endswith("Adam")
    value = 0.9 if cfg.optimizer._target_.endswith("SGD") else 0.9 - 0.1 * abs(math.log10(lr / (eps if moves else 1)))
    value = math.nan if (lr, eps) == (0.1, 10) else value
    return {"metrics": {"test/accuracy": value}, "density": 1.0, "wall_seconds": 1.0, "versions": {}, "git": None}


def test_a_grid_has_a_line_for_each_combination_of_what_is_not_tuned(tmp_path: Path) -> None:
    claim = load(tmp_path)
    assert len(claim.arms) == 13 and set(claim.grids) == {"stays", "moves"}
    line = claim.grids["stays"].lines[1]
    assert (line.name, line.label, list(line.cells)) == ("stays,eps=10", "eps=10", ["0.1", "1", "10"])
    given = ["trainer.max_epochs=1", "optimizer=adamw", "optimizer.eps=10", "optimizer.lr=0.1"]
    assert claim.arms[line.cells["0.1"]] == given and line.cells["0.1"] == "stays,eps=10,lr=0.1"
    assert claim.expect[0].names == {"stays.lr,eps=1", "stays.lr,eps=10"} and claim.expect[0].text.startswith("max('stays.lr')")
    assert claim.expect[2].names == {"moves,eps=1", "moves,eps=10", "plain"}


def test_a_grid_of_one_line_needs_no_max(tmp_path: Path) -> None:
    text = re.sub(r"  moves: .*\n", "", CLAIM).replace('"optimizer.eps=1,10", ', "")
    text = text[: text.index("expect")] + 'expect: ["stays >= plain - 0.1", "\'stays.lr\' <= 1"]'
    assert [e.names for e in load(tmp_path, text).expect] == [{"stays", "plain"}, {"stays.lr"}]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "optimizer.lr: max",
            "optimizer.lr: most",
            r"tune must be one key and the better direction .* like \{optimizer.lr: max\}",
        ),
        ("optimizer.lr: max", "a: max, b: min", "tune must be one key"),
        ("optimizer.lr: max", "optimizer.l: max", r"arms\.stays sweeps .*, but not optimizer\.l, .*did you mean 'optimizer\.lr'"),
        ("tune: {optimizer.lr: max}", "tune: max", "tune must be of type dict"),
        ("lr=0.1,1,10", "lr=low,high", r"arms\.stays has optimizer\.lr=low: what is tuned must be a number"),
        ("max('stays.lr')", "1 + 'stays.lr'", "'stays.lr' stands for 2 values: write max or min of it"),
        ("min(moves)", "moves", "moves stands for 2 values"),
        (
            "min(moves)",
            "min(move)",
            r"expect names 'move', which is no arm \(did you mean 'moves'\?\); there are plain, stays, sta",
        ),
    ],
)
def test_a_bad_grid_is_told(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in CLAIM
    with pytest.raises(UserError, match=sentence):
        load(tmp_path, CLAIM.replace(old, new, 1))


def test_tune_without_a_sweep_is_told(tmp_path: Path) -> None:
    text = re.sub(r"  (stays|moves): .*\n", "", CLAIM)
    with pytest.raises(UserError, match=r"tune is optimizer\.lr, but no arm sweeps it"):
        load(tmp_path, text)


def test_names_of_families_in_inequalities() -> None:
    families = {"a": ["a 1", "a 2"], "one": ["only"]}
    rule = inequality("max(a, b) - min('a') >= abs(one) - 1", families)
    assert rule.names == {"a 1", "a 2", "b", "only"}
    assert rule.slack({"a 1": 1, "a 2": 4, "b": 3, "only": -2}) == pytest.approx((4 - 1) - (2 - 1))


@pytest.mark.parametrize(("better", "best", "at"), [("max", 0.8, 1.0), ("min", 0.2, 10.0)])
def test_the_best_of_a_line(better: str, best: float, at: float) -> None:
    line = grid.Line("a,eps=1", "eps=1", {"0.1": "x", "1": "y", "10": "z"})
    found = grid.Grid("a", "optimizer.lr", better, (line,))
    values = {"x": {1: math.nan, 2: math.inf}, "y": {1: 0.8, 2: math.nan}, "z": {1: 0.2, 2: math.nan, 3: 0.1}}
    assert found.best(values) == {"a,eps=1": {1: best}, "a.lr,eps=1": {1: at}}


def test_what_is_kept_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    claim, root = load(tmp_path), tmp_path / "root"
    (root / "docs").mkdir(parents=True)
    (root / "README.md").write_text("<!-- papers -->\n<!-- /papers -->\n")
    found = claims.summary(claim, claims.run(claim, tmp_path / "out", start=start))
    assert found["verdict"] == CONFIRMED and [e["unit"] for e in found["expect"]] == [
        "optimizer.lr",
        "optimizer.lr",
        "test/accuracy",
    ]
    assert [e["slack"] for e in found["expect"]] == pytest.approx([0, 0, 0.01])
    assert [line["at"] for line in found["grids"]["moves"]["lines"]] == [{"1": 1.0, "2": 1.0}, {"1": 10.0, "2": 10.0}]
    capsys.readouterr()
    show(found)
    out = capsys.readouterr().out
    assert "moves,eps=10" in out and "lr 10 (2)" in out and "plain" in out and "stays,eps=1,lr=1" not in out
    data, picture = claims_page.keep(found, root)
    assert json.loads(data.read_text())["grids"] == found["grids"] and picture.stat().st_size > 5000
    blocks.write(catalog_page.pages(root))
    page = (root / "docs" / "RESULTS.md").read_text()
    assert (
        "| eps=10 | - | 80.00 % | **90.00 %** | 10 (2) |" in page
        and "| eps=1 | 80.00 % | **90.00 %** | 80.00 % | 1 (2) |" in page
    )
    assert "`trainer.max_epochs=1 optimizer=adam`" in page and "| plain |" in page and "stays,eps=1,lr=1" not in page
    assert "| `max('stays.lr') / min('stays.lr') <= 1` | 0 | 0 | 2 | confirmed |" in page


def test_a_cell_that_fails_leaves_its_line_open(tmp_path: Path) -> None:
    def failing(cfg: Any, place: Path, overrides: list[str]) -> dict[str, Any]:
        if "optimizer=adam" in overrides and "optimizer.lr=0.1" in overrides:
            raise UserError("the disk is full")
        return start(cfg, place, overrides)

    claim = load(tmp_path, CLAIM.replace("optimizer.eps=1,10", "optimizer.eps=1"))
    found = claims.summary(claim, claims.run(claim, tmp_path / "out", start=failing))
    assert [e["verdict"] for e in found["expect"]] == [CONFIRMED, OPEN, OPEN]
    claims_page.draw(found, tmp_path / "made.png")


def test_dry_shows_every_cell(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["avagrad", "--dry", "--seeds", "7", "--outputs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("to do") == 70 and "optimizer.eps=100 optimizer.lr=0.001" in out
