"""The config reference: every option and key of conf/ is in it, each with the comment that stands beside it."""

from pathlib import Path

import pytest

from papermix.errors import UserError
from papermix.run.catalog import CONF, options
from papermix.run.reporting import config_page as page
from papermix.run.reporting.blocks import stale
from papermix.run.reporting.comments import header, keys

TEXT = """\
# @package _global_
# What it is,
# in two lines.
#   python train.py
_target_: a.B
_needs_: [image]
# above,
# on two lines
one: 1.0e-3
two: "a # no comment"  # behind
three: []  # of a list
# of both
low: 1
high: 2
four:  # behind a mapping
  # inner
  five: {a: 1}
  six: ${dataset.size}
# about its keys
six:
  seven: x
  eight: null
# several lines
nine:
  - {a: 1}
  - {a: 2}
ten: 1
"""


def test_comments_above_and_behind_a_key() -> None:
    found = {k.name: k for k in keys(TEXT, "x.yaml")}
    assert list(found) == ["one", "two", "three", "low", "high", "four", "four.five", "four.six", "six", "six.seven", "six.eight", "nine", "ten"]
    assert found["one"].text == "above, on two lines" and found["one"].default == "1.0e-3"
    assert found["two"].text == "behind" and found["three"].text == "of a list" and found["three"].default == "[]"
    assert found["low"].text == "of both" and found["high"].text == "" and found["high"].with_previous
    assert found["four"].text == "behind a mapping" and found["four"].default == ""
    assert found["four.five"].text == "inner" and found["four.five"].default == "{a: 1}" and found["four.six"].with_previous
    assert found["six.seven"].with_previous and found["six.eight"].with_previous
    assert found["nine"].default == "[{a: 1}, {a: 2}]" and found["nine"].text == "several lines"
    assert not found["three"].with_previous and not found["six"].with_previous


def test_the_first_line_is_about_the_file() -> None:
    assert header(TEXT) == "What it is, in two lines."
    plain = "# The file.\n# the key\nkey: 1\n"
    assert header(plain) == "The file." and keys(plain, "x")[0].text == "the key"
    assert keys("# The file.\nkey: 1\n", "x")[0].text == ""
    with pytest.raises(UserError, match=r"x\.yaml cannot be read"):
        keys("a: [", "x.yaml")


GROUPS = [*page.PAGES, "paths", ""]


@pytest.mark.parametrize("group", GROUPS)
def test_no_key_lacks_an_explanation(group: str) -> None:
    for name in page.names(group) if group else ["train"]:
        assert page.unexplained(group, name) == [], f"conf/{group}/{name}.yaml: put a comment above these keys"
        assert header(page.read(group, name)), f"conf/{group}/{name}.yaml: say in the first line what it is"


def test_a_key_without_a_comment_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "x.yaml").write_text("# A model.\n_target_: a.B\nbare: 1\n# told\nsaid: 2\nbehind: 3  # told\nbare_too: 4\n")
    (tmp_path / "model" / "y.yaml").write_text("# Another.\ndefaults: [x, _self_]\nsaid: 3\nbare: 5\n")
    monkeypatch.setattr(page, "CONF", tmp_path)
    page.read.cache_clear()
    try:
        assert page.unexplained("model", "x") == ["bare", "bare_too"] and page.unexplained("model", "y") == ["bare"]
        assert "| `said` | `3` | told |" in page.option("model", "y") and "As `model=x`, but for:" in page.option("model", "y")
    finally:
        page.read.cache_clear()


def test_every_group_option_and_recipe_is_there() -> None:
    texts = {path.name: text for path, text in page.pages().items()}
    assert {p.name for p in CONF.iterdir() if p.is_dir()} - {"hydra", "paper", "claim", "paths", "experiment"} <= set(page.PAGES)
    for group in page.PAGES:
        text = texts[page.page_name(group)]
        assert all(f"\n## {name}\n" in text for name in page.names(group)), group
    assert all(f"| `{name}` |" in texts["experiment.md"] for name in options("experiment"))
    assert "| `seed` | `1` |" in texts["config.md"] and "`paths.outputs`" in texts["config.md"]
    digits = texts["dataset.md"].partition("\n## digits\n")[2].partition("\n## ")[0]
    assert "Gives `image`, `label`, `classes`." in digits and "| `batch_size` | `64` | examples per optimizer step" in digits
    assert "| `label_noise.kind`, `label_noise.rate` |" in digits


def test_the_pages_are_up_to_date() -> None:
    assert stale(page.pages()) == [], "run: python scripts/catalog.py --write"


def test_comments_stay_text_in_markdown() -> None:
    assert page.prose("a * b <c> `d*e` snake_case") == r"a \* b \<c> `d*e` snake_case"
