"""What the pictures of all kinds of data share: when they are drawn, where they lie, and images as they were before training."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from callbacks.base import Callback, log_picture
from papermix.errors import UserError


class PictureBase(Callback):
    """Writes ``pictures/step_000120.png`` after every ``every``-th validation and ``pictures/final.png`` at the end of training.

    Each shows the first ``count`` images of the validation set. Loggers that take pictures get them as ``val/predictions``. The
    first process draws. Subclasses give ``look`` and ``draw``.

    Args:
        count: images in a picture.
        every: validations between two pictures.
    """

    name = "pictures"  # in the config

    def __init__(self, count: int, every: int) -> None:
        for key, value in (("count", count), ("every", every)):
            if value < 1:
                raise UserError(f"callbacks.{self.name}.{key}={value} must be at least 1.")
        self.count, self.every = count, every
        self._validations = 0
        self._seen: list[Any] = []

    def look(self, trainer: pl.Trainer, pl_module: Any, batch: dict[str, Tensor], output: Any) -> list[Any]:
        """What is to be drawn of every image of a batch, in main memory."""
        raise NotImplementedError

    def draw(self, seen: list[Any], trainer: pl.Trainer, path: Path) -> None:
        """Write a picture of what ``look`` gave."""
        raise NotImplementedError

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the first images and what the model says of them (with whatever weights validation uses)."""
        if dataloader_idx or trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        if batch_idx == 0:
            self._seen = []
        left = self.count - len(self._seen)
        if left <= 0:
            return
        part = first(batch, left)
        # a validation step that gives its output saves a second pass
        output = predict(trainer, pl_module, part) if outputs is None else first(outputs, left)
        self._seen += self.look(trainer, pl_module, part, output)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw, if it is the turn of this validation."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validations += 1
        if (self._validations - 1) % self.every == 0:
            self._write(trainer, f"step_{trainer.global_step:06d}.png")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the last validation."""
        self._write(trainer, "final.png")

    def state_dict(self) -> dict[str, Any]:
        """The number of validations so far."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._validations = state_dict["validations"]

    def _write(self, trainer: pl.Trainer, name: str) -> None:
        if not self._seen or not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.draw(self._seen, trainer, path)
        log_picture(trainer, "val/predictions", path)


def predict(trainer: pl.Trainer, pl_module: Any, batch: dict[str, Tensor], split: str = "val") -> Any:
    """The output of a method for a batch, in the precision of validation."""
    with trainer.precision_plugin.forward_context():
        return pl_module.predict(batch, split) if hasattr(pl_module, "predict") else pl_module.model(batch["image"])


def first(values: Any, count: int) -> Any:
    """The first ``count`` entries of a tensor or list, or of every one in a dict of them."""
    return {k: first(v, count) for k, v in values.items()} if isinstance(values, dict) else values[:count]


def pixels(images: Tensor, normalize: Any = None) -> Tensor:
    """Images [B, C, H, W] as they were before normalisation, in 0 to 1, [B, H, W, 3] (grey repeated).

    ``normalize`` holds ``scale`` and ``shift`` of bytes [C, 1, 1]; without one each image is stretched to the full range.
    """
    if hasattr(normalize, "scale") and hasattr(normalize, "shift"):
        images = (images - normalize.shift.cpu()) / normalize.scale.cpu() / 255
    else:
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        images = (images - low) / (high - low).clamp_min(1e-8)
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    return images.clamp(0, 1).permute(0, 2, 3, 1)
