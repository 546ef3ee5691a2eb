"""Every recipe takes two steps on two processes, with all that it has by default, and ends: minutes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from papermix.run import catalog
from tests.docs.pages import Command
from tests.docs.shorten import arguments
from tests.docs.test_commands import Workshop

RECIPES = sorted(catalog.options("experiment"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    made = Workshop(tmp_path_factory.mktemp("recipes") / "papermix")
    yield made
    made.close()


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes(recipe: str, workshop: Workshop) -> None:
    command = Command(Path("recipes"), "", ("python", "train.py", f"experiment={recipe}", "hardware=ddp_cpu"), 0)
    status, output = workshop.run(["train.py", *arguments(command)], seconds=200)
    assert status == 0, output[-2000:]
