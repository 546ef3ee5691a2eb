"""Label maps alone: train an autoencoder to say them again (stage 1 of Label structure, Mostajabi et al. 2018)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_modules.dense_tasks import Batch, Output, SemanticSegmentation
from lightning_modules.method import Method
from lightning_modules.tasks import Task
from papermix.errors import UserError
from papermix.segmentation.draw import View
from papermix.segmentation.label_structure import LabelAutoencoder

# channels of a code in a picture
SHOWN = 2


class LabelMaps(SemanticSegmentation):
    """The class of every pixel, of which the class is said again: inputs and outputs have the size of the truth.

    Args:
        num_classes: classes, void not among them.
    """

    input = "semantic"

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)

    @staticmethod
    def resized(output: Tensor, batch: Batch) -> Tensor:
        """Maps [B, C, H', W'] as they are."""
        return output

    @staticmethod
    def pairs(name: str, output: Output, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """(head's map [C, h, w], truth [h, w]) of every image, without padding."""
        for values, truth, (height, width) in zip(output[name], batch[name], batch["truth_size"].tolist()):
            yield values[:, :height, :width], truth[:height, :width]


class LabelAutoencoding(Method):
    """Minimise the cross-entropy between label maps and what the autoencoder makes of them; images are never looked at.

    Metrics are those of semantic segmentation, whatever the data's task: ``val/mean_iou`` says how well unseen maps come back.
    Labels are taken as they are, without smoothing.

    Raises:
        UserError: data without a class for every pixel, or a model that is no label autoencoder.
    """

    model: LabelAutoencoder

    def __init__(self, model: Any, task: Task, *args: Any, **kwargs: Any) -> None:
        if not isinstance(model, LabelAutoencoder):
            raise UserError(f"method=label_autoencoder trains model=label_autoencoder, not {type(model).__name__}.")
        if not isinstance(task, SemanticSegmentation):
            raise UserError(f"a label autoencoder needs data with a class for every pixel, which {type(task).__name__} lacks.")
        super().__init__(model, LabelMaps(task.num_classes), *args, **kwargs)

    def heads(self) -> dict[str, int]:
        """None to be made: the autoencoder has its own."""
        return {}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of the maps that are said again."""
        loss = self.task.loss(self.predict(batch, "train"), batch)
        self.record(loss=loss)
        return loss

    @torch.no_grad()
    def views(self, output: Output, batch: Batch, place: int) -> list[View]:
        """For pictures: the channels of an image's code that vary most over its positions, each from its lowest number on."""
        height, width = batch["truth_size"][place].tolist()
        code = self.model.encode(batch["semantic"][place : place + 1, :height, :width])[0].float()
        code = code - code.amin((1, 2), keepdim=True)
        chosen = code.flatten(1).var(1, correction=0).topk(min(SHOWN, len(code))).indices.tolist()
        none = torch.zeros(0, 4, dtype=torch.int64)
        return [View(f"code, channel {channel} of {len(code)}", code[channel], none) for channel in chosen]
