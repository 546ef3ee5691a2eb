"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019, eq. 1), counted as COCO's reference evaluator counts."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from papermix.errors import UserError
from papermix.segmentation.segments import Segments


class PanopticQuality(Metric):
    """PQ = SQ * RQ of every class over a whole split, averaged over the classes that occur (TP + FP + FN > 0).

    A true and a predicted segment of the same class match when their IoU is above 0.5; pixels that are void in the truth do not
    count for the union. A true crowd is neither matched nor missed. A prediction without match is forgiven when more than half
    of it lies on void or on crowds of its own class (the official files have at most one such crowd in an image). Segments
    without pixels do not exist. States sum over processes.

    Args:
        num_classes: number of classes, things and stuff; they count from 0.
        things: the classes with countable instances; the others are stuff.

    Raises:
        UserError: a thing is no class.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self, num_classes: int, things: Sequence[int]) -> None:
        super().__init__()
        for thing in things:
            if not 0 <= thing < num_classes:
                raise UserError(f"things holds class {thing}, but num_classes={num_classes}: classes count from 0.")
        stuff = sorted(set(range(num_classes)) - set(things))
        self.num_classes = num_classes
        self.groups = {"": list(range(num_classes)), "_things": sorted(set(things)), "_stuff": stuff}
        # columns: sum of the matches' IoU, TP, FP, FN
        self.add_state("sums", torch.zeros(num_classes, 4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Segments, truth: Segments) -> None:
        """Add one image: two maps of the same size, on the same device.

        Raises:
            UserError: the sizes differ, or a segment's class is not below ``num_classes``.
        """
        if prediction.map.shape != truth.map.shape:
            ours, theirs = tuple(prediction.map.shape), tuple(truth.map.shape)
            raise UserError(f"predicted segments of size {ours} do not fit the truth's {theirs}: bring them to the truth's size.")
        rows, columns = len(truth) + 1, len(prediction) + 1
        # the one pass over pixels: stretches of the same pair of segments and their lengths, a hundred times fewer than pixels
        pairs = torch.add(prediction.map, truth.map, alpha=columns).flatten()
        stretches, lengths = (x.cpu().numpy() for x in torch.unique_consecutive(pairs, return_counts=True))
        table = np.bincount(stretches, lengths, rows * columns).reshape(rows, columns)
        overlap, void, area, true_area = table[1:, 1:], table[0, 1:], table[:, 1:].sum(0), table[1:].sum(1)
        true_category, crowd = truth.category.cpu().numpy(), truth.crowd.cpu().numpy()
        category = prediction.category.cpu().numpy()
        same = true_category[:, None] == category
        union = true_area[:, None] + area - void - overlap
        match = same & ~crowd[:, None] & (2 * overlap > union)
        forgiven = void + (overlap * (same & crowd[:, None])).sum(0)
        found = match.any(1)
        missed = ~(found | crowd) & (true_area > 0)
        wrong = ~match.any(0) & (2 * forgiven <= area) & (area > 0)
        iou = (match * overlap / np.maximum(union, 1)).sum(1)
        row = 4 * true_category
        places = np.concatenate([row, row + 1, 4 * category + 2, row + 3])
        added = np.bincount(places, np.concatenate([iou, found, wrong, missed]), self.sums.numel())
        if added.size > self.sums.numel():
            raise UserError(
                f"a segment is of class {places.max() // 4}, but num_classes={self.num_classes}: classes count from 0."
            )
        self.sums.add_(torch.from_numpy(added).view_as(self.sums).to(self.sums.device))

    def per_class(self) -> dict[str, Tensor]:
        """``pq``, ``sq`` and ``rq`` of every class, float64 [num_classes]; NaN for classes that did not occur.

        It looks at this process's images; inside ``sync_context()`` at those of all.
        """
        iou, tp, fp, fn = self.sums.T
        weight = tp + (fp + fn) / 2
        sq = torch.where(weight > 0, iou / tp.clamp(min=1), torch.nan)
        return {"pq": iou / weight, "sq": sq, "rq": tp / weight}

    def compute(self) -> dict[str, Tensor]:
        """``pq``, ``sq``, ``rq`` over all classes, with ``_things`` and ``_stuff`` over these, where there are such classes.

        An average over no class that occurred is NaN.
        """
        groups = {ending: classes for ending, classes in self.groups.items() if classes}
        values = self.per_class()
        return {name + ending: value[classes].nanmean() for ending, classes in groups.items() for name, value in values.items()}
