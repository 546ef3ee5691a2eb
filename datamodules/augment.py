"""Batched augmentation on the device of the batch. Every random number comes from a :class:`~datamodules.loaders.Draw`.

The order is: crop and flip, RandAugment (on bytes), colour jitter, normalisation, cutout, mixup or CutMix. The functions are
pure: they take the random choices as arguments, so that each can be tested against a loop over the images.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.loaders import Batch, Draw
from papermix.errors import UserError, nearest
from papermix.views.randaugment import RANDAUGMENT_OPS, randaugment


def crop_flip(images: Tensor, pad: int, top: Tensor, left: Tensor, flip: Tensor | None = None) -> Tensor:
    """Pad with zeros, mirror some images, cut a window of the original size out of each.

    Args:
        images: [B, C, H, W], any type.
        pad: pixels added on each side.
        top, left: int64 [B] on the CPU, corner of the window in the padded (and mirrored) image, 0 to 2 * pad.
        flip: bool [B] on the CPU, which images are mirrored left to right; None: no image.

    Returns:
        [B, C, H, W], contiguous.
    """
    count, channels, height, width = images.shape
    padded = F.pad(images, (pad, pad, pad, pad)) if pad else images.contiguous()
    rows, columns = height + 2 * pad, width + 2 * pad
    size = channels * rows * columns
    start = torch.arange(count) * size + top * columns + left
    if flip is not None:
        padded = torch.cat([padded, padded.flip(-1)])
        start = start + flip * (count * size)
    # entry k of this view is the window that starts at element k: a crop of every image is then a single gather
    last = (len(padded) - 1) * size + 2 * pad * (columns + 1)
    windows = padded.as_strided((last + 1, channels, height, width), (1, rows * columns, columns, 1))
    return windows.index_select(0, start.to(images.device, non_blocking=True))


def cutout(images: Tensor, row: Tensor, column: Tensor, size: int) -> Tensor:
    """Set a square to zero, the mean of normalised images (DeVries & Taylor 2017, section 3.2: cut at the image's border).

    Args:
        images: float [B, C, H, W], changed in place.
        row, column: int64 [B], centre of the square, anywhere in the image.
        size: side of the square in pixels.
    """
    height, width = images.shape[-2:]
    row, column = row.to(images.device)[:, None], column.to(images.device)[:, None]
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    low = size // 2
    in_rows = (rows >= row - low) & (rows < row - low + size)
    in_columns = (columns >= column - low) & (columns < column - low + size)
    return images.masked_fill_((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0.0)


def gray(images: Tensor) -> Tensor:
    """Luma of [B, 3, H, W] (ITU-R 601: 0.299 R + 0.587 G + 0.114 B) or the one channel itself, [B, 1, H, W]."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, contrast and saturation, in this order, each clipped to [0, 255].

    With factors b, c, s and the luma g(x): x <- b x; x <- c x + (1 - c) mean(g(x)), over an image; x <- s x + (1 - s) g(x).

    Args:
        images: float [B, C, H, W] in 0 to 255.
        factors: float [B, 3].
    """
    brightness, contrast, saturation = factors.to(images.device)[:, :, None, None, None].unbind(1)
    images = (images * brightness).clamp_(0, 255)
    mean = gray(images).mean((1, 2, 3), keepdim=True)
    images = torch.lerp(mean, images, contrast).clamp_(0, 255)
    if images.shape[1] == 1:
        return images
    return torch.lerp(gray(images), images, saturation).clamp_(0, 255)


def partners(count: int) -> Tensor:
    """Whom each example is mixed with: its neighbour (0 with 1, 2 with 3, ...), int64 [count]; an odd last one with itself.

    The order of the batch is random, so neighbours are a random pairing, and no pair is torn apart when processes take shares of
    even size.
    """
    other = torch.arange(count) ^ 1
    return other.clamp_(max=count - 1)


def mixup(images: Tensor, soft: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018, eq. 1): x = lam x_i + (1 - lam) x_j, y = lam y_i + (1 - lam) y_j, lam ~ Beta(alpha, alpha).

    Args:
        images: float [B, C, H, W].
        soft: class probabilities, float [B, classes].
        lam: share of the first image, one number per batch.
    """
    other = partners(len(images)).to(images.device)
    return torch.lerp(images[other], images, lam), torch.lerp(soft[other], soft, lam)


def cutmix(images: Tensor, soft: Tensor, lam: float, row: float, column: float) -> tuple[Tensor, Tensor]:
    """CutMix (Yun et al. 2019, eq. 1 to 3): x = M x_i + (1 - M) x_j, y = lam y_i + (1 - lam) y_j, lam ~ Beta(alpha, alpha).

    M is 0 in a box of height H sqrt(1 - lam) and width W sqrt(1 - lam) that is cut at the border; the labels' lam is then set to
    the share that is left of x_i.

    Args:
        images: float [B, C, H, W].
        soft: class probabilities, float [B, classes].
        lam: wanted share of the first image, one number per batch.
        row, column: centre of the box as fractions of height and width, in [0, 1).
    """
    height, width = images.shape[-2:]
    half = 0.5 * math.sqrt(1 - lam)
    top, bottom = (min(max(round(height * (row + side)), 0), height) for side in (-half, half))
    left, right = (min(max(round(width * (column + side)), 0), width) for side in (-half, half))
    other = partners(len(images)).to(images.device)
    images = images.clone()
    images[:, :, top:bottom, left:right] = images[other, :, top:bottom, left:right]
    lam = 1 - (bottom - top) * (right - left) / (height * width)
    return images, torch.lerp(soft[other], soft, lam)


class Normalize:
    """Turn bytes into floats, (x / 255 - mean) / std, as one multiplication and one addition per pixel.

    Args:
        mean, std: per channel in units of 0 to 1; one number, or one per channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        if min(std) <= 0:
            raise UserError(f"dataset.std={list(std)} must be above 0")
        self.scale = torch.tensor([1 / (255 * s) for s in std])[:, None, None]
        self.shift = torch.tensor([-m / s for m, s in zip(mean, std)])[:, None, None]

    def normalize(self, images: Tensor) -> Tensor:
        """Bytes (or floats in 0 to 255) [B, C, H, W] -> a new float32 tensor."""
        if self.scale.device != images.device:
            self.scale, self.shift = self.scale.to(images.device), self.shift.to(images.device)
        return images.to(torch.float32, copy=True).mul_(self.scale).add_(self.shift)

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        batch["image"] = self.normalize(batch["image"])
        return batch


class Augment(Normalize):
    """Augment and normalise a batch; what is 0, false or null is off.

    Args:
        mean, std: see :class:`Normalize`.
        num_classes: of `label_soft`.
        image_size: side in pixels, to refuse what does not fit into it.
        crop: pad by so many zero pixels and crop at random; without flip a random shift by up to that many pixels.
        flip: mirror left to right with probability 1/2.
        cutout: side in pixels of the square that is erased.
        jitter: brightness, contrast and saturation, each by a factor in [1 - jitter, 1 + jitter].
        randaugment: magnitude, 1 to 30, of two RandAugment operations.
        mixup, cutmix: alpha of Beta(alpha, alpha). The batch gains `label_soft`, float [B, num_classes]; with both, each batch
            takes one of them with probability 1/2.

    Raises:
        UserError: a value out of its range.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int,
        image_size: int,
        *,
        crop: int = 0,
        flip: bool = False,
        cutout: int = 0,
        jitter: float = 0.0,
        randaugment: int = 0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ):
        super().__init__(mean, std)
        _check("crop", crop, image_size - 1, whole=True)
        _check("cutout", cutout, 2 * image_size - 1, whole=True)
        _check("jitter", jitter, 1)
        _check("randaugment", randaugment, 30, whole=True)
        _check("mixup", mixup, math.inf)
        _check("cutmix", cutmix, math.inf)
        if not isinstance(flip, bool):
            raise UserError(f"dataset.augment.flip={flip} must be true or false")
        self.num_classes = num_classes
        self.crop, self.flip, self.cutout, self.jitter = crop, flip, cutout, jitter
        self.randaugment, self.mixup, self.cutmix = randaugment, mixup, cutmix

    def __call__(self, batch: Batch, draw: Draw) -> Batch:
        images = batch["image"]
        height, width = images.shape[-2:]
        if self.crop or self.flip:
            top, left = draw.integers(0, 2 * self.crop + 1, 2).unbind(1)
            flip = draw.integers(0, 2).bool() if self.flip else None
            images = crop_flip(images, self.crop, top, left, flip)
        if self.randaugment:
            images = randaugment(images, draw.integers(0, len(RANDAUGMENT_OPS), 2), draw.integers(0, 2, 2), self.randaugment)
        if self.jitter:
            images = jitter(images.float(), 1 + self.jitter * (2 * draw.uniform(3) - 1))
        images = self.normalize(images)
        if self.cutout:
            images = cutout(images, draw.integers(0, height), draw.integers(0, width), self.cutout)
        if self.mixup or self.cutmix:
            images, batch["label_soft"] = self.mix(images, batch["label"], draw)
        batch["image"] = images
        return batch

    def mix(self, images: Tensor, label: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Mix neighbours by mixup or CutMix; return the images and their class probabilities."""
        soft = F.one_hot(label, self.num_classes).float()
        pick, row, column = draw.whole(3)
        if self.mixup and (not self.cutmix or pick < 0.5):
            return mixup(images, soft, draw.beta(self.mixup))
        return cutmix(images, soft, draw.beta(self.cutmix), row, column)


def _check(name: str, value: Any, top: float, whole: bool = False) -> None:
    kind = "a whole number" if whole else "a number"
    fits = isinstance(value, int) if whole else isinstance(value, int | float)
    if not fits or isinstance(value, bool) or not 0 <= value <= top:
        limit = f"from 0 to {top}" if top < math.inf else "of at least 0"
        raise UserError(f"dataset.augment.{name}={value} must be {kind} {limit} (0: off)")


def make_augment(
    augment: Mapping[str, Any] | None, mean: Sequence[float], std: Sequence[float], num_classes: int, image_size: int
) -> Augment:
    """Build :class:`Augment` from the config group ``dataset.augment``; null, false and 0 leave a part out.

    Raises:
        UserError: an unknown key, with the nearest spelling.
    """
    names = ("crop", "flip", "cutout", "jitter", "randaugment", "mixup", "cutmix")
    chosen = {name: value for name, value in (augment or {}).items() if value is not None and value is not False}
    for name in chosen:
        if name not in names:
            raise UserError(f"dataset.augment has no '{name}'{nearest(name, names)}: it knows {', '.join(names)}")
    return Augment(mean, std, num_classes, image_size, **chosen)
