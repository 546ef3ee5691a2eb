"""The pages say what is true: every command composes or parses, snippets run, refusals are those given, links lead somewhere."""

import contextlib
import importlib
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from papermix.errors import UserError
from papermix.run.compose import compose, freeze
from papermix.run.explain import explain
from papermix.run.sweep import combinations
from tests.docs.pages import PAGES, PLACEHOLDER, PROGRAMS, ROOT, Command, Fence, fenced, fences, inline, overrides, refusals

SEARCHES = ("interval(", "tag(", "range(", "choice(")
COMMANDS = list({c.words: c for page in PAGES for c in [*fenced(page), *inline(page)]}.values())
SNIPPETS = [(page, f) for page in PAGES for f in fences(page) if f.language == "python" and not f.info]


def name(page: Path) -> str:
    """A page for test ids."""
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_fence_has_a_known_kind(page: Path) -> None:
    for fence in fences(page):
        where = f"{name(page)}:{fence.line}"
        if fence.language == "sh":
            assert fence.info in PROGRAMS, f"{where}: a fence 'sh {fence.info}' is not known; there are {', '.join(PROGRAMS)}"
        elif fence.language in ("python", "yaml"):
            assert re.fullmatch(r"(file=[\w/.]+)?", fence.info), f"{where}: {fence.info}"
        elif fence.language != "console":
            assert not re.search(r"^\W*python ", fence.text, re.M), f"{where}: a command in a fence that is neither sh nor console"
    for command in fenced(page):
        assert command.words[0] in PROGRAMS[command.kind], f"{command}: not a program of a fence 'sh {command.kind}'"
        if command.words[0] == "python":
            assert command.is_train or command.script, f"{command}: neither train.py nor a script"
    text = page.read_text()
    assert text.count("```") % 2 == 0 and len(re.findall(r"^```", text, re.M)) == 2 * len(list(fences(page))), name(page)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.is_train], ids=lambda c: " ".join(c.words[2:])[:80])
def test_trainings_compose(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, flags = overrides(command.words)
    shown = [f.info.removeprefix("file=conf/").removesuffix(".yaml").replace("/", "=") for f in fences(command.page)]
    if any(w.startswith("resume=") or w in shown for w in words):
        return  # the config is that of the run; or an option that the page itself makes
    words = [w for w in words if not PLACEHOLDER.search(w.partition("=")[2]) and "=outputs/" not in w]
    words = [w for w in words if not w.startswith("hydra.") and not any(s in w for s in SEARCHES)]
    if "-m" in flags:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        grid = combinations(OverridesParser.create().parse_overrides([w for w in words if not w.startswith("hydra/")]))
        points = [grid[0], *grid[1:][-1:]]  # the first and the last: the others have the same keys
    else:
        points = [words]
    for point in points:
        assert freeze(compose(point, with_hydra=True), point, Path("runs/x")), command


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.script], ids=lambda c: " ".join(c.words[1:])[:80])
def test_scripts_take_their_arguments(command: Command) -> None:
    script = importlib.import_module(f"scripts.{command.script}")
    args = script.parse(list(command.words[2:]))
    names = [n for n in getattr(args, "names", []) if n != "NAME"]
    if command.script == "claims":
        assert all((ROOT / "conf" / "claim" / f"{n}.yaml").exists() for n in names if n.isidentifier()), command
    elif command.script == "benchmark":
        assert script.chosen(names)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.kind == "install"], ids=str)
def test_what_is_installed_exists(command: Command) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in re.findall(r"\[([\w,]+)\]", " ".join(command.words)):
        assert set(extra.split(",")) <= set(extras), command
    if command.words[0] == "make":
        assert re.search(rf"^{command.words[1]}:", (ROOT / "Makefile").read_text(), re.M), command


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_refusals_shown_are_those_given(page: Path) -> None:
    shown = [pair for f in fences(page) for pair in refusals(f)]
    for line, sentence in shown:
        arguments = shlex.split(line)[2:]
        try:
            freeze(compose(arguments, with_hydra=True), arguments, Path("runs/x"))
        except Exception as error:
            assert isinstance(error, UserError) or "hydra" in type(error).__module__
            given = explain(error, arguments)
            assert given.startswith(sentence.removesuffix("...").rstrip()), given
        # others are given when the parts are put together: test_commands.py asks for them


@pytest.mark.parametrize(("page", "fence"), SNIPPETS, ids=[f"{name(p)}:{f.line}" for p, f in SNIPPETS])
def test_snippets_run(page: Path, fence: Fence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(open(os.devnull, "w")):
        exec(compile("\n" * fence.line + fence.text, str(page), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
            if ROOT / "docs" in page.parents:
                assert (page.parent / target).resolve().is_relative_to(ROOT / "docs"), f"{target} leads out of the site"


def test_front_door() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    lock = (ROOT / "requirements.lock").read_text()
    assert "--index-url" not in lock and "://" not in lock and "sha256:" in lock
    assert "make train" in readme and "make test" in readme
    assert sys.version_info[:2] >= (3, 11)
