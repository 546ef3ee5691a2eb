"""Shared fixtures: few threads, no network, run folders in temporary places."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

from collections.abc import Iterator

import pytest

import papermix.run  # noqa: F401  (environment that must be set before torch is loaded)


@pytest.fixture(autouse=True)
def _own_outputs(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs that name no folder write below the test's own."""
    monkeypatch.setenv("PAPERMIX_OUTPUTS", str(tmp_path / "outputs"))
    yield


def pytest_configure() -> None:
    """One thread per process: the suite runs on small machines, and results do not depend on how many cores there are."""
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
