"""A tiny model with dropout and batch statistics, and a loader that knows its place, for the tests of this folder."""

import os
import random

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.loaders import Loader, generator
from lightning_modules.method import Method


class Points(Loader):
    """48 points in batches of ``size``, in an order that is a function of (seed, epoch)."""

    def __init__(self, size: int = 8, seed: int = 0, shuffle: bool = True) -> None:
        super().__init__()
        self.x = torch.randn(48, 1, 2, 3, generator=torch.Generator().manual_seed(seed))
        self.y = (self.x.flatten(1).sum(1) > 0).long()
        self.size, self.seed, self.shuffle = size, seed, shuffle

    def __len__(self) -> int:
        return len(self.x) // self.size

    def batches(self, epoch: int, first: int):
        order = torch.randperm(len(self.x), generator=generator(self.seed, epoch)) if self.shuffle else torch.arange(len(self.x))
        for pick in order.split(self.size)[first:]:
            yield {"image": self.x[pick], "label": self.y[pick], "index": pick}


class Judge(nn.Module):
    """What callbacks ask of a task."""

    input = "image"
    monitor = "val/accuracy"
    mode = "max"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(8, 2)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.drop(F.relu(self.norm(self.first(x.flatten(1)))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.last(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class Small(pl.LightningModule):
    """Draws from torch, numpy and Python in every step, and notes which samples it saw."""

    def __init__(self, die_at: int | None = None, signal_at: int | None = None, number: int = 15) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.model, self.task = Net(), Judge()
        self.die_at, self.signal_at, self.number = die_at, signal_at, number
        self.seen: list[int] = []
        self.progress: dict[str, Tensor] = {}
        self.latest: dict[str, float] = {}
        self.batches = 0

    publish = Method.publish

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if self.die_at is not None and self.trainer.fit_loop.total_batch_idx == self.die_at:
            raise Killed
        if self.signal_at is not None and self.trainer.fit_loop.total_batch_idx == self.signal_at:
            os.kill(os.getpid(), self.number)
        self.seen += batch["index"].tolist()
        loss = F.cross_entropy(self.model(batch["image"] + 0.1 * random.random() + 0.1 * float(np.random.rand())), batch["label"])
        self.progress["loss"] = loss.detach()
        self.log("train/loss", loss, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        hit = (self.model(batch["image"]).argmax(1) == batch["label"]).float().mean()
        self.log("val/accuracy", hit + 0.01 * torch.rand(()) / 10)  # validation draws too

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("test/accuracy", (self.model(batch["image"]).argmax(1) == batch["label"]).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.7)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Killed(BaseException):
    """Stands for a power cut: nothing is saved on the way out."""


def trainer(folder, callbacks=(), loggers=(), **keys) -> pl.Trainer:
    """A Trainer of three epochs (six batches each) on the CPU without Lightning's own extras."""
    keys = {
        "devices": 1,
        "max_epochs": 3,
        "log_every_n_steps": 2,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        **keys,
    }
    return pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=list(callbacks),
        logger=list(loggers) or False,
        enable_checkpointing=any(isinstance(c, pl.callbacks.Checkpoint) for c in callbacks),
        enable_model_summary=False,
        use_distributed_sampler=False,
        **keys,
    )


def fit(module, runner, ckpt_path=None) -> pl.LightningModule:
    """Train with fresh loaders; the random generators start from the same seed as in every other run."""
    torch.manual_seed(11)
    np.random.seed(11)
    random.seed(11)
    runner.fit(module, Points(), Points(16, seed=1, shuffle=False), ckpt_path=ckpt_path)
    return module


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
