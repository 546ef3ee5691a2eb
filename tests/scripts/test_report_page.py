"""The page of a report in a real browser: it needs nothing but itself, sorts, filters, and shows the right numbers."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from papermix.run.reporting.papers import Paper, Published
from scripts.report import main
from tests.browser import Opened, chromium, open_file
from tests.scripts.made import make_run

RATES, DENSITIES, SEEDS = (0.01, 0.1, 1), (0.1, 0.5, 1), (1, 2)


def accuracy(rate: float, density: float, seed: int) -> float:
    """0.7 to 0.95: the middle rate is best, more weights are better but for the last ones; seeds are 0.02 apart."""
    return 0.8 + {0.01: -0.05, 0.1: 0.1, 1: -0.1}[rate] + {0.1: 0.0, 0.5: 0.04, 1: 0.03}[density] + 0.02 * (seed - 1.5)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests of this file."""
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine settings of two parameters with two seeds each, and a run of another dataset; pictures, unfinished and broken runs."""
    from PIL import Image

    root = tmp_path_factory.mktemp("page") / "runs"
    for rate, density, seed in product(RATES, DENSITIES, SEEDS):
        overrides = [f"sparsity.density={density}", f"optimizer.lr={rate}", f"seed={seed}"]
        score = accuracy(rate, density, seed)
        place = make_run(
            root, "-".join(overrides), overrides, {"test/accuracy": score, "test/loss": 1 - score}, paper="ours",
            density=float(density), effective_flops=2000 * density, wall_seconds=10.0, tags=["night"] if rate == 1 else [],
        )  # fmt: skip
        if seed == 1 and density == 1:
            (place / "pictures").mkdir()
            Image.new("RGB", (1000, 500), (200, 30, 30)).save(place / "pictures" / "masks.png")
    make_run(root, "other", ["dataset=fashion_mnist"], {"test/accuracy": 0.6})
    (root / "broken").mkdir()
    (root / "broken" / "result.json").write_text("{")
    (root / "stopped").mkdir()
    (root / "stopped" / "config.yaml").write_text("seed: 1")
    (root / "stopped" / "metrics.csv").write_text("step,epoch,name,value\n70,2,train/loss,0.5\n")
    return root


@pytest.fixture(scope="module")
def report(sweep: Path) -> Path:
    """Its page."""
    numbers = (
        Published("test/accuracy", "digits", "mlp", 0.96, "Table 1", ("optimizer.lr=0.1", "sparsity.density=0.5")),
        Published("test/accuracy", "cifar10", "resnet20", 0.91, "Table 2"),
    )
    papers = {"ours": Paper("ours", "A <b>Paper</b>", ("A", "B"), "V", 2020, "1234.5678", (), numbers)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("papermix.run.reporting.papers.load_papers", lambda: papers)
        return next(p for p in main([str(sweep)]) if p.suffix == ".html")


@pytest.fixture()
def opened(browser: Any, report: Path) -> Iterator[Opened]:
    """The page, freshly opened; at the end it must have said nothing and asked for nothing."""
    out = open_file(browser, report, viewport={"width": 1300, "height": 900})
    yield out
    assert out.said == [] and out.asked == [report.as_uri()]
    out.page.context.close()


def settings(page: Any) -> list[tuple[str, str]]:
    """(density, rate) of the table's rows, in order."""
    lines = page.locator("#table tr.setting").evaluate_all("rows => rows.map(r => [...r.cells].map(c => c.innerText.trim()))")
    return [(line[0], line[1]) for line in lines]


def best_first(key: Callable[[float, float], float] | None = None) -> list[tuple[str, str]]:
    """The settings, best first, or the greatest key first."""
    rank = key or (lambda rate, density: sum(accuracy(rate, density, s) for s in SEEDS))
    return [(f"{d}", f"{r}") for r, d in sorted(product(RATES, DENSITIES), key=lambda rd: rank(*rd), reverse=True)]


def test_it_loads_in_light_and_dark(browser: Any, report: Path) -> None:
    backgrounds = []
    for scheme in ("light", "dark"):
        out = open_file(browser, report, color_scheme=scheme, offline=True)
        backgrounds.append(out.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        headings = out.page.locator("h2").all_inner_texts()
        assert headings == [
            "digits: test accuracy", "Training curves", "Heat map", "What it costs", "Pictures", "Published and measured", "Left out",
        ]  # fmt: skip
        assert out.said == [] and out.asked == [report.as_uri()]
        out.page.context.close()
    assert backgrounds == ["rgb(255, 255, 255)", "rgb(20, 24, 29)"]
    text = report.read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?(http|//)|@import|url\(""", text.partition('id="data"')[0])


def test_rows_are_best_first_and_sort_by_any_column(opened: Opened) -> None:
    page = opened.page
    assert settings(page) == best_first()
    header = page.locator("#table thead tr").first.locator("th")
    assert [h.split(" ▼")[0] for h in header.all_inner_texts()][:4] == ["sparsity.density", "optimizer.lr", "seeds", "test accuracy"]
    assert header.nth(3).get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="test accuracy").click()
    assert settings(page) == best_first()[::-1] and header.nth(3).get_attribute("aria-sort") == "ascending"
    page.get_by_role("button", name="optimizer.lr", exact=True).click()
    assert [rate for _, rate in settings(page)] == ["0.01"] * 3 + ["0.1"] * 3 + ["1"] * 3  # by number
    page.get_by_role("button", name="FLOPs per example").click()
    assert [density for density, _ in settings(page)] == ["1"] * 3 + ["0.5"] * 3 + ["0.1"] * 3
    assert page.locator("[aria-sort]").count() == 1


@pytest.mark.parametrize(
    ("column", "wanted", "kept"),
    [
        ("test accuracy", "> 85", [("0.5", "0.1"), ("1", "0.1"), ("0.1", "0.1")]),
        ("test accuracy", "93.00 % ±", [("1", "0.1")]),
        ("density", "<=10", [("0.1", "0.1"), ("0.1", "0.01"), ("0.1", "1")]),
        ("optimizer.lr", "=0.1", [("0.5", "0.1"), ("1", "0.1"), ("0.1", "0.1")]),
        ("FLOPs per example", ">1.5k", [("1", "0.1"), ("1", "0.01"), ("1", "1")]),
        ("seeds", "> 2", []),
    ],
)
def test_a_column_filters(opened: Opened, column: str, wanted: str, kept: list[tuple[str, str]]) -> None:
    opened.page.get_by_label(f"filter {column}", exact=True).fill(wanted)
    assert settings(opened.page) == kept
    assert opened.page.locator(".controls [role=status]").inner_text() == f"{len(kept)} of 9 settings"


def test_words_filter_and_what_is_drawn_follows(opened: Opened) -> None:
    page = opened.page
    page.get_by_label("search").fill("NIGHT density=0.5")
    assert settings(page) == [("0.5", "1")]
    assert page.locator(".legend li").count() == 2  # the head, and the setting
    page.get_by_label("search").fill("")
    assert len(settings(page)) == 9


def test_a_setting_opens_to_its_seeds(opened: Opened) -> None:
    page = opened.page
    first = page.locator("#table tr.setting").first
    assert first.locator("td").nth(2).inner_text() == "94.00 % ± 1.41 %"
    button = first.get_by_role("button")
    assert button.get_attribute("aria-expanded") == "false"
    button.press("Enter")
    runs = page.locator("#table tr.run").evaluate_all("rows => rows.map(r => [...r.cells].map(c => c.innerText.trim()))")
    assert [(r[0], r[3]) for r in runs] == [("seed 1", "93.00 %"), ("seed 2", "95.00 %")]
    where = page.locator("#table tr.where").first.inner_text()
    assert "runs/sparsity.density=0.5-optimizer.lr=0.1-seed=1 · python train.py sparsity.density=0.5 optimizer.lr=0.1 seed=1" in where
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    page.keyboard.press("Enter")
    assert page.locator("#table tr.run").count() == 0


def test_heat_map_is_automatic_for_two_parameters(opened: Opened) -> None:
    page = opened.page

    def cells() -> list[list[str]]:
        return page.locator("table.heat tr").evaluate_all("rows => rows.map(r => [...r.cells].map(c => c.innerText.trim()))")

    def wanted(value: Callable[[float, float], str]) -> list[list[str]]:
        return [[f"{d}", *(value(r, d) for r in RATES)] for d in DENSITIES]

    head, *body = cells()
    assert head == ["sparsity.density \\ optimizer.lr", "0.01", "0.1", "1"]
    assert body == wanted(lambda r, d: f"{50 * (accuracy(r, d, 1) + accuracy(r, d, 2)):.2f} %")
    shares = page.locator("table.heat td").evaluate_all("cells => cells.map(c => parseFloat(c.style.getPropertyValue('--share')))")
    assert max(shares) == shares[4] == 92 and min(shares) == shares[2] == 8  # the best and the worst cell
    assert page.locator("table.heat td").nth(4).get_attribute("title") == "optimizer.lr=0.1 sparsity.density=0.5: 94.00 % ± 1.41 %, 2 runs"
    page.get_by_label("metric").select_option("test loss")
    assert settings(page) == best_first()  # the least loss first
    _, *body = cells()
    assert body == wanted(lambda r, d: f"{1 - sum(accuracy(r, d, s) for s in SEEDS) / 2:.4g}")
    page.get_by_label("rows").select_option("optimizer.lr")
    page.get_by_label("columns").select_option("sparsity.density")
    assert cells()[0] == ["optimizer.lr \\ sparsity.density", "0.1", "0.5", "1"]


def test_curves_show_values_where_one_points(opened: Opened) -> None:
    page = opened.page
    names = page.locator(".legend li span:nth-child(2)").all_inner_texts()[1:]
    assert names == [f"sparsity.density={d} optimizer.lr={r}" for d, r in best_first()][:8]
    best = sum(accuracy(0.1, 0.5, s) for s in SEEDS) / 2
    values = page.locator(".legend .value")
    assert values.all_inner_texts()[:2] == ["step 30", f"{100 * best:.2f} %"]
    figure = page.locator("#curves .chart > svg")
    assert figure.locator("path.curve:not(.single)").count() == 8 and figure.locator("path.single").count() == 16
    figure.focus()
    page.keyboard.press("ArrowLeft")
    assert values.all_inner_texts()[:2] == ["step 20", f"{100 * best * 20 / 30:.2f} %"]
    figure.scroll_into_view_if_needed()
    box = figure.bounding_box()
    figure.hover(position={"x": box["width"] * 0.1, "y": 100})
    assert values.all_inner_texts()[:2] == ["step 10", f"{100 * best * 10 / 30:.2f} %"]
    page.get_by_label("curve", exact=True).select_option("train loss")
    assert values.all_inner_texts()[:2] == ["step 30", "0.25"]
    page.get_by_label("settings", exact=True).select_option("first 4")
    assert figure.locator("path.curve:not(.single)").count() == 4
    heights = figure.locator("path.curve:not(.single)").first.get_attribute("d")
    page.get_by_label("logarithmic").check()
    assert figure.locator("path.curve:not(.single)").first.get_attribute("d") != heights


def test_fronts(opened: Opened) -> None:
    page = opened.page
    panels = page.locator("#fronts svg")
    assert panels.count() == 2  # density and FLOPs differ, time does not
    titles = panels.first.locator("circle.point.front title").all_text_contents()
    assert sorted(t.partition(":")[0] for t in titles) == ["sparsity.density=0.1 optimizer.lr=0.1", "sparsity.density=0.5 optimizer.lr=0.1"]
    assert panels.first.locator("circle.point").count() == 9
    panels.first.scroll_into_view_if_needed()
    panels.first.locator("circle.point.front").last.hover()
    told = page.locator("#fronts output").first.inner_text()
    assert told in titles and re.search(r": 9[04]\.00 % ± 1\.41 %, density (10|50) %, 2 seeds$", told)


def test_published_is_marked_and_stands_beside_measured(opened: Opened) -> None:
    page = opened.page
    assert page.locator("#papers h3 a").inner_text() == "A <b>Paper</b>"
    lines = page.locator("#papers tbody tr").evaluate_all("rows => rows.map(r => [...r.cells].map(c => c.innerText.trim()))")
    assert lines[0][3:8] == ["96.00 %published", "Table 1 (optimizer.lr=0.1) (sparsity.density=0.5)", "94.00 % ± 1.41 %", "2", "-2.00 %"]
    assert lines[1][1:6] == ["cifar10", "resnet20", "91.00 %published", "Table 2", "not measured"]
    assert lines[2][3] == "" and lines[2][5] == "93.00 % ± 1.41 %"  # the best without a published number
    cell = page.locator("#table tr.setting").first.locator("td").last
    assert cell.inner_text() == "96.00 % (ours, Table 1)"


def test_pictures_are_decoded_when_they_are_seen(opened: Opened) -> None:
    page = opened.page
    images = page.locator("#pictures img")
    assert images.count() == 3 and len(images.last.get_attribute("src")) < 60
    images.last.scroll_into_view_if_needed()
    size = """async i => {
        while (!i.src.startsWith('data:image/webp')) await new Promise(requestAnimationFrame);
        await i.decode();
        return [i.naturalWidth, i.naturalHeight];
    }"""
    assert images.last.evaluate(size) == [720, 360]
    assert images.first.get_attribute("alt") == "pictures/masks.png of sparsity.density=1 optimizer.lr=0.1, seed 1"


def test_what_was_left_out_is_named(opened: Opened) -> None:
    assert opened.page.locator("#summary").inner_text() == "19 of 19 runs, 1 unfinished, 1 unreadable"
    named = opened.page.locator("#left li").all_inner_texts()
    assert any(re.search(r"runs/stopped stopped or still running, after step 70", line) for line in named)
    assert any("broken/result.json cannot be used" in line for line in named)


def test_another_dataset_has_its_own_table(opened: Opened) -> None:
    page = opened.page
    page.get_by_label("runs", exact=True).select_option(label="fashion_mnist: test accuracy (1 settings)")
    assert page.locator("#table tr.setting").count() == 1 and page.locator("#settings h2").inner_text() == "fashion_mnist: test accuracy"
    assert page.locator("#heat").count() == page.locator("#fronts").count() == 0


def test_every_field_and_table_has_a_name(opened: Opened) -> None:
    unnamed = """() => [...document.querySelectorAll('input, select, svg[role=img], img, section')].filter(e =>
        !(e.getAttribute('aria-label') || e.alt || (e.labels && e.labels.length))).map(e => e.outerHTML.slice(0, 80))"""
    assert opened.page.evaluate(unnamed) == []
    loose = "() => [...document.querySelectorAll('thead tr:first-child th')].filter(h => h.innerText && !h.scope && !h.closest('.heat')).length"
    assert opened.page.evaluate(loose) == 0
    assert opened.page.locator("html").get_attribute("lang") == "en" and opened.page.title() == "papermix report"


HOSTILE = """</script><script>window.hit = 1</script><img src=x onerror="window.hit=2">'\u2028]]>{{data}}"""


def test_hostile_names_are_text(browser: Any, tmp_path: Path) -> None:
    root = tmp_path / "runs <b>"
    for seed in (1, 2):
        overrides = [f"+note={HOSTILE}".replace("'", ""), f"seed={seed}"]
        place = make_run(root, f"a{seed} <script>window.hit=3<", overrides, {"test/accuracy": 0.5, f"val/{HOSTILE}": 1.0})
        result = json.loads((place / "result.json").read_text())
        command = f"python train.py '{overrides[0]}' {overrides[1]}"
        result |= {"command": command, "tags": [HOSTILE], "choices": {"dataset": HOSTILE}}
        (place / "result.json").write_text(json.dumps(result))
        name = HOSTILE.replace("/", "").replace("\u2028", "")
        (place / "metrics.csv").write_text(f"step,epoch,name,value\n1,0,\"{name.replace(chr(34), '')}\",0.5\n2,0,val/x,nan\n")
    make_run(root, "b", ["model=small_cnn"], {"test/accuracy": float("nan")}, choices={"dataset": HOSTILE})
    (root / "c <img src=x onerror='window.hit=4'>").mkdir()
    (root / "c <img src=x onerror='window.hit=4'>" / "config.yaml").write_text("")
    (root / "c <img src=x onerror='window.hit=4'>" / "error.txt").write_text(f"Trace\nValueError: {HOSTILE}")
    page_file, *_ = main([str(root), "--to", str(tmp_path / "out")])
    out = open_file(browser, page_file)
    assert out.page.locator("#table tr.setting").count() == 2
    assert HOSTILE.replace("'", "").split("\u2028")[0] in out.page.locator("#table").inner_text()
    out.page.locator("button.open").first.click()
    out.page.get_by_label("metric").select_option(index=1)
    out.page.wait_for_timeout(200)
    assert out.page.evaluate("window.hit") is None and out.page.locator("script").count() == 2 and out.page.locator("img").count() == 0
    assert out.said == [] and len(out.asked) == 1
    # and a script that comes in all the same does not run: the policy of the page
    out.page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hit = 5'}))")
    assert out.page.evaluate("window.hit") is None and "Content Security Policy" in out.said[0]
    out.page.context.close()


@pytest.mark.slow
def test_a_sweep_as_it_is_trained(browser: Any, tmp_path: Path) -> None:
    """Nothing made up: four trainings of two parameters, their pictures, and the page of what they leave."""
    sweep = ["sparsity.density=0.2,0.5", "optimizer.lr=0.05,0.2", "sparsity=magnitude", "trainer.max_epochs=1", "callbacks=[default,pictures]"]
    environment = {**os.environ, "PAPERMIX_OUTPUTS": str(tmp_path / "outputs"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "train.py", "-m", *sweep], check=True, capture_output=True, env=environment, timeout=500)
    page_file = main([str(tmp_path / "outputs")])[0]
    results = [json.loads(p.read_text()) for p in (tmp_path / "outputs").rglob("result.json")]
    out = open_file(browser, page_file)
    assert sorted(settings(out.page)) == [("0.2", "0.05"), ("0.2", "0.2"), ("0.5", "0.05"), ("0.5", "0.2")]
    cells = out.page.locator("table.heat td").all_inner_texts()
    assert sorted(cells) == sorted(f"{100 * r['metrics']['test/accuracy']:.2f} %" for r in results)
    assert out.page.locator("#pictures img").count() == 4 and out.page.locator("path.curve").count() == 8
    assert out.said == [] and out.asked == [page_file.as_uri()]
    out.page.context.close()


def test_five_hundred_runs(browser: Any, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for i in range(500):
        overrides = [f"model.width={i // 5}", f"optimizer.lr={(i % 25) // 5}", f"seed={i % 5}"]
        place = make_run(root, f"run{i}", overrides, {"test/accuracy": i / 1000}, density=1 / (1 + i // 5))
        lines = [f"{s},0,{name},{i / 1000 + s / 1e4}" for s in range(1, 301) for name in ("val/accuracy", "train/loss", "lr")]
        (place / "metrics.csv").write_text("step,epoch,name,value\n" + "\n".join(lines) + "\n")
    page_file, *files = main([str(root)])
    assert page_file.stat().st_size < 4_000_000 and len(files) < 20
    out = open_file(browser, page_file)
    page = out.page
    assert page.locator("#table tr.setting").count() == 100 and page.locator("*").count() < 6000
    page.get_by_label("filter model.width").fill(">= 98")
    assert page.locator("#table tr.setting").count() == 2
    assert page.locator(".legend .value").nth(1).inner_text() == f"{100 * (0.497 + 0.03):.2f} %"  # the mean of the last step is exact
    assert out.said == []
    page.context.close()
