"""A run that is killed or stopped anywhere and continued is the run that never stopped: weights, files, log, data order."""

import os
import signal
from pathlib import Path

import pytest
import torch

from callbacks.checkpoints import Checkpoints, Preempted
from callbacks.rng import RandomState, get_state, set_state
from papermix.errors import UserError
from papermix.run.checkpoint_io import VerifiedCheckpointIO, find_last, read, verify
from papermix.run.loggers import csv
from tests.callbacks.world import Killed, Small, fit, same, trainer, weights


def run(folder: Path, module: Small, every: int | None = None, top_k: int = 2, **keys) -> Small:
    """One process's life: continue from what the folder holds, or start."""
    callbacks = [RandomState(), Checkpoints(str(folder / "checkpoints"), every_n_steps=every, top_k=top_k)]
    runner = trainer(folder, callbacks, [csv(str(folder))], plugins=[VerifiedCheckpointIO()], **keys)
    found = find_last(folder / "checkpoints")
    return fit(module, runner, None if found is None else str(found.path))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


CASES = {
    "validation at epoch ends": {},
    "validation inside epochs": {"val_check_interval": 2},
    "validation that divides no epoch": {"val_check_interval": 4},
    "no validation": {"limit_val_batches": 0},
    "validation every second epoch": {"check_val_every_n_epoch": 2, "max_epochs": 4},
    "accumulation": {"accumulate_grad_batches": 4},
    "validation between accumulated batches": {"accumulate_grad_batches": 2, "val_check_interval": 3},
    "steps": {"max_steps": 15, "max_epochs": -1},
}


@pytest.mark.parametrize("case", CASES)
def test_killed_and_continued_equals_never_stopped(tmp_path: Path, case: str) -> None:
    keys = CASES[case]
    for every in (None, 1):
        whole = tmp_path / f"whole-{every}"
        reference = run(whole, Small(), every, **keys)
        assert not same(weights(Small()), weights(reference))
        text = (whole / "metrics.csv").read_text()
        for number, batch in enumerate((1, 5, 6, 9, 12)):
            folder = tmp_path / f"{every}-{batch}"
            dies = number % 2 == 0
            first = Small(die_at=batch) if dies else Small(signal_at=batch)
            with pytest.raises(Killed if dies else Preempted):
                run(folder, first, every, **keys)
            second = run(folder, Small(), every, **keys)
            assert same(weights(reference), weights(second)), (every, batch)
            assert (folder / "metrics.csv").read_text() == text, (every, batch)
            assert names(folder) == names(whole), (every, batch)
            if not dies and not keys.get("accumulate_grad_batches"):
                assert first.seen + second.seen == reference.seen


class Power:
    """Cut at the ``at``-th call that makes, renames or removes a checkpoint: from then on nothing is written any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int | None = None) -> None:
        self.at, self.calls = at, 0
        for name in ("replace", "rename", "link", "unlink", "remove"):
            monkeypatch.setattr(os, name, self.cut(getattr(os, name)))

    def cut(self, call):
        def counted(path, *rest, **keys):
            if "checkpoints" in str(path) and not str(path).endswith(".tmp"):
                self.calls += 1
            if self.at is not None and self.calls >= self.at:
                raise Killed
            return call(path, *rest, **keys)

        return counted


@pytest.mark.parametrize("keys", [{"max_epochs": 2, "val_check_interval": 3}, CASES["validation between accumulated batches"]])
def test_killed_between_any_two_file_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict) -> None:
    with monkeypatch.context() as patch:
        power = Power(patch)
        reference = run(tmp_path / "whole", Small(), top_k=1, **keys)
    assert power.calls > 6
    for at in range(1, power.calls + 1):
        folder = tmp_path / str(at)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            Power(patch, at)
            run(folder, Small(), top_k=1, **keys)
        second = run(folder, Small(), top_k=1, **keys)
        assert same(weights(reference), weights(second)), at
        assert names(folder) == names(tmp_path / "whole"), at


def test_killed_several_times(tmp_path: Path) -> None:
    reference = run(tmp_path / "whole", Small(), 2)
    for batch in (3, 5, 9, 14):
        with pytest.raises(Killed):
            run(tmp_path / "cut", Small(die_at=batch), 2)
    assert same(weights(reference), weights(run(tmp_path / "cut", Small(), 2)))


def test_finished_run_is_left_alone(tmp_path: Path) -> None:
    reference = run(tmp_path, Small())
    text = (tmp_path / "metrics.csv").read_text()
    again = run(tmp_path, Small())
    assert again.seen == []
    assert same(weights(reference), weights(again))
    assert (tmp_path / "metrics.csv").read_text() == text


def test_start_afresh_forgets_a_killed_run_without_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path / "cut", Small(die_at=4))
    assert find_last(tmp_path / "cut/checkpoints") is None
    run(tmp_path / "whole", Small())
    run(tmp_path / "cut", Small())
    assert (tmp_path / "cut/metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()


def test_moved_folder_continues(tmp_path: Path) -> None:
    reference = run(tmp_path / "whole", Small(), 1)
    with pytest.raises(Killed):
        run(tmp_path / "here", Small(die_at=14), 1)
    (tmp_path / "here").rename(tmp_path / "there")
    assert same(weights(reference), weights(run(tmp_path / "there", Small(), 1)))
    assert names(tmp_path / "there") == names(tmp_path / "whole")


def test_best_are_kept_by_value(tmp_path: Path) -> None:
    """Every validation's value is in the log: the kept files are the highest of them, the earlier one at equal values."""
    run(tmp_path, Small(), top_k=2, val_check_interval=2)
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]]
    values = [round(float(r[3]), 4) for r in rows if r[2] == "val/accuracy"]
    assert len(values) == 9
    best = sorted(values, reverse=True)[:2]
    kept = [n for n in names(tmp_path) if n.startswith("best")]
    assert sorted((float(n.split("=")[-1].removesuffix(".ckpt")) for n in kept), reverse=True) == best
    for name in kept:
        step = int(name.split("=")[1].split("-")[0])
        assert read(tmp_path / "checkpoints" / name)["global_step"] == step
        assert values[step // 2 - 1] == float(name.split("=")[-1].removesuffix(".ckpt"))
    callback = Checkpoints(str(tmp_path / "checkpoints"), monitor="val/accuracy", mode="max")
    assert Path(callback.best_model_path).name == f"best-step={callback.best()[0][1]:06d}-val_accuracy={best[0]:.4f}.ckpt"


def test_a_damaged_last_does_not_push_out_the_previous(tmp_path: Path) -> None:
    """The run continues from last-previous; its first save must not replace that by the damaged file."""
    reference = run(tmp_path / "whole", Small(), 1)
    with pytest.raises(Killed):
        run(tmp_path / "cut", Small(die_at=9), 1)
    folder = tmp_path / "cut/checkpoints"
    (folder / "last-previous.ckpt").write_bytes((folder / "last.ckpt").read_bytes())
    (folder / "last.ckpt").write_bytes(b"rubbish")
    found = find_last(folder)
    assert found is not None
    assert (found.path.name, found.step) == ("last-previous.ckpt", 9)
    assert "last.ckpt" in found.skipped
    verified: list[bool] = []

    class Watching(VerifiedCheckpointIO):
        def save_checkpoint(self, *args, **kwargs):
            verified.append(find_last(folder) is not None and (folder / "last-previous.ckpt").exists())
            super().save_checkpoint(*args, **kwargs)

    callbacks = [RandomState(), Checkpoints(str(folder), every_n_steps=1)]
    last = fit(Small(), trainer(tmp_path / "cut", callbacks, plugins=[Watching()]), str(found.path))
    assert all(verified)
    assert verified
    assert same(weights(reference), weights(last))
    # the one before the last is kept, to fall back to
    assert verify(folder / "last-previous.ckpt")["step"] <= verify(folder / "last.ckpt")["step"]


def test_signal_names_step_and_file(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(Preempted, match=r"SIGUSR1: saved step 4 to .*last\.ckpt") as caught:
        run(tmp_path, Small(signal_at=3, number=signal.SIGUSR1))
    assert (caught.value.signal, caught.value.step) == (signal.SIGUSR1, 4)
    assert signal.getsignal(signal.SIGUSR1) == before


def test_saves_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock finds 25 seconds more: with ``every_minutes=1`` every third batch or so is saved."""
    now = [0.0]

    def tick() -> float:
        now[0] += 25
        return now[0]

    monkeypatch.setattr("callbacks.checkpoints.time.monotonic", tick)
    callback = Checkpoints(str(tmp_path), every_minutes=1)
    saved = []
    monkeypatch.setattr(callback, "_save", lambda t, **k: (saved.append(t.global_step), setattr(callback, "_clock", now[0])))
    fit(Small(), trainer(tmp_path, [callback], max_epochs=1, limit_val_batches=0))
    assert saved == [2, 5, 6]


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"mode": "maximum"}, "mode='maximum'"),
        ({"every_n_steps": 0}, "every_n_steps=0"),
        ({"signals": ["SIGTREM"]}, "did you mean 'SIGTERM'"),
    ],
)
def test_bad_settings(tmp_path: Path, keys: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Checkpoints(str(tmp_path), **keys)


def test_unknown_metric_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"monitor='val/acuracy'.*did you mean 'val/accuracy'"):
        fit(Small(), trainer(tmp_path, [Checkpoints(str(tmp_path), monitor="val/acuracy")]))


def test_random_states_round_trip() -> None:
    import random

    import numpy as np

    def draw() -> list[float]:
        return [torch.rand(()).item(), float(np.random.randn()), random.gauss(0, 1), random.random(), float(np.random.rand())]

    draw()
    state = get_state(torch.device("cpu"))
    first = draw()
    draw()
    set_state(state, torch.device("cpu"))
    assert draw() == first
