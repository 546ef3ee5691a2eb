"""The catalog: it says what is in conf/, what mixes, and notices when its pages are old."""

from pathlib import Path

import pytest

from papermix.errors import UserError
from papermix.run.catalog import CONF, Option, options
from papermix.run.reporting import catalog_page as page
from papermix.run.reporting.blocks import put, table
from papermix.run.reporting.mixes import alike, allowed, matrix, words
from papermix.run.reporting.papers import Paper, Published, load_papers, read_paper
from scripts.catalog import main

PAPER = """
title: A Paper
authors: [Ann Author, Bob Builder, Cy Cook]
venue: NeurIPS
year: 2020
arxiv: "2001.00001"
options: [optimizer=sgd]
published:
  - {metric: test/accuracy, data: cifar10, model: resnet20, value: 0.9125, table: Table 6, with: [optimizer.lr=0.1]}
"""


def option(gives: str = "", needs: str = "", clashes: str = "") -> Option:
    """An option with these capabilities."""
    return Option("model", "x", "", *(frozenset(words.split()) for words in (gives, needs, clashes)))


def test_allowed() -> None:
    assert allowed([option("image label"), option("features", "image"), option("", "features label")])
    assert not allowed([option("image"), option("", "label")])
    assert not allowed([option("tokens"), option("", "tokens", "tokens")])


def test_the_repository_s_pages_are_up_to_date() -> None:
    assert main(["--check"]) == 0, "run: python scripts/catalog.py --write"


def test_every_option_is_in_the_catalog() -> None:
    text = page.catalog({})
    for group in page.GROUPS:
        for name in options(group):
            assert f"| `{name}` |" in text
    assert {p.name for p in CONF.iterdir() if p.is_dir()} - {"hydra", "paths", "paper", "claim"} <= set(page.GROUPS)


def test_the_matrix_holds_every_pair_once() -> None:
    pairs = [(d.name, m.name) for datasets, models, _ in matrix() for d in datasets for m in models]
    assert len(pairs) == len(set(pairs)) == len(options("dataset")) * len(options("model"))
    found = {(d.name, m.name): methods for datasets, models, methods in matrix() for d in datasets for m in models}
    assert "supervised" in found["digits", "mlp"] and found["pydocs_char", "mlp"] == []
    assert "supervised" in found["pydocs_char", "lstm_lm"] and "finetune" not in found["pydocs_char", "lstm_lm"]
    for kind in alike("model"):
        assert len({(o.gives, o.needs, o.clashes) for o in kind}) == 1


def test_words_say_who_gives_and_needs() -> None:
    given = {word: (gives, needs) for word, gives, needs, _ in words()}
    assert "dataset=digits" in given["image"][0] and "model=mlp" in given["image"][1]


def _project(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text("# Title\n\n<!-- papers -->\nold\n<!-- /papers -->\n\nThe end.\n")
    return tmp_path


def test_check_notices_old_pages(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = _project(tmp_path)
    assert main(["--check"], root) == 1
    assert "docs/catalog.md, README.md; run: python scripts/catalog.py --write" in capsys.readouterr().err
    assert main(["--write"], root) == 0 and main(["--check"], root) == 0
    readme = (root / "README.md").read_text()
    assert (
        readme.startswith("# Title\n\n<!-- papers -->\n")
        and readme.endswith("<!-- /papers -->\n\nThe end.\n")
        and "old" not in readme
    )
    (root / "docs" / "catalog.md").write_text("edited")
    assert main(["--check"], root) == 1
    assert main(["--write"], root) == 0 and main(["--write"], root) == 0
    assert "nothing, all is up to date" in capsys.readouterr().out


def test_a_page_without_the_block_is_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Title\n")
    with pytest.raises(UserError, match=r"README\.md has no block from <!-- papers --> to <!-- /papers -->"):
        main(["--write"], tmp_path)


def test_put() -> None:
    once = put("# Page", "x", "one")
    assert once == "# Page\n\n<!-- x -->\none\n<!-- /x -->\n"
    assert put(once, "x", "two") == once.replace("one", "two")
    with pytest.raises(UserError, match="no block from"):
        put("<!-- x -->\nnever ends", "x", "two")
    assert table(["a"], [["x|y\nz"]]) == "| a |\n| --- |\n| x\\|y z |"


def test_show(capsys: pytest.CaptureFixture) -> None:
    assert main(["scheduler", "mixes", "papers"]) == 0
    out = capsys.readouterr().out
    assert "cosine" in out and "lstm_lm" in out
    with pytest.raises(UserError, match=r"no part 'modle' \(did you mean 'model'\?\)"):
        main(["modle"])


def _conf(tmp_path: Path, text: str) -> Path:
    (tmp_path / "paper").mkdir()
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "sgd.yaml").write_text("lr: 1")
    path = tmp_path / "paper" / "ours.yaml"
    path.write_text(text)
    return path


def test_papers(tmp_path: Path) -> None:
    _conf(tmp_path, PAPER)
    paper = load_papers(tmp_path)["ours"]
    assert paper.cited == "Ann Author et al., NeurIPS 2020" and paper.published[0].overrides == ("optimizer.lr=0.1",)
    shown = page.paper_table({"ours": paper}, tmp_path)
    assert "| ours | [A Paper](https://arxiv.org/abs/2001.00001) (Ann Author et al., NeurIPS 2020) | `optimizer=sgd` |" in shown
    text = page.catalog({"ours": paper})
    assert "| cifar10 | resnet20 | `optimizer.lr=0.1` | test accuracy | 91.25 % | Table 6 |" in text
    assert "No paper is in yet" in page.paper_table({}, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("year: 2020", "yaer: 2020", r"unknown key 'yaer' \(did you mean 'year'\?\)"),
        ("year: 2020", "year: soon", "year must be of type int, not 'soon'"),
        ("title: A Paper", "", "lacks 'title'"),
        ('"2001.00001"', "2001.00001", r"arxiv must be of type str, not 2001\.00001 \(quote it\)"),
        ("optimizer=sgd", "optimizer=sdg", "'optimizer=sdg', but there is no conf/optimizer/sdg.yaml"),
        ("0.9125", "91.25", "write 0.9125 instead of 91.25"),
        ("table: Table 6, ", "", r"published\[0\] lacks 'table'"),
        ("{metric", "[{metric", "ours.yaml cannot be read"),
        ("[Ann Author, Bob Builder, Cy Cook]", "[]", "authors is empty"),
    ],
)
def test_a_bad_paper_is_told(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in PAPER
    with pytest.raises(UserError, match=sentence):
        read_paper(_conf(tmp_path, PAPER.replace(old, new)))


def test_one_and_two_authors() -> None:
    def cited(*authors: str) -> str:
        return Paper("p", "T", authors, "V", 2000, None, (), (Published("m/x", "d", "m", 1.0, "t"),)).cited

    assert cited("A") == "A, V 2000" and cited("A", "B") == "A and B, V 2000" and cited("A", "B", "C") == "A et al., V 2000"
