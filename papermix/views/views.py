"""Random views of a batch of images: the augmentations of SimCLR, MoCo v2 and BYOL, every image by draws of its own."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from papermix.errors import UserError
from papermix.views import changes
from papermix.views.randaugment import RANDAUGMENT_OPS, randaugment

_TRIES = 10
# what a view needs: tries of a crop, its place, flip, whether jitter, its order and strengths, gray, blur and sigma, solarize,
# RandAugment's two operations and signs
_PARTS = {
    "tries": 2 * _TRIES,
    "place": 2,
    "flip": 1,
    "jitter": 1,
    "order": 4,
    "strength": 4,
    "gray": 1,
    "blur": 2,
    "solarize": 1,
    "rand": 4,
}
NUMBERS = sum(_PARTS.values())


class Views:
    """Makes any number of views of a batch on its device. A view is a function of the image and of ``NUMBERS`` uniform numbers.

    In this order: crop and resize, mirror, RandAugment (if asked for; SimCLR has none), brightness, contrast, saturation and hue
    in an order of the image's own (together with probability ``jitter``), gray, Gaussian blur (sigma uniform in 0.1 to 2, a
    window of a tenth of the side; SimCLR, appendix A), solarize (BYOL, appendix B). Images of one channel keep it: saturation,
    hue and gray leave them as they are.

    Args:
        mean, std: of the normalisation that images come with and views leave with, in units of 0 to 1; one number or one per
            channel. 0 and 1: images are in 0 to 1.
        size: side of the views in pixels; None: that of the images.
        crop: smallest and largest share of the area that a crop takes.
        flip: mirror left to right with probability 1/2.
        jitter: probability that brightness, contrast, saturation and hue are changed.
        brightness, contrast, saturation: by factors uniform in [max(0, 1 - value), 1 + value].
        hue: by turns uniform in [-value, value] of a circle, at most 0.5.
        gray: probability.
        blur, solarize: probability, or one for each view, the last one for all that follow.
        randaugment: magnitude, 1 to 30, of two RandAugment operations; 0: none.

    Raises:
        UserError: a value out of its range.
    """

    def __init__(
        self,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        *,
        size: int | None = None,
        crop: Sequence[float] = (0.08, 1.0),
        flip: bool = True,
        jitter: float = 0.8,
        brightness: float = 0.8,
        contrast: float = 0.8,
        saturation: float = 0.8,
        hue: float = 0.2,
        gray: float = 0.2,
        blur: float | Sequence[float] = 0.5,
        solarize: float | Sequence[float] = 0.0,
        randaugment: int = 0,
    ) -> None:
        if len(crop) != 2 or not 0 < crop[0] <= crop[1] <= 1:
            raise UserError(f"augment.crop={list(crop)} must be two growing numbers above 0 and at most 1.")
        if size is not None and size < 1:
            raise UserError(f"augment.size={size} must be at least 1, or null for the images' own.")
        self.blur, self.solarize = ([p] if isinstance(p, int | float) else list(p) for p in (blur, solarize))
        shares = {"jitter": [jitter], "gray": [gray], "blur": self.blur, "solarize": self.solarize}
        for name, values in shares.items():
            if not values or not all(0 <= p <= 1 for p in values):
                raise UserError(f"augment.{name}={values if len(values) != 1 else values[0]} must be a probability from 0 to 1.")
        for name, value in {"brightness": brightness, "contrast": contrast, "saturation": saturation}.items():
            if not value >= 0:
                raise UserError(f"augment.{name}={value} must be at least 0.")
        if not 0 <= hue <= 0.5:
            raise UserError(f"augment.hue={hue} must be from 0 to 0.5.")
        if not 0 <= randaugment <= 30:
            raise UserError(f"augment.randaugment={randaugment} must be a magnitude from 1 to 30, or 0 for none.")
        self.mean, self.std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
        self.size, self.crop, self.flip = size, (crop[0], crop[1]), flip
        self.jitter, self.strengths, self.hue, self.gray = jitter, (brightness, contrast, saturation), hue, gray
        self.randaugment = randaugment

    def __call__(self, images: Tensor, draws: Tensor, first_view: int = 0) -> Tensor:
        """Views [V, B, C, size, size] of normalised images [B, C, H, W], float32.

        Args:
            draws: uniform in [0, 1), [B, V, NUMBERS], on the CPU, see :func:`draw`.
            first_view: number of the first view, for what differs from view to view.
        """
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            pixels = self._pixels(images)
            return torch.stack([self.view(pixels, draws[:, v], first_view + v) for v in range(draws.shape[1])])

    def view(self, pixels: Tensor, draws: Tensor, number: int = 0) -> Tensor:
        """View ``number`` of images [B, C, H, W] in 0 to 1, normalised, by ``draws`` [B, NUMBERS]."""
        part = dict(zip(_PARTS, draws.split(list(_PARTS.values()), dim=1)))
        device = pixels.device
        x = self._cropped(pixels, part)
        if self.randaugment:
            ops, signs = (part["rand"][:, :2] * len(RANDAUGMENT_OPS)).long(), (part["rand"][:, 2:] * 2).long()
            x = randaugment((x * 255).round().to(torch.uint8), ops, signs, self.randaugment).float() / 255
        x = self._jittered(x, part)
        if self.gray and x.shape[1] == 3:
            x = _some(x, part["gray"][:, 0] < self.gray, lambda x, _: changes.luma(x).expand_as(x))
        blur, solarize = (p[min(number, len(p) - 1)] for p in (self.blur, self.solarize))
        width = _window(x.shape[-1])
        if blur and width > 1:
            sigma = (0.1 + 1.9 * part["blur"][:, 1]).to(device)
            x = _some(x, part["blur"][:, 0] < blur, lambda x, rows: _blurred(x, sigma[rows], width))
        if solarize:
            x = _some(x, part["solarize"][:, 0] < solarize, lambda x, _: changes.solarize(x))
        return (x - self.mean.to(device)) / self.std.to(device)

    def _pixels(self, images: Tensor) -> Tensor:
        return (images.float() * self.std.to(images.device) + self.mean.to(images.device)).clamp(0, 1)

    def _cropped(self, pixels: Tensor, part: dict[str, Tensor]) -> Tensor:
        height, width = pixels.shape[-2:]
        tries = part["tries"].view(-1, _TRIES, 2)
        boxes = changes.crop_boxes(tries, part["place"], height, width, self.crop).to(pixels.device)
        top, left, high, wide = boxes
        rows = changes.resize_matrix(top, high, self.size or height, height)
        columns = changes.resize_matrix(left, wide, self.size or width, width)
        if self.flip:
            mirrored = (part["flip"] < 0.5).to(pixels.device)[:, :, None]
            columns = torch.where(mirrored, columns.flip(1), columns)
        return changes.separable(pixels, rows, columns).clamp(0, 1)

    def _jittered(self, x: Tensor, part: dict[str, Tensor]) -> Tensor:
        """Each image in the order that it drew: at every place, those that have the same change there are changed together."""
        colour = x.shape[1] == 3
        low = torch.tensor([max(0.0, 1 - s) for s in self.strengths] + [-self.hue])
        high = torch.tensor([1 + s for s in self.strengths] + [self.hue])
        strength = (low + (high - low) * part["strength"]).to(x.device)
        order, chosen = part["order"].argsort(1), part["jitter"][:, 0] < self.jitter
        known: list[tuple[float, Callable[[Tensor, Tensor], Tensor]]] = [
            (self.strengths[0], changes.brightness),
            (self.strengths[1], changes.contrast),
            (self.strengths[2] * colour, changes.saturation),
            (self.hue * colour, changes.hue),
        ]
        for place in range(len(known)):
            for kind, (active, change) in enumerate(known):
                if active:
                    x = _some(x, chosen & (order[:, place] == kind), lambda x, rows, c=change, k=kind: c(x, strength[rows, k]))
        return x


def _some(x: Tensor, chosen: Tensor, change: Callable[..., Tensor]) -> Tensor:
    """``x`` with ``change(rows, their indices)`` in place of the rows ``chosen`` (bool [B] on the CPU: nobody waits)."""
    rows = chosen.nonzero()[:, 0].to(x.device, non_blocking=True)
    return x.index_copy(0, rows, change(x.index_select(0, rows), rows)) if len(rows) else x


def _window(size: int) -> int:
    return size // 10 // 2 * 2 + 1 if size >= 30 else 3 if size >= 12 else 1


def _blurred(x: Tensor, sigma: Tensor, width: int) -> Tensor:
    height, length = x.shape[-2:]
    return changes.separable(x, changes.blur_matrix(sigma, height, width), changes.blur_matrix(sigma, length, width))


def draw(count: int, views: int, *key: Any, rows: slice = slice(None)) -> Tensor:
    """Uniform numbers [rows of count, views, NUMBERS] for :class:`Views`, a function of ``key`` (seed, epoch, batch), on the CPU.

    Drawn for the whole batch and cut to ``rows``: so many processes make the views that one would make.
    """
    seed = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "little") >> 1)
    return torch.rand(count, views, NUMBERS, generator=generator)[rows]
