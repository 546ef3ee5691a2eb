"""A plain panoptic baseline: classes of pixels, a heat map of objects' centres, offsets to them (after Panoptic-DeepLab)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.method import Method
from papermix.errors import UserError
from papermix.segmentation.center_offset import fuse, group, peaks, targets
from papermix.segmentation.draw import View
from papermix.segmentation.segments import Segments, to_truth


class CenterOffset(Method):
    """The task's loss on the semantic head, squared error of the centre map, absolute error of the offsets; evaluation groups.

    The loss is Panoptic-DeepLab's (arXiv 1911.10194, section 3): L_semantic + center_weight L_center + offset_weight L_offset.
    L_center is the mean over the pixels that are neither void nor crowd; L_offset, in pixels of the input image, is the mean of
    |dy| + |dx| over the pixels of objects. Both means are taken over the batch of all processes.

    Args:
        sigma: standard deviation of a centre's Gaussian, in pixels of the input image.
        center_weight: weight of the centre map's loss.
        offset_weight: weight of the offsets' loss.
        threshold: height that a peak of the centre map must pass.
        window: side in pixels, odd, of the square in which a peak is the highest point.
        top_k: at most so many instances in an image.
        stuff_area: pixels, at the truth's size, below which a segment of stuff becomes void.

    Raises:
        UserError: values out of range.
    """

    # one that has ``things``: panoptic or instance segmentation
    task: Any

    def __init__(
        self,
        *args: Any,
        sigma: float = 8.0,
        center_weight: float = 200.0,
        offset_weight: float = 0.01,
        threshold: float = 0.1,
        window: int = 7,
        top_k: int = 200,
        stuff_area: int = 4096,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not sigma > 0:
            raise UserError(f"method.sigma={sigma} must be above 0.")
        if window < 1 or window % 2 == 0:
            raise UserError(f"method.window={window} must be odd and at least 1.")
        if top_k < 1:
            raise UserError(f"method.top_k={top_k} must be at least 1.")
        least = {"center_weight": center_weight, "offset_weight": offset_weight, "threshold": threshold, "stuff_area": stuff_area}
        for name, value in least.items():
            if not value >= 0:
                raise UserError(f"method.{name}={value} must be at least 0.")
        self.sigma, self.center_weight, self.offset_weight = sigma, center_weight, offset_weight
        self.threshold, self.window, self.top_k, self.stuff_area = threshold, window, top_k, stuff_area

    def heads(self) -> dict[str, int]:
        """The task's heads, the centre map, and the offsets (dy, dx)."""
        return {**super().heads(), "center": 1, "offset": 2}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Weighted sum of the three losses."""
        output = self.predict(batch, "train")
        truth = targets(batch["panoptic"], batch["category"], batch["crowd"], self.task.things, self.sigma)
        squared = (_resize(output["center"], batch) - truth.center).square() * truth.center_weight
        absolute = (_resize(output["offset"], batch) - truth.offset).abs() * truth.offset_weight
        center = self.task.mean(squared, truth.center_weight.sum())
        offset = self.task.mean(absolute, truth.offset_weight.sum())
        semantic = self.task.loss(output, batch)
        loss = semantic + self.center_weight * center + self.offset_weight * offset
        self.record(loss=loss, semantic_loss=semantic, center_loss=center, offset_loss=offset)
        return loss

    def predict(self, batch: dict[str, Tensor], split: str) -> dict[str, Any]:
        """The heads' maps; for ``val`` and ``test`` also ``segments``, a list of :class:`Segments`, each at its truth's size."""
        output = self.model(batch[self.task.input])
        return output if split == "train" else {**output, "segments": self.segments(output, batch)}

    def views(self, output: dict[str, Any], batch: dict[str, Tensor], place: int) -> list[View]:
        """The centre map of an image, and around its peaks the windows in which they are the highest points."""
        height, width = batch["size"][place].tolist()
        center = _resize(output["center"][place : place + 1], batch)[0, 0, :height, :width]
        points, _ = peaks(center, self.threshold, self.window, self.top_k)
        windows = torch.cat([points - self.window // 2, points + self.window // 2], -1)
        return [View(f"centre map; peaks framed: {len(points)}", center, windows)]

    def segments(self, output: dict[str, Tensor], batch: dict[str, Tensor]) -> list[Segments]:
        """Segments of every image: centres and grouping at the size of the network's input, in whose pixels offsets count."""
        centers, offsets = _resize(output["center"], batch), _resize(output["offset"], batch)
        found = []
        for place, logits in enumerate(to_truth(output["semantic"], batch)):
            height, width = batch["size"][place].tolist()
            points, score = peaks(centers[place, 0, :height, :width], self.threshold, self.window, self.top_k)
            instance = group(offsets[place, :, :height, :width], points)
            if instance.shape != logits.shape[-2:]:
                instance = F.interpolate(instance[None, None].float(), logits.shape[-2:], mode="nearest-exact")[0, 0].long()
            found.append(fuse(logits, instance, score, self.task.things, self.stuff_area))
        return found


def _resize(maps: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Maps of any stride to the padded image, in single precision: the heights of half precision tie."""
    return F.interpolate(maps.float(), batch["image"].shape[-2:], mode="bilinear", align_corners=False)
