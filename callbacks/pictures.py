"""Pictures of what an image classifier says: the first images of the validation set, with truth and prediction."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from callbacks.base import Callback
from papermix.errors import UserError


class Pictures(Callback):
    """Writes ``pictures/step_000120.png`` after every ``every``-th validation and ``pictures/final.png`` at the end of training.

    Each shows the first ``count`` images of the first validation batch with the predicted class; wrong ones are framed in red and
    name the true class too. Loggers that take pictures get them as ``val/predictions``. The first process draws.

    Args:
        count: images in a picture.
        every: validations between two pictures.
    """

    def __init__(self, count: int = 32, every: int = 5) -> None:
        if count < 1:
            raise UserError(f"callbacks.pictures.count={count} must be at least 1.")
        if every < 1:
            raise UserError(f"callbacks.pictures.every={every} must be at least 1.")
        self.count, self.every = count, every
        self._validations = 0
        self._shown: tuple[Tensor, Tensor, Tensor] | None = None

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the first images and what the model says of them (with whatever weights validation uses)."""
        if batch_idx or dataloader_idx or trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        part = {k: v[: self.count] if isinstance(v, Tensor) else v for k, v in batch.items()}
        logits = pl_module.predict(part, "val") if hasattr(pl_module, "predict") else pl_module.model(part["image"])
        self._shown = part["image"].float().cpu(), part["label"].cpu(), logits.argmax(-1).cpu()

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
        if self._shown is None or not trainer.is_global_zero:
            return
        images, labels, predicted = self._shown
        data = getattr(trainer, "datamodule", None)
        path = Path(trainer.default_root_dir) / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(pixels(images, getattr(data, "plain", None)), labels, predicted, getattr(data, "class_names", None), path)
        for logger in trainer.loggers:
            if hasattr(logger, "log_picture"):
                logger.log_picture("val/predictions", path, trainer.global_step)


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


def draw(images: Tensor, labels: Tensor, predicted: Tensor, names: tuple[str, ...] | None, path: str | Path) -> None:
    """Write a grid of ``images`` [B, H, W, 3] with ``predicted`` over each, framed red where it differs from ``labels`` [B]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def name(index: int) -> str:
        text = names[index] if names is not None and index < len(names) else str(index)
        return text if len(text) <= 14 else text[:13] + "…"

    count = len(images)
    columns = min(8, count)
    rows = -(-count // columns)
    right = int((labels == predicted).sum())
    figure = Figure(figsize=(1.35 * columns, 1.65 * rows + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"predicted classes: {right} of {count} right; wrong ones in red with the true class", fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[count:]:
        axis.axis("off")
    for axis, image, label, guess in zip(axes, images.numpy(), labels.tolist(), predicted.tolist()):
        wrong = label != guess
        axis.imshow(image, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        # as many lines over all of them keep the rows even
        title = f"{name(guess)}\n(is {name(label)})" if wrong else ("\n" if right < count else "") + name(guess)
        axis.set_title(title, fontsize=8, color="#c0182b" if wrong else "#1a1a1a")
        for spine in axis.spines.values():
            spine.set(color="#c0182b" if wrong else "#b8b8b8", linewidth=3 if wrong else 0.8)
    figure.savefig(path)
