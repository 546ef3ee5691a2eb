"""Pictures of what an image classifier says: the first images of the validation set, with truth and prediction."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from callbacks.picture_base import PictureBase, pixels


class Pictures(PictureBase):
    """Writes ``pictures/step_000120.png`` after every ``every``-th validation and ``pictures/final.png`` at the end of training.

    Each shows the first ``count`` images of the validation set with the predicted class; wrong ones are framed in red and name
    the true class too. Loggers that take pictures get them as ``val/predictions``. The first process draws.

    Args:
        count: images in a picture.
        every: validations between two pictures.
    """

    def __init__(self, count: int = 32, every: int = 5) -> None:
        super().__init__(count, every)

    def look(self, trainer: pl.Trainer, pl_module: Any, batch: dict[str, Tensor], output: Any) -> list[Any]:
        """Image [C, H, W], true class and predicted class of every image."""
        return list(zip(batch["image"].float().cpu(), batch["label"].cpu(), output.argmax(-1).cpu()))

    def draw(self, seen: list[Any], trainer: pl.Trainer, path: Path) -> None:
        """Write the grid."""
        images, labels, predicted = (torch.stack(part) for part in zip(*seen))
        data = getattr(trainer, "datamodule", None)
        draw(pixels(images, getattr(data, "plain", None)), labels, predicted, getattr(data, "class_names", None), path)


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
