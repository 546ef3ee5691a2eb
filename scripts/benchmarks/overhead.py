"""Steps per second of train.py beside a hand-written loop, and its fixed cost per step beside Lightning's barest Trainer."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.benchmarks.harness import Options, Report, Timing, Timings, Window, each_round, interleave
from scripts.benchmarks.parts import Config, PlainModule, Recipe, config_of, data_of, fit, settle, terminal

RESNET = ["dataset=cifar10", "dataset.fake=true", "dataset.batch_size=128", "model=resnet20"]


class Plain:
    """Random numbers for the augmentation from torch's global generator, as a loop without resume would draw them."""

    def __init__(self, count: int, device: torch.device):
        self.count, self.device = count, device

    def uniform(self, *shape: int) -> Tensor:
        """Floats in [0, 1)."""
        return torch.rand(self.count, *shape)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Integers in [low, high)."""
        return torch.randint(low, high, (self.count, *shape))


class Batches:
    """The hand-written loader: tensors in memory, a random order, the config's augmentation.

    Args:
        config: of the run to compare with.
        steps: batches of an epoch; the data is gone through again and again.
    """

    def __init__(self, config: Config, steps: int, device: torch.device, window: Window):
        loader = data_of(config).loader("train")
        self.images, self.labels = (loader.tensors[name].to(device) for name in ("image", "label"))
        self.augment, self.size, self.steps = loader.transform, config["dataset"]["batch_size"], steps
        self.device, self.window = device, window

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self.window.watch(self.batches())

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Batches without an end."""
        left = self.steps
        while left:
            order = torch.randperm(len(self.images)).to(self.device)
            for index in order.split(self.size)[: min(left, len(order) // self.size)]:
                left -= 1
                batch = {"image": self.images[index], "label": self.labels[index]}
                yield self.augment(batch, Plain(self.size, self.device))


def long(loader: Any, steps: int) -> Any:
    """The project's loader with an epoch of so many full batches, going through the data again and again."""
    rounds = range(-(-steps // (loader.examples // loader.batch_size)))
    order = torch.cat([loader.order(r)[: loader.examples // loader.batch_size * loader.batch_size] for r in rounds])
    loader.order = lambda epoch: order
    loader.examples, loader._batches = steps * loader.batch_size, steps
    return loader


def cross_entropy(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Loss of a classifier."""
    return F.cross_entropy(model(batch["image"]), batch["label"])


def by_hand(config: Config, steps: int, skip: int) -> Timing:
    """A loop as one writes it, without anything around it."""
    recipe = Recipe(config, steps + skip + 1)
    window = Window(skip, steps, settle(recipe.device))
    recipe.model.train()
    for batch in Batches(config, steps + skip + 1, recipe.device, window):
        recipe.step(cross_entropy(recipe.model, batch))
    return window.timing()


def by_lightning(config: Config, steps: int, skip: int, barebones: bool) -> Timing:
    """Lightning's Trainer around the same loop: the barest, or as it comes with its own csv logger and progress bar."""
    from pytorch_lightning.loggers import CSVLogger

    total = steps + skip + 1
    module = PlainModule(config, total, cross_entropy, log=not barebones)
    device = next(module.model.parameters()).device
    window = Window(skip, steps, settle(device))
    with tempfile.TemporaryDirectory() as folder:
        own: dict[str, Any] = {"barebones": True} if barebones else {"logger": CSVLogger(folder), "enable_model_summary": False}
        trainer = pl.Trainer(max_epochs=1, accelerator=device.type, devices=1, default_root_dir=folder, **own)
        trainer.fit(module, Batches(config, total, device, window))
    return window.timing()


def compare(config: Config, steps: int, skip: int, options: Options, lightning: bool) -> Timings:
    """The loop by hand and train.py's, with Lightning's trainers between them when asked."""
    arms = {"loop by hand": lambda: by_hand(config, steps, skip)}
    if lightning:
        arms["Trainer(barebones=True)"] = lambda: by_lightning(config, steps, skip, barebones=True)
    arms["train.py"] = lambda: fit(config, steps, skip, lambda loader: long(loader, steps + skip + 1))
    if lightning:
        arms["Trainer()"] = lambda: by_lightning(config, steps, skip, barebones=False)
    with terminal():
        return interleave(arms, options.repetitions, warmup=0 if options.smoke else 1)


def run(options: Options) -> Report:
    """ResNet-20 at batch 128 for the speed, the digits default for the fixed cost."""
    report = Report("overhead", "step")
    hardware = [f"hardware={options.device}"]
    before = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        # as many threads as there are cores, as train.py has it
        torch.set_num_threads(options.threads or before)
        tiny = ["dataset.batch_size=4", "model.depth=8"] if options.smoke else []
        config = config_of([*RESNET, *hardware, *tiny], Path(folder) / "resnet")
        steps, skip = (1, 1) if options.smoke else (10, 3) if options.device == "cpu" else (300, 100)
        timings = report.timings["ResNet-20, 32x32, batch 128"] = compare(config, steps, skip, options, lightning=False)
        what = "steps per second, train.py over the loop by hand"
        report.checks.append(each_round(timings, lambda s: s["loop by hand"] / s["train.py"], what, 0.97))

        # the fixed cost is the interpreter's: on one thread it is not drowned in the noise of others
        torch.set_num_threads(options.threads or 1)
        config = config_of(hardware, Path(folder) / "digits")
        steps, skip = (2, 1) if options.smoke else (1000, 100)
        timings = report.timings["digits default"] = compare(config, steps, skip, options, lightning=True)
        torch.set_num_threads(before)
    hand = "loop by hand"
    what = "fixed cost per step over the loop by hand, train.py over Trainer(barebones=True)"
    bare = "Trainer(barebones=True)"
    report.checks.append(each_round(timings, lambda s: (s["train.py"] - s[hand]) / (s[bare] - s[hand]), what, 1.3, "<="))
    what = "the same, Trainer() over Trainer(barebones=True)"
    report.checks.append(each_round(timings, lambda s: (s["Trainer()"] - s[hand]) / (s[bare] - s[hand]), what))
    report.notes.append("same model, optimizer, schedule, batch size and augmentation everywhere")
    report.notes.append("train.py with its default callbacks, csv log and progress bar")
    threads = "all cores for ResNet-20, 1 for the digits" if options.threads is None else options.threads
    report.notes.append(f"threads: {threads}")
    return report
