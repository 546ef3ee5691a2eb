"""What several benchmarks need: train.py's own objects with a stopwatch in them, and a terminal for the progress bar."""

import contextlib
import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from papermix.run.allocator import give_back_freed_memory, keep_freed_memory
from papermix.run.build import build
from papermix.run.compose import compose, freeze
from papermix.run.folder import make
from papermix.run.stage import (
    Clock,
    Position,
    build_callbacks,
    build_method,
    build_trainer,
    load_networks,
    optimizer_factory,
    quiet,
    without_parts,
)
from scripts.benchmarks.harness import Timing, Window

Config = dict[str, Any]


def config_of(overrides: list[str], folder: Path) -> Config:
    """The resolved, checked config of a command line; what the run writes goes into a folder."""
    return freeze(compose(overrides, with_hydra=True), overrides, folder)["main"]


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Make standard output and error a terminal that nobody looks at, so that progress bars draw themselves as ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    ours, theirs = pty.openpty()
    kept = os.dup(1), os.dup(2)
    with subprocess.Popen(["cat"], stdin=ours, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as reader:
        try:
            os.dup2(theirs, 1)
            os.dup2(theirs, 2)
            yield
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            for number in (*kept, theirs, ours):
                os.close(number)
            reader.terminate()


def settle(device: torch.device) -> Callable[[], Any]:
    """What waits for a device to have done its work."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def device_of(config: Config) -> torch.device:
    """The device that the config's accelerator is."""
    gpu = config["hardware"]["accelerator"] != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", 0) if gpu else torch.device("cpu")


def data_of(config: Config) -> Any:
    """The config's datamodule, its data read."""
    datamodule = build(without_parts(config, "dataset"))
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule


def watch(loader: Any, window: Window) -> Any:
    """A loader whose batches pass a stopwatch; all else of it stays as it is."""
    batches = loader.batches
    loader.batches = lambda epoch, first: window.watch(batches(epoch, first))
    return loader


def fit(config: Config, steps: int, skip: int, lengthen: Callable[[Any], Any] = lambda loader: loader) -> Timing:
    """Train as ``papermix.run.stage.run_stage`` does, and time the steps after the first ``skip``.

    Args:
        config: as frozen for a run.
        steps: that are timed.
        skip: steps of warm-up.
        lengthen: changes the training loader, so that one epoch holds all these steps.
    """
    quiet()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        config = {
            **_moved(config, place),
            "trainer": {**config["trainer"], "max_steps": steps + skip + 1, "limit_val_batches": 0},
        }
        make(place)
        datamodule = data_of(config)
        window = Window(skip, steps, settle(device_of(config)))
        load = datamodule.loader
        datamodule.loader = lambda split: watch(lengthen(load(split)), window) if split == "train" else load(split)
        loggers = [build(node) for node in (config.get("logger") or {}).values() if node and node.get("_target_")]
        callbacks = [*build_callbacks(config), Position(), Clock()]
        load_networks(callbacks, place)
        trainer = build_trainer(config, place, callbacks, loggers)
        trainer.fit(build_method(config), datamodule=datamodule)
        return window.timing()


def _moved(node: Any, place: Path) -> Any:
    """A config with its run folder replaced."""
    run = node["paths"]["run"]

    def move(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: move(v) for k, v in value.items()}
        if isinstance(value, list):
            return [move(v) for v in value]
        return str(place) + value[len(run) :] if isinstance(value, str) and value.startswith(run) else value

    return move(node)


class Recipe:
    """What a hand-written loop takes from a config: model, optimizer, schedule. The loop, its data and its loss are its own.

    The process is then as any other: what train.py changed in it for itself is taken back.

    Args:
        config: of the run to compare with.
        steps: length of the schedule.
    """

    def __init__(self, config: Config, steps: int):
        give_back_freed_memory()
        torch.manual_seed(config["seed"])
        self.device = device_of(config)
        self.model: Any = build(config["model"]).to(self.device)
        self.optimizer: torch.optim.Optimizer = optimizer_factory(config)(self.model)
        make_schedule = build(config["scheduler"])
        self.schedule = make_schedule(self.optimizer, total_steps=steps, steps_per_epoch=steps)

    def step(self, loss: Tensor) -> None:
        """One update."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()


class PlainModule(pl.LightningModule):
    """The same recipe as a LightningModule that one would write in five minutes.

    Args:
        config, steps: see :class:`Recipe`.
        loss: ``loss(model, batch)``.
        log: log the loss at each step, in the progress bar too.
    """

    def __init__(self, config: Config, steps: int, loss: Callable[[Any, Any], Tensor], log: bool):
        super().__init__()
        recipe = Recipe(config, steps)
        self.model, self.loss, self.logs = recipe.model, loss, log
        self.made = recipe.optimizer, recipe.schedule

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        loss = self.loss(self.model, batch)
        if self.logs:
            self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer and its schedule by step."""
        optimizer, schedule = self.made
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
