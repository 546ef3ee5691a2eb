"""The state of all random number generators in the checkpoint, so that a continued run draws what a run never stopped would."""

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn

from callbacks.base import Callback


def get_state(device: torch.device | None = None) -> dict[str, Any]:
    """States of torch (CPU, and ``device`` when it has a generator of its own), numpy and Python, as tensors, numbers and
    lists.
    """
    numpy_state: Any = np.random.get_state()
    kind, keys, position, has_gauss, gauss = numpy_state
    version, words, next_gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [str(kind), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "python": [version, torch.tensor(words, dtype=torch.int64), next_gauss],
    }
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device is not None and device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_state(state: dict[str, Any], device: torch.device | None = None) -> None:
    """The inverse of :func:`get_state`; the device's state is passed over on another kind of device."""
    torch.set_rng_state(state["torch"].cpu())
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, words, next_gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), next_gauss))
    if device is not None and device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    if device is not None and device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"].cpu())


class RandomState(Callback):
    """Keeps every process's random states in the checkpoint and restores them when training goes on.

    They are set at the start of training: after the model, the loaders and the sanity check were made, all of which draw
    numbers, and before the first batch. With another number of processes than before, those that have no state keep the one
    they were seeded with.
    """

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] = []

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Gather the states of all processes."""
        mine = get_state(trainer.strategy.root_device)
        states: list[Any] = [mine]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, mine)
        checkpoint["rng"] = states

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Hold the states until training starts."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._states = checkpoint.get("rng", [])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set them."""
        if trainer.global_rank < len(self._states):
            set_state(self._states[trainer.global_rank], trainer.strategy.root_device)
        self._states = []
