"""Running small experiments inside a test: in this process, stopped where wanted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from papermix.run import folder, stage
from papermix.run.checkpoint_io import read
from papermix.run.compose import compose, freeze


class Killed(Exception):
    """What a test raises to end a run in the middle, without a word to anybody."""


class StopBefore(pl.Callback):
    """Raise :class:`Killed` before the batch that follows ``steps`` optimizer steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.steps:
            raise Killed


class Losses(pl.Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self.values.append(float(module.progress["loss"]))


def prepare(overrides: list[str], place: Path) -> dict[str, Any]:
    """Freeze the config of a command line in a folder, as train.py does."""
    config = freeze(compose(overrides), overrides, place)["main"]
    place.mkdir(parents=True, exist_ok=True)
    folder.adopt(place, config)
    return config


def run(overrides: list[str], place: Path, *extra: pl.Callback) -> dict[str, Any]:
    """Run (or continue) a command line in a folder, in this process; returns its result."""
    prepare(overrides, place)
    original: Callable[..., list[pl.Callback]] = stage.build_callbacks
    stage.build_callbacks = lambda config: [*original(config), *extra]
    try:
        result = stage.run_stage(place)
    finally:
        stage.build_callbacks = original
    assert result is not None
    return result


def weights(place: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's last checkpoint."""
    return read(place / "checkpoints" / "last.ckpt")["state_dict"]


def states_equal(a: Any, b: Any) -> bool:
    """Whether two nested states are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(states_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(states_equal(x, y) for x, y in zip(a, b))
    return bool(a == b) or (a != a and b != b)
