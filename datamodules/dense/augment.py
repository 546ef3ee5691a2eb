"""Joint changes to an image and all that is drawn on it: resize, scale jitter, crop, flip, colour; then the truth is worked out
anew from what is left.

Geometry is torchvision's (v2, tv_tensors): images are resized bilinearly with antialiasing, maps of classes and segments by the
nearest pixel. Random numbers come from torch's global generator, which the loader seeds for every example.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from papermix.errors import UserError, nearest
from papermix.segmentation.segments import VOID, Segments, boxes_of, semantic_of

Example = dict[str, Any]
# what an image may carry besides its pixels
MAPS = ("semantic", "panoptic", "masks", "depth")
KEYS = ("scale", "crop", "flip", "color")


class DenseTransform:
    """``transform(example) -> example`` for one image and its truth.

    Training: resize, scale jitter, crop, flip, colour; the truth follows the image. Evaluation: only the image is resized, the
    truth keeps the publisher's size. Both then renew what depends on the maps: classes of the pixels from the segments, segments
    from the masks (the first lies in front), boxes from the masks; segments without a pixel go.

    Args:
        train: whether the image is for training.
        background: class of the pixels that no mask covers, in sets with `masks`; None elsewhere.
        resize: shorter side in pixels; None: as it is.
        max_size: longest side in pixels, which goes before ``resize``; None: any.
        scale: two factors; the size is changed at random by a factor between them (uniform).
        crop: (height, width) of the window that is cut out at a random place; None: no window. Smaller images stay smaller.
        flip: mirror left to right with probability 1/2.
        color: brightness, contrast and saturation change by factors in [1 - color, 1 + color], in random order.
    """

    def __init__(
        self,
        train: bool,
        background: int | None = None,
        resize: int | None = None,
        max_size: int | None = None,
        scale: Sequence[float] | None = None,
        crop: tuple[int, int] | None = None,
        flip: bool = False,
        color: float = 0.0,
    ):
        self.train, self.background, self.resize, self.max_size = train, background, resize, max_size
        self.scale, self.crop, self.flip = scale, crop, flip
        self.color = v2.ColorJitter(color, color, color) if color else None

    def __call__(self, example: Example) -> Example:
        image = tv_tensors.Image(example["image"])
        maps = {name: tv_tensors.Mask(example[name]) for name in MAPS if name in example}
        height, width = self._size(*image.shape[-2:])
        if self.train:
            image, maps = self._augment(image, maps, height, width)
        elif image.shape[-2:] != (height, width):
            image = tvf.resize(image, [height, width], antialias=True)
        out = {**example, "image": image.as_subclass(Tensor), **{name: m.as_subclass(Tensor) for name, m in maps.items()}}
        out["size"] = torch.tensor(image.shape[-2:])
        first = next((m for m in maps.values()), image)
        out["truth_size"] = torch.tensor(first.shape[-2:])
        return self._renew(out)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        factor = self.resize / min(height, width) if self.resize else 1.0
        if self.max_size:
            factor = min(factor, self.max_size / max(height, width))
        if self.train and self.scale is not None:
            low, high = self.scale
            factor *= low + (high - low) * float(torch.rand(()))
        return max(1, round(height * factor)), max(1, round(width * factor))

    def _augment(self, image: Any, maps: dict[str, Any], height: int, width: int) -> tuple[Any, dict[str, Any]]:
        if image.shape[-2:] != (height, width):
            image = tvf.resize(image, [height, width], antialias=True)
            maps = {name: tvf.resize(m, [height, width]) for name, m in maps.items()}
        if self.crop is not None:
            rows, columns = min(self.crop[0], height), min(self.crop[1], width)
            top, left = int(torch.randint(height - rows + 1, ())), int(torch.randint(width - columns + 1, ()))
            image = tvf.crop(image, top, left, rows, columns)
            maps = {name: tvf.crop(m, top, left, rows, columns) for name, m in maps.items()}
        if self.flip and torch.rand(()) < 0.5:
            image = tvf.horizontal_flip(image)
            maps = {name: tvf.horizontal_flip(m) for name, m in maps.items()}
        if self.color is not None:
            image = self.color(image)
        return image, maps

    def _renew(self, example: Example) -> Example:
        if "masks" in example:
            assert self.background is not None
            example = paint(example, self.background)
        elif "panoptic" in example:
            segments = Segments.of(example["panoptic"].long(), example["category"], example["crowd"]).compact()
            example |= {"panoptic": segments.map.int(), "category": segments.category, "crowd": segments.crowd}
        if "panoptic" in example:
            example["semantic"] = semantic_of(example["panoptic"].long(), example["category"]).to(torch.uint8)
        return example


def paint(example: Example, background: int) -> Example:
    """Work segments and boxes out from `masks` [S, H, W], the first in front; masks without a pixel go.

    The pixels outside all masks become one last segment of class ``background``, if there are any.

    Returns:
        The example with `panoptic` int32 [H, W], `masks`, `boxes` float [S, 4], `category`, `crowd` of the segments.
    """
    masks, category, crowd = example["masks"].bool(), example["category"], example["crowd"]
    free = ~masks.any(0)
    masks = torch.cat([masks, free[None]])
    category = torch.cat([category, category.new_tensor([background])])
    crowd = torch.cat([crowd, crowd.new_zeros(1)])
    seen = masks.flatten(1).any(1)
    masks, category, crowd = masks[seen], category[seen], crowd[seen]
    # the first mask that covers a pixel
    panoptic = masks.to(torch.uint8).argmax(0).int() + 1 if len(masks) else torch.zeros_like(free, dtype=torch.int32)
    return {**example, "masks": masks, "boxes": boxes_of(masks), "category": category, "crowd": crowd, "panoptic": panoptic}


def collate(examples: list[Example], least: tuple[int, int] = (1, 1), multiple: int = 1) -> dict[str, Tensor]:
    """Stack examples of different sizes: pad images and maps at the bottom and on the right, lists of segments at their end.

    Padding is 0 for images, masks, segment numbers and words, ``VOID`` for classes, NaN for regression, -1 for categories,
    -100 for the words that are to be said next.

    Args:
        examples: what :class:`DenseTransform` returns.
        least: smallest height and width of the images of a batch, and of truths of the images' size.
        multiple: height and width of the images are made multiples of this.
    """
    first = examples[0]
    sizes = torch.stack([e["size"] for e in examples])
    same = all(torch.equal(e["size"], e["truth_size"]) for e in examples)
    height, width = (-(-max(int(s), low) // multiple) * multiple for s, low in zip(sizes.amax(0), least))
    truths = torch.stack([e["truth_size"] for e in examples])
    high, wide = (height, width) if same else (int(t) for t in truths.amax(0))
    count = max((len(e["category"]) for e in examples if "category" in e), default=0)
    fills: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((first["image"].shape[0], height, width), 0),
        "semantic": ((high, wide), VOID),
        "panoptic": ((high, wide), 0),
        "masks": ((count, high, wide), False),
        "depth": ((1, high, wide), float("nan")),
        "category": ((count,), -1),
        "crowd": ((count,), False),
        "boxes": ((count, 4), 0.0),
    }
    batch = {name: _padded([e[name] for e in examples], *fills[name]) for name in fills if name in first}
    batch |= {"size": sizes, "truth_size": truths, "image_id": torch.tensor([int(e["image_id"]) for e in examples])}
    if "caption" in first:
        longest = max(len(e["caption"]) for e in examples) - 1
        batch["tokens"] = _padded([e["caption"][:-1] for e in examples], (longest,), 0)
        batch["target"] = _padded([e["caption"][1:] for e in examples], (longest,), -100)
        batch["fresh"] = torch.ones(len(examples), dtype=torch.bool)
    return batch


def _padded(tensors: list[Tensor], shape: tuple[int, ...], fill: Any) -> Tensor:
    if all(t.shape == shape for t in tensors):
        return torch.stack(tensors)
    out = tensors[0].new_full((len(tensors), *shape), fill)
    for place, tensor in zip(out, tensors):
        place[tuple(slice(n) for n in tensor.shape)] = tensor
    return out


def checked(augment: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments of :class:`DenseTransform` that ``dataset.augment`` gives.

    Raises:
        UserError: an unknown key or a value out of its range.
    """
    given = dict(augment or {})
    for key in given.keys() - set(KEYS):
        raise UserError(f"dataset.augment has no '{key}'{nearest(key, KEYS)}: it knows {', '.join(KEYS)}")
    scale, crop, flip, color = (given.get(key) for key in KEYS)
    if scale is not None and (
        not isinstance(scale, Sequence) or len(scale) != 2 or not all(_number(s) for s in scale) or not 0 < scale[0] <= scale[1]
    ):
        raise UserError(f"dataset.augment.scale={scale} must be two growing factors above 0, such as [0.5, 2.0], or null")
    sides = [crop, crop] if isinstance(crop, int) else crop
    if crop and (not isinstance(sides, Sequence) or len(sides) != 2 or not all(isinstance(s, int) and s > 0 for s in sides)):
        raise UserError(f"dataset.augment.crop={crop} must be a side in pixels, [height, width], or null")
    if flip not in (None, True, False):
        raise UserError(f"dataset.augment.flip={flip} must be true or false")
    if color is not None and (not _number(color) or not 0 <= color <= 1):
        raise UserError(f"dataset.augment.color={color} must be a number from 0 to 1 (0: off)")
    return {"scale": scale, "crop": tuple(sides) if crop and sides else None, "flip": bool(flip), "color": float(color or 0)}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
