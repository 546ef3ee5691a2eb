"""Mean intersection over union and pixel accuracy (Everingham et al., "The PASCAL VOC Challenge: A Retrospective", 2015, eq. 4)."""

import torch
from torch import Tensor
from torchmetrics import Metric

from papermix.errors import UserError
from papermix.segmentation.segments import VOID

_VALUES = VOID + 1  # a class is one byte


class MeanIoU(Metric):
    """How well the class of every pixel is known, over all pixels of a split together (not image by image).

    Pixels whose truth is ``VOID`` count nowhere; a prediction of ``VOID`` on another pixel is wrong. States sum over processes.

    Args:
        num_classes: number of classes, at most 255; they count from 0.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if not 1 <= num_classes <= VOID:
            raise UserError(f"num_classes={num_classes} must be from 1 to {VOID} where {VOID} is the void label.")
        self.num_classes = num_classes
        # rows: truth; columns: prediction, the last one for void
        self.add_state("confusion", torch.zeros(num_classes, num_classes + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Add classes of pixels, two integer tensors of the same shape (any), 0 to ``num_classes - 1`` or ``VOID``.

        Raises:
            UserError: the shapes differ, or there are other values.
        """
        if prediction.shape != truth.shape:
            raise UserError(f"predicted classes of shape {tuple(prediction.shape)} do not fit the truth's {tuple(truth.shape)}.")
        pairs = truth.flatten().long() * _VALUES + prediction.flatten()
        # values that are no byte are cut off here, and so missing below
        table = torch.bincount(pairs, minlength=_VALUES**2)[: _VALUES**2].view(_VALUES, _VALUES)
        known = [*range(self.num_classes), VOID]
        table = table[known][:, known]
        if int(table.sum()) != pairs.numel():
            raise UserError(f"a map of classes holds other values than 0 to {self.num_classes - 1} and {VOID} (void).")
        self.confusion += table[:-1]

    def per_class(self) -> Tensor:
        """IoU of every class, float64 [num_classes]; NaN for those in neither truth nor prediction.

        It looks at this process's pixels; inside ``sync_context()`` at those of all.
        """
        right = self.confusion.diagonal().double()
        union = self.confusion.sum(1) + self.confusion[:, :-1].sum(0) - right
        return right / union

    def compute(self) -> dict[str, Tensor]:
        """``mean_iou`` (over the classes that occur in truth or prediction) and ``pixel_accuracy``; NaN without any pixel."""
        accuracy = self.confusion.diagonal().sum().double() / self.confusion.sum()
        return {"mean_iou": self.per_class().nanmean(), "pixel_accuracy": accuracy}
