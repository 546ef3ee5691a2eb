"""An image cut into segments: the one form in which panoptic truth and predictions are passed around."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

VOID = 255  # the class of pixels that belong to none, as VOC, Cityscapes and COCO-Stuff have it


@dataclass(frozen=True)
class Category:
    """A class of pixels.

    Attributes:
        id: number in the publisher's files.
        name: for people.
        thing: whether it has countable instances (otherwise it is stuff).
        color: RGB, 0 to 255.
    """

    id: int
    name: str
    thing: bool
    color: tuple[int, int, int]


@dataclass(frozen=True)
class Segments:
    """A panoptic segmentation of one image.

    Attributes:
        map: int64 [H, W]; 0 is void, s > 0 is segment s.
        category: int64 [S], class of segment s at place s - 1, counted from 0 as the network counts.
        crowd: bool [S], segments that stand for a group of objects (truth only; predictions have none).
        score: float [S], confidence (1 for the truth).
    """

    map: Tensor
    category: Tensor
    crowd: Tensor
    score: Tensor

    @staticmethod
    def of(map: Tensor, category: Tensor, crowd: Tensor | None = None, score: Tensor | None = None) -> "Segments":
        """Segments without crowds, and sure of themselves, unless said otherwise."""
        crowd = torch.zeros_like(category, dtype=torch.bool) if crowd is None else crowd
        score = torch.ones_like(category, dtype=torch.float32) if score is None else score
        return Segments(map, category, crowd, score)

    def __len__(self) -> int:
        return len(self.category)

    def semantic(self) -> Tensor:
        """Class of every pixel, int64 [H, W], ``VOID`` where there is none."""
        return semantic_of(self.map, self.category)

    def areas(self) -> Tensor:
        """Pixels of every segment, int64 [S]."""
        return torch.bincount(self.map.flatten(), minlength=len(self) + 1)[1:]

    def masks(self) -> Tensor:
        """One mask for each segment, bool [S, H, W]."""
        numbers = torch.arange(1, len(self) + 1, device=self.map.device)
        return self.map == numbers[:, None, None]

    def compact(self) -> "Segments":
        """The same without segments that have no pixel; the others are numbered anew in their order."""
        seen = self.areas() > 0
        if bool(seen.all()):
            return self
        number = torch.cat([seen.new_zeros(1, dtype=torch.int64), seen.cumsum(0) * seen])
        return Segments(number[self.map], self.category[seen], self.crowd[seen], self.score[seen])

    def cpu(self) -> "Segments":
        """The same in main memory."""
        return Segments(self.map.cpu(), self.category.cpu(), self.crowd.cpu(), self.score.cpu())


def semantic_of(map: Tensor, category: Tensor) -> Tensor:
    """Segment numbers [..., H, W] and classes [..., S] of the segments -> class of every pixel, ``VOID`` for segment 0.

    Both may have the same leading dimensions; a class below 0 (padding) is not looked up.
    """
    table = F.pad(category, (1, 0), value=VOID)
    if map.ndim == 2:
        return table[map]
    return table.gather(-1, map.flatten(-2)).view_as(map)


def boxes_of(masks: Tensor) -> Tensor:
    """Smallest boxes around masks bool [S, H, W]: float32 [S, 4] as x0, y0, x1, y1 with x1, y1 exclusive; 0 for empty masks."""
    height, width = masks.shape[-2:]
    rows, columns = masks.any(-1), masks.any(-2)
    y, x = torch.arange(height, device=masks.device), torch.arange(width, device=masks.device)
    low = torch.stack([torch.where(columns, x, width).amin(-1), torch.where(rows, y, height).amin(-1)], -1)
    high = torch.stack([torch.where(columns, x, -1).amax(-1), torch.where(rows, y, -1).amax(-1)], -1) + 1
    return torch.cat([low, high], -1).float() * rows.any(-1, keepdim=True)


def truth_of(batch: Mapping[str, Tensor], place: int) -> Segments:
    """The true segments of one image of a batch (``panoptic``, ``category``, ``crowd``, ``truth_size``), without the padding."""
    height, width = batch["truth_size"][place].tolist()
    real = batch["category"][place] >= 0
    return Segments.of(batch["panoptic"][place, :height, :width], batch["category"][place][real], batch["crowd"][place][real])


def to_truth(output: Tensor, batch: Mapping[str, Tensor], mode: str = "bilinear") -> Iterator[Tensor]:
    """Bring a network's maps [B, C, h, w] to the size of each image's truth; yields [C, H_i, W_i], one image at a time.

    Maps of any stride are brought to the padded image, the padding is cut off, and what remains is resized to the truth, which
    in evaluation has the size of the publisher's image. Works on every head whose values do not depend on the image's scale.
    """
    image = batch["image"].shape[-2:]
    align = {} if mode == "nearest" else {"align_corners": False}
    # a whole batch of many classes at the publisher's size would need gigabytes
    for one, (height, width), truth in zip(output.split(1), batch["size"].tolist(), batch["truth_size"].tolist()):
        if one.shape[-2:] != image:
            one = F.interpolate(one, image, mode=mode, **align)  # type: ignore[arg-type]
        one = one[..., :height, :width]
        if [height, width] != truth:
            one = F.interpolate(one, tuple(truth), mode=mode, **align)  # type: ignore[arg-type]
        yield one[0]
