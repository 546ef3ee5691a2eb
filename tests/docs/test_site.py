"""The site: it builds without a warning, every page is in its navigation, and it asks nothing from the network."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

DOCS = ROOT / "docs"


def navigation() -> list[str]:
    """The pages that mkdocs.yml lists."""
    text = (ROOT / "mkdocs.yml").read_text()
    return re.findall(r"^\s+- (?:[^:#]+: )?([\w/]+\.md)$", text[text.index("\nnav:") :], re.M)


def test_every_page_is_in_the_navigation() -> None:
    listed, there = navigation(), {str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md")}
    assert len(listed) == len(set(listed))
    assert there - set(listed) == set(), "not in mkdocs.yml"
    assert set(listed) - there == set(), "in mkdocs.yml, but not there"
    assert {f"papers/{p.stem}.md" for p in (ROOT / "conf" / "paper").glob("*.yaml")} <= set(listed), "a paper without a page"


class Requests(HTMLParser):
    """Addresses that a browser asks for when it opens a page; links that a reader follows are none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            asks = key in ("src", "srcset", "poster", "data") or (key == "href" and tag in ("link", "use", "image"))
            if asks and value and not (tag == "link" and ("rel", "canonical") in attrs):
                self.found.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Building is strict: a warning fails."""
    pytest.importorskip("material", reason="needs mkdocs-material: pip install 'papermix[docs]'")
    place = tmp_path_factory.mktemp("site")
    # the theme's word about its successor is no fault of the pages
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(place)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return place


def test_the_site_builds_and_asks_nothing_from_the_network(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(navigation())
    for page in pages:
        parser = Requests()
        parser.feed(page.read_text())
        outside = [u for u in parser.found if re.match(r"(?:\w+:)?//", u)]
        assert not outside, f"{page.relative_to(site)}: {outside}"
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet


def test_the_site_shows_what_the_pages_say(site: Path) -> None:
    page = (site / "adding_a_method.html").read_text()
    assert "ConfidencePenalty" in page and "```" not in page, "a fence was not understood"
    for path in site.rglob("*.html"):
        text = re.sub(r"<(pre|code|script)\b.*?</\1>", "", path.read_text(), flags=re.S)
        assert "```" not in text and not re.search(r"^\|.*\|$", text, re.M), f"{path.relative_to(site)}: Markdown was not understood"
    assert "accelerator" in (site / "config" / "hardware.html").read_text()
