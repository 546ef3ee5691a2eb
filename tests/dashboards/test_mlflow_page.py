"""MLflow's own page in a browser: it has the run, its parameters, its curves and its pictures."""

import shutil
from pathlib import Path

import pytest

from papermix.run.folder import read_json
from tests import machine
from tests.dashboards.test_mlflow import records
from tests.dashboards.world import COMMAND, mlflow_server

pytestmark = pytest.mark.slow


@pytest.fixture
def browser():
    """Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("needs Debian's package chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


def test_the_page_shows_the_run(browser, outputs: Path, tmp_path: Path) -> None:
    place = tmp_path / "papermix-run"
    machine.run([*COMMAND, "logger=[csv,mlflow]", "optimizer.lr=0.125", "experiment=avagrad/digits"], place)
    record = records(outputs)["papermix-run"]
    identity, experiment = read_json(place / "mlflow.json")["id"], record.info.experiment_id
    with mlflow_server(tmp_path / "server", f"sqlite:///{outputs / 'mlflow.db'}") as (address, _):
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(240_000)
        page.goto(f"{address}/#/experiments/{experiment}/runs")
        page.get_by_text("papermix-run").first.wait_for()
        # overview: parameters, tags, the table of results
        page.goto(f"{address}/#/experiments/{experiment}/runs/{identity}")
        page.get_by_text("optimizer.lr").first.wait_for()
        page.get_by_text("0.125").first.wait_for()
        page.get_by_text("test accuracy").first.wait_for()
        # curves
        page.get_by_role("tab", name="Model metrics").click()
        page.get_by_placeholder("Search metric charts").fill("train/loss")
        page.get_by_text("loss", exact=True).first.wait_for()
        page.locator(".js-plotly-plot .scatterlayer path.js-line").first.wait_for(state="attached")
        # pictures: the one of the last validation is drawn
        page.get_by_role("tab", name="Artifacts").click()
        page.get_by_text("images").first.click()
        page.get_by_text("predictions+step+24").last.click()
        page.wait_for_function("[...document.images].some(i => i.naturalWidth > 300 && i.src.startsWith('blob:'))")
        page.screenshot(path=str(tmp_path / "pictures.png"))
