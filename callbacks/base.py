"""What the callbacks of this folder share."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.utils._pytree import tree_map

Hook = Any


class Callback(pl.Callback):
    """A Lightning callback that costs nothing in the hooks it does not use.

    Lightning calls every hook of every callback at every step, the empty ones too (about 1.5 us each, six of them a step); a hook
    that is not callable is skipped. A subclass switches a hook on by defining it.
    """

    on_train_batch_start: Hook = None
    on_train_batch_end: Hook = None
    on_before_zero_grad: Hook = None
    on_before_backward: Hook = None
    on_after_backward: Hook = None
    on_before_optimizer_step: Hook = None


def network_input(module: pl.LightningModule, batch: Any) -> Any:
    """What of a batch the network reads: the task's input, or all of it."""
    wanted = getattr(getattr(module, "task", None), "input", None)
    return batch[wanted] if wanted else batch


def example(trainer: pl.Trainer, module: pl.LightningModule) -> Any:
    """The first two inputs of the training data, on the module's device."""
    datamodule = getattr(trainer, "datamodule", None)
    loader: Any = trainer.fit_loop._data_source.instance if datamodule is None else datamodule.train_dataloader()
    return tree_map(lambda t: t[:2].to(module.device), network_input(module, next(iter(loader))))


def log_picture(trainer: pl.Trainer, name: str, path: Path) -> None:
    """Send an image file to all loggers that take pictures, under the optimizer steps done."""
    for logger in trainer.loggers:
        if hasattr(logger, "log_picture"):
            logger.log_picture(name, path, trainer.global_step)


def is_log_step(trainer: pl.Trainer) -> bool:
    """Whether the optimizer step in progress is one whose numbers are logged (every ``log_every_n_steps``)."""
    return (trainer.global_step + 1) % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]


def log_numbers(trainer: pl.Trainer, numbers: dict[str, float], step: int | None = None) -> None:
    """Send ``numbers`` to all loggers under ``step`` optimizer steps done; None: counting the one in progress."""
    for logger in trainer.loggers:
        logger.log_metrics({**numbers, "epoch": trainer.current_epoch}, step=trainer.global_step + 1 if step is None else step)
