"""What a report writes beside its page: LaTeX that compiles, comparisons with papers, few points, few bytes of pictures."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from papermix.run.reporting import latex, published, report
from papermix.run.reporting.curves import thinned, thinned_curves
from papermix.run.reporting.papers import Paper, Published
from papermix.run.reporting.runs import read_runs
from papermix.run.reporting.thumbnails import pictures, thumbnails
from tests.scripts.made import make_run

UGLY = r"+note=50%_of_{a}&b#c$d~e^f\g<h>|i[j]*k--l,m×±–é中🙂"
PAPERS = {
    "ours": Paper(
        "ours", "Masks & More_100%", ("A", "B"), "V", 2020, None, (),
        (
            Published("test/accuracy", "digits", "mlp", 0.95, "Table 1", ("optimizer.lr=0.1",)),
            Published("test/accuracy", "cifar10", "resnet20", 0.9, "Table 2"),
        ),
    )
}  # fmt: skip


@pytest.fixture()
def root(tmp_path: Path) -> Path:
    """A sweep over a rate with two seeds, a run with an ugly name, one with a loss."""
    runs = tmp_path / "runs"
    for seed, low, high in ((1, 0.90, 0.97), (2, 0.92, 0.99)):
        make_run(runs, f"a{seed}", ["model=mlp", "optimizer.lr=0.1", f"seed={seed}"], {"test/accuracy": low}, paper="ours")
        make_run(runs, f"b{seed}", ["model=mlp", "optimizer.lr=0.2", f"seed={seed}"], {"test/accuracy": high}, paper="ours")
    make_run(runs, "ugly", ["optimizer.lr=3"], {"test/accuracy": float("nan")}, command=f"python train.py '{UGLY}' optimizer.lr=3")
    small = {"val/loss": 1.5e-7}
    make_run(runs, "loss", ["dataset=pydocs_char"], small, monitor={"name": "val/loss", "mode": "min"})
    return runs


def document(root: Path) -> str:
    """The LaTeX of all runs."""
    runs = read_runs(root).runs
    found, _ = report.sections(runs, PAPERS)
    return latex.document(found, published.compared(runs, found, PAPERS), PAPERS, "python scripts/report.py")


def test_latex_has_the_numbers(root: Path) -> None:
    text = document(root)
    assert text.count(r"\begin{tabular}") == 3 and text.count(r"\toprule") == text.count(r"\bottomrule") == 3
    for line in text.splitlines():
        if line.endswith(r"\\") and "seeds" in line:
            columns = line.count(" & ") + 1
        elif line.endswith(r"\\"):
            assert line.count(" & ") + 1 == columns, line
    (best,) = (line for line in text.splitlines() if "mathbf{98" in line)
    assert r"0.2 &  & 2 & $\mathbf{98.00} \pm 1.41$ & 1 k & 100 \% & 2 k & 10 s" in best
    assert r"$91.00 \pm 1.41$" in text and r"$\mathrm{nan}$" in text and r"1.5 \cdot 10^{-7}" in text
    assert r"91.00 \% $\pm$ 1.41 \% & 2 & {-}4.00 \%" in text and r"95.00 \% (ours, Table 1)" in text
    assert r"Masks \& More\_100\%" in text and "not measured" in text


def test_latex_has_a_column_for_each_of_few_parameters(root: Path) -> None:
    shutil.rmtree(root / "ugly")
    assert r"optimizer.lr & seeds & test accuracy (\%) & parameters" in document(root)


def test_no_character_is_a_command_of_latex(root: Path) -> None:
    made = latex.escaped(UGLY)
    plain = re.sub(r"\\text\w+\{\}|\\[{}$&%#_]|\$(<|>|\||\\pm|\\times)\$|\{[\[\]*-]\}", "", made)
    assert not set(plain) & set("\\{}$&%#_~^<>|") and "[U+4E2D][U+1F642]" in made and made.isprintable()
    assert latex.escaped("a\n\nb\tc") == "a b c"


def test_latex_compiles(root: Path, tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("needs Debian's packages texlive-latex-base and texlive-latex-recommended")
    (tmp_path / "tables.tex").write_text(document(root))
    (tmp_path / "main.tex").write_text(r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{tables}\end{document}")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, errors="replace")
    assert done.returncode == 0, done.stdout[-1500:]
    assert (tmp_path / "main.pdf").stat().st_size > 1000


def test_published_beside_measured(root: Path) -> None:
    runs = read_runs(root).runs
    found, _ = report.sections(runs, PAPERS)
    first, second, best = map(published.cells, published.compared(runs, found, PAPERS)["ours"])
    assert first[3:8] == ["95.00 %", "Table 1 (optimizer.lr=0.1)", "91.00 % ± 1.41 %", "2", "-4.00 %"]
    assert second[1:6] == ["cifar10", "resnet20", "90.00 %", "Table 2", "not measured"]
    assert best[3] == "" and best[5] == "98.00 % ± 1.41 %"
    make_run(root, "fake", ["model=mlp", "optimizer.lr=0.1", "dataset.fake=true", "seed=3"], {"test/accuracy": 0.1}, paper="ours")
    (root / "fake" / "config.yaml").write_text((root / "fake" / "config.yaml").read_text().replace("fake: true", "fake: true\n  other: 1"))
    again = published.compared(read_runs(root).runs, found, PAPERS)["ours"][0]
    assert published.cells(again)[5:7] == ["91.00 % ± 1.41 %", "2"]  # random data is no measurement
    assert published.compared([r for r in runs if not r.result["paper"]], found, PAPERS) == {}


def test_curves_keep_common_steps_and_their_ends() -> None:
    long, short = list(range(1, 1001)), list(range(1, 401))
    made = thinned({"a": (long, [s / 10 for s in long]), "b": (short, [s / 20 for s in short])}, 50)
    assert len(made["a"][0]) == 50 and made["a"][0][0] == 1 and made["a"][0][-1] == 1000 and made["b"][0][-1] == 400
    assert set(made["b"][0]) - set(made["a"][0]) <= {400} and all(v == s / 10 for s, v in zip(*made["a"]))
    # a step that stands there twice, as after a resume, counts once
    assert thinned({"a": ([1, 2, 2], [1.0, 2.0, 3.0])}, 50) == {"a": ([1, 2], [1.0, 3.0])}


def test_curves_that_have_no_room_are_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("papermix.run.reporting.curves.POINTS", 24 * 6)
    (root / "a1" / "metrics.csv").write_text("step,epoch,name,value\n" + "".join(f"{s},0,lr,1\n{s},0,train/loss,1\n" for s in range(500)))
    found, _ = report.sections(read_runs(root).runs, {})
    made, notes = thinned_curves(found)
    assert notes == ["curves of train/loss were left out to keep the page small: report fewer runs to see them."]
    assert made.metrics == [["val/accuracy", "lr"], ["val/accuracy"]]
    assert sum(len(curve[0]) for each in made.of.values() for curve in each.values()) <= 24 * 6 + 6


def test_pictures_stay_within_their_bytes(root: Path) -> None:
    for name in ("a1", "a2", "b1", "b2"):
        (root / name / "pictures").mkdir()
        for picture in ("step_000010", "step_000020", "masks"):
            Image.effect_noise((900, 300), 80).save(root / name / "pictures" / f"{picture}.png")
        Image.new("L", (10, 10)).save(root / name / "curves.png")
    (root / "a2" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no")
    runs = {run.folder.name: run for run in read_runs(root).runs}
    assert [p.name for p in pictures(runs["a1"])] == ["masks.png", "step_000020.png"]  # the last step, and not the curves
    found, _ = report.sections(list(runs.values()), {})
    every, notes = thumbnails(found, 10**9)
    assert sum(map(len, every.values())) == 8 and len(notes) == 1 and "broken.png cannot be shown" in notes[0]
    one = every[str(root / "b1")][0]
    assert (one.width, one.height) == (720, 240) and one.uri.startswith("data:image/webp;base64,")
    some, notes = thumbnails(found, int(3.5 * len(one.uri)))
    assert sum(len(t.uri) for each in some.values() for t in each) <= 3.5 * len(one.uri)
    assert "pictures were left out" in notes[-1] and "--pictures-mb" in notes[-1]
    assert str(root / "b1") in some  # the best first
