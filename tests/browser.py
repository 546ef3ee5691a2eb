"""A headless Chromium for tests of pages: Debian's package chromium, driven by playwright."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Opened:
    """A page in the browser, with what its console said and what it asked the network for."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """The browser; skips the test where it is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright: pip install playwright")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs Debian's package chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # root, as in a container, has no sandbox
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        try:
            yield browser
        finally:
            browser.close()


def open_file(browser: Any, path: Path, **options: Any) -> Opened:
    """Open a file as a user would, by a double click; ``options`` are those of a browser context."""
    out = Opened(browser.new_context(**options).new_page())
    out.page.on("console", lambda message: out.said.append(f"{message.type}: {message.text}"))
    out.page.on("pageerror", lambda error: out.said.append(f"error: {error}"))
    out.page.on("request", lambda request: out.asked.append(request.url))
    out.page.goto(path.absolute().as_uri())
    return out
