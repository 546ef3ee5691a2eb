"""Tasks with a truth for every pixel: classes, panoptic segments, instances, measurements.

A network's output is a dict of maps, one for each head; a method that finds segments adds them under ``segments``.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_modules.tasks import MeanLoss, Task
from papermix.errors import UserError
from papermix.metrics.instance_ap import InstanceAP
from papermix.metrics.panoptic_quality import PanopticQuality
from papermix.metrics.regression import DenseError
from papermix.metrics.segmentation import MeanIoU
from papermix.segmentation.segments import VOID, to_truth, truth_of

Output = dict[str, Any]
Batch = dict[str, Tensor]


class DenseTask(Task):
    """Base of tasks on pixels.

    Attributes:
        heads: name -> channels of what a network must give for the loss.
        terms: what others add to the mean loss in training, each a function of the output and the batch.
    """

    heads: dict[str, int]

    def __init__(self) -> None:
        super().__init__()
        self.terms: list[Callable[[Output, Batch], Tensor]] = []

    @staticmethod
    def resized(output: Tensor, batch: Batch) -> Tensor:
        """Maps [B, C, h, w] of any stride -> the size of the batch's truth maps, [B, C, H', W'] (bilinear; all images at once).

        In training the truth has the size of the image; in evaluation each image's own size goes first.
        """
        height, width = batch["image"].shape[-2:]
        if torch.equal(batch["size"], batch["truth_size"]):
            if output.shape[-2:] == (height, width):
                return output
            return F.interpolate(output, (height, width), mode="bilinear", align_corners=False)
        maps = list(to_truth(output, batch))
        high, wide = batch["truth_size"].amax(0).tolist()
        return torch.stack([F.pad(one, (0, wide - one.shape[-1], 0, high - one.shape[-2])) for one in maps])

    @staticmethod
    def pairs(name: str, output: Output, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """(head's map [C, h, w], truth [..., h, w]) of every image, both of its truth's size, without padding."""
        for values, truth, (height, width) in zip(to_truth(output[name], batch), batch[name], batch["truth_size"].tolist()):
            yield values, truth[..., :height, :width]


class SemanticSegmentation(DenseTask):
    """A class for every pixel: cross-entropy on the head ``semantic``, mean IoU, pixel accuracy.

    Batches hold ``semantic`` int64 [B, H', W'] with 255 where there is no class, which is left out of loss and metrics.

    Args:
        num_classes: classes, void not among them.
        label_smoothing: probability mass spread evenly over all classes, in [0, 1).
    """

    target = "semantic"
    monitor = "val/mean_iou"
    mode = "max"

    def __init__(self, num_classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"dataset.task.label_smoothing={label_smoothing} must lie in [0, 1).")
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.heads = {"semantic": num_classes}

    def loss(self, output: Output, batch: Batch, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats, the mean over pixels that have a class; ``reduction="none"`` gives [B, H', W'], 0 at void.

        A method may add ``weight`` float [B, H', W'] to the batch: how much each pixel counts, in the sum and in what it is divided by.
        """
        logits, truth = self.resized(output["semantic"], batch), batch["semantic"]
        smoothing = self.label_smoothing if self.training else 0.0
        loss = F.cross_entropy(logits, truth, ignore_index=VOID, reduction="none", label_smoothing=smoothing)
        known = truth != VOID
        if "weight" in batch:
            loss, known = loss * batch["weight"], known * batch["weight"]
        if reduction == "none":
            return loss
        # not torch's own mean, which is NaN when all is void
        mean = self.mean(loss, known.sum())
        for term in self.terms if self.training else ():
            mean = mean + term(output, batch)
        return mean

    def metrics(self) -> MetricCollection:
        """``mean_iou``, ``pixel_accuracy``, ``loss``."""
        return MetricCollection({"classes": MeanIoU(self.num_classes), "loss": MeanLoss()}, compute_groups=False)

    def update(self, metrics: MetricCollection, output: Output, batch: Batch) -> None:
        """Add a batch."""
        for logits, truth in self.pairs("semantic", output, batch):
            loss = F.cross_entropy(logits[None], truth[None], ignore_index=VOID, reduction="none")[0]
            metrics["loss"].update(loss[truth != VOID])
            metrics["classes"].update(logits.argmax(0), truth)


class PanopticSegmentation(SemanticSegmentation):
    """Segments of things and stuff: cross-entropy of the classes; the method adds a loss that tells instances apart.

    Batches hold ``semantic``, ``panoptic``, ``category`` and ``crowd``; the output's ``segments`` are judged by panoptic quality.

    Args:
        num_classes: classes, void not among them.
        things: those that have instances, as the network counts.
        label_smoothing: see :class:`SemanticSegmentation`.
    """

    target = "panoptic"
    monitor = "val/pq"

    def __init__(self, num_classes: int, things: Sequence[int], label_smoothing: float = 0.0) -> None:
        super().__init__(num_classes, label_smoothing)
        self.things = tuple(things)
        wrong = [c for c in self.things if not 0 <= c < num_classes]
        if wrong:
            raise UserError(f"dataset.task.things names class {wrong[0]}, but dataset.num_classes={num_classes}: classes count from 0.")

    def metrics(self) -> MetricCollection:
        """``pq``, ``sq``, ``rq`` over all classes, things and stuff; ``mean_iou`` and ``pixel_accuracy`` of the semantic head."""
        quality = PanopticQuality(self.num_classes, self.things)
        return MetricCollection({"segments": quality, "classes": MeanIoU(self.num_classes)}, compute_groups=False)

    def update(self, metrics: MetricCollection, output: Output, batch: Batch) -> None:
        """Add a batch."""
        for logits, classes in self.pairs("semantic", output, batch):
            metrics["classes"].update(logits.argmax(0), classes)
        for place, prediction in enumerate(output["segments"]):
            metrics["segments"].update(prediction, truth_of(batch, place))


class InstanceSegmentation(PanopticSegmentation):
    """Instances of things: COCO's average precision of masks.

    Batches hold ``masks`` bool [B, S, H', W'], which may overlap, besides what panoptic ones hold; the last class is background.

    Args:
        num_classes: classes of things and, last, the background.
        label_smoothing: see :class:`SemanticSegmentation`.
    """

    monitor = "val/ap"

    def __init__(self, num_classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__(num_classes, range(num_classes - 1), label_smoothing)

    def metrics(self) -> MetricCollection:
        """``ap``, ``ap50``, ``ap75``, by size of object, ``ar1`` to ``ar100``."""
        return MetricCollection({"instances": InstanceAP()}, compute_groups=False)

    def update(self, metrics: MetricCollection, output: Output, batch: Batch) -> None:
        """Add a batch: segments of the background are none of the instances."""
        background = self.num_classes - 1
        for place, prediction in enumerate(output["segments"]):
            height, width = batch["truth_size"][place].tolist()
            category = batch["category"][place]
            real = (category >= 0) & (category != background)
            found = prediction.category != background
            metrics["instances"].update(
                (prediction.masks()[found], prediction.category[found], prediction.score[found]),
                batch["masks"][place, real, :height, :width],
                category[real],
                batch["crowd"][place][real],
            )


class DenseRegression(DenseTask):
    """Numbers for every pixel (depth, albedo, flow): L1, L2 or Huber loss where the truth is finite.

    Args:
        target: the batch entry that holds the truth, float [B, channels, H', W'], NaN where there is none; the head's name too.
        channels: numbers for each pixel.
        kind: ``l1``, ``l2`` or ``huber``.
        delta: where Huber's loss turns from square to linear.
    """

    monitor = "val/mae"
    mode = "min"

    def __init__(self, target: str, channels: int = 1, kind: str = "l1", delta: float = 1.0) -> None:
        super().__init__()
        if kind not in ("l1", "l2", "huber"):
            raise UserError(f"dataset.task.kind={kind!r} must be l1, l2 or huber.")
        if not delta > 0:
            raise UserError(f"dataset.task.delta={delta} must be above 0.")
        self.target, self.kind, self.delta = target, kind, delta
        self.heads = {target: channels}

    def loss(self, output: Output, batch: Batch, reduction: str = "mean") -> Tensor:
        """Mean over the finite numbers of the truth; ``reduction="none"`` gives [B, channels, H', W'], 0 where there is none."""
        truth = batch[self.target]
        known = truth.isfinite()
        error = torch.where(known, self.resized(output[self.target], batch) - truth.nan_to_num(), 0.0)
        if self.kind == "l1":
            loss = error.abs()
        elif self.kind == "l2":
            loss = error.square()
        else:
            loss = F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=self.delta)
        return loss if reduction == "none" else self.mean(loss, known.sum())

    def metrics(self) -> MetricCollection:
        """``mae``, ``rmse``."""
        return MetricCollection({"error": DenseError()}, compute_groups=False)

    def update(self, metrics: MetricCollection, output: Output, batch: Batch) -> None:
        """Add a batch."""
        for values, truth in self.pairs(self.target, output, batch):
            metrics["error"].update(values, truth)
