"""The bar on a terminal, lines elsewhere, and no tensor read between two pictures."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from callbacks.progress import Progress
from tests.callbacks.world import Small, fit, trainer


class Counted(torch.Tensor):
    """Counts how often it is read."""

    reads = 0

    def __float__(self) -> float:
        Counted.reads += 1
        return 0.25


class Reads(Small):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.progress = {"loss": torch.zeros(()).as_subclass(Counted)}
        return loss


def run(tmp_path: Path, console: Console, **keys) -> str:
    bar = Progress(console=console, **keys)
    fit(Reads(), trainer(tmp_path, [bar], enable_progress_bar=True))
    return console.file.getvalue()  # type: ignore[union-attr]


def test_bar(tmp_path: Path) -> None:
    Counted.reads = 0
    text = run(tmp_path, Console(file=io.StringIO(), force_terminal=True, width=150), refresh=0.0)
    assert "epoch 3/3" in text
    assert "train 6/6" in text
    assert "validation 3/3" in text
    assert "it/s" in text
    assert "loss 0.25" in text
    assert "val/accuracy 0." in text
    assert "0:00 left" in text
    # every batch and every epoch end here; with a slow clock only the first batch and the three epoch ends
    assert Counted.reads == 18 + 9 + 3
    Counted.reads = 0
    run(tmp_path, Console(file=io.StringIO(), force_terminal=True, width=150), refresh=1e9)
    assert Counted.reads == 1 + 3


def test_lines_when_the_output_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, Console(file=io.StringIO()), line_every=1e9)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("epoch 2/3  train 6/6  step 12  loss 0.25  val/accuracy 0.")
    assert lines[2].endswith("0:00 left")


def test_exception_gives_the_terminal_back(tmp_path: Path) -> None:
    class Fails(Small):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("boom")

    bar = Progress(console=Console(file=io.StringIO(), force_terminal=True))
    with pytest.raises(RuntimeError, match="boom"):
        fit(Fails(), trainer(tmp_path, [bar], enable_progress_bar=True))
    assert bar._live is None


def test_other_processes_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress(line_every=0.0)
    bar.disable()
    fit(Small(), trainer(tmp_path, [bar], enable_progress_bar=True))
    assert capsys.readouterr().out == ""


def test_speed_leaves_validations_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that moves 2 s in every training step and 100 s in every validation step."""
    now = [0.0]
    monkeypatch.setattr("callbacks.progress.time.monotonic", lambda: now[0])

    class Slow(Small):
        def training_step(self, batch, batch_idx):
            now[0] += 2
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx) -> None:
            now[0] += 100
            super().validation_step(batch, batch_idx)

    fit(Slow(), trainer(tmp_path, [Progress(line_every=1e9)], enable_progress_bar=True))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-2:] for line in lines] == [
        ["0.5 it/s", "10:24 left"],
        ["0.5 it/s", "5:12 left"],
        ["0.5 it/s", "0:00 left"],
    ]
