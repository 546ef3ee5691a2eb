"""The README and the other pages say what is true: commands compose, the example works, links lead somewhere."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from papermix.errors import UserError
from papermix.run.compose import compose, freeze
from papermix.run.sweep import combinations

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SEARCHES = ("interval(", "tag(", "hydra/sweeper=optuna")


def blocks(kind: str, page: str = README) -> list[tuple[str, str]]:
    """(what stands behind the language, text) of the fenced blocks of a language."""
    return re.findall(rf"```{kind}([^\n]*)\n(.*?)```", page, re.S)


def commands() -> list[str]:
    """The command lines of train.py on all pages, those of the worked example left out."""
    texts = [text for page in PAGES for info, text in blocks("sh", page.read_text()) if "run" not in info]
    lines = [line for text in texts for line in text.splitlines()]
    return [line for line in dict.fromkeys(lines) if line.startswith("python train.py")]


@pytest.mark.parametrize("line", commands())
def test_commands_compose(line: str) -> None:
    words = [w for w in shlex.split(line, comments=True)[2:] if w not in ("-m", "--cfg", "job")]
    if any("=outputs/" in w for w in words):
        return  # the name of a run that nobody has
    words = [w for w in words if not w.startswith("hydra") and not any(s in w for s in SEARCHES)]
    if "-m" in line:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        points = combinations(OverridesParser.create().parse_overrides(words))
        assert points
    else:
        points = [words]
    for point in points:
        assert freeze(compose(point, with_hydra=True), point, Path("runs/x"))


def test_the_refusals_shown_are_those_given() -> None:
    shown = re.findall(r"\$ python train\.py ([^\n]*)\nerror: ([^\n]*)", README)
    assert len(shown) == 2
    for arguments, sentence in shown:
        with pytest.raises(Exception) as caught:
            freeze(compose(arguments.split(), with_hydra=True), arguments.split(), Path("runs/x"))
        from papermix.run.explain import explain

        start = sentence.removesuffix("...").rstrip()
        assert explain(caught.value, arguments.split()).startswith(start), explain(caught.value)
        assert isinstance(caught.value, UserError) or "hydra" in type(caught.value).__module__


def test_the_worked_example_works(tmp_path: Path) -> None:
    for name in ("train.py", "papermix", "lightning_modules", "datamodules", "callbacks", "conf"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path)
    files = [(info.split("file=")[1], text) for kind in ("python", "yaml") for info, text in blocks(kind) if "file=" in info]
    assert len(files) == 2
    for name, text in files:
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(text)
    (line,) = [text.strip() for info, text in blocks("sh") if "run" in info]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *shlex.split(line)[1:], "dataset.fake=true", "hydra.run.dir=run"],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "train/entropy" in (tmp_path / "run/metrics.csv").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_licence_and_front_door() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    lock = (ROOT / "requirements.lock").read_text()
    assert "--index-url" not in lock and "://" not in lock and "sha256:" in lock
    assert "make train" in README and "make test" in README
