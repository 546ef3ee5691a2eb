"""Drawn figures of five parts, whose look says little and whose layout says all: body, head and two legs on a noisy ground.

All is a function of (seed, part, number). A figure stands anywhere, in any direction and of any size, the head in front of the
body, the legs behind it to both sides. The parts differ faintly in colour, the legs not at all: which is the left one is said by
where the head is. Mirrored figures do not exist.
"""

import math
from typing import Any

import numpy as np
import torch

from datamodules.dense.augment import Example
from datamodules.dense.base import DenseData
from datamodules.loaders import mix
from papermix.errors import UserError
from papermix.segmentation.segments import Category

CATEGORIES = (
    Category(0, "ground", False, (60, 60, 70)),
    Category(1, "body", True, (228, 170, 60)),
    Category(2, "head", True, (200, 60, 60)),
    Category(3, "left leg", True, (70, 130, 220)),
    Category(4, "right leg", True, (90, 190, 110)),
)
# mean colours of the ground and the figures
GREY, SKIN = (105, 115, 130), (165, 140, 115)
GROUND, BODY, HEAD, LEFT, RIGHT = range(5)
# directions of the colours of body, head and legs from the figure's own, sum 0
TINTS = {BODY: (1.0, -1.0, 0.0), HEAD: (-1.0, 0.0, 1.0), LEFT: (0.0, 1.0, -1.0), RIGHT: (0.0, 1.0, -1.0)}


class DrawnFigures:
    """The figures ``0 ... count - 1`` of a part, each drawn when it is read.

    Args:
        seed, part: what they are a function of, besides their number.
        count: how many.
        size: side of the images in pixels.
        contrast: how far the parts' colours lie from the figure's own, of 255.
        noise: standard deviation of the pixels' noise, of 255.
    """

    def __init__(self, seed: int, part: str, count: int, size: int, contrast: float, noise: float):
        self.seed, self.part, self.count = seed, part, count
        self.size, self.contrast, self.noise = size, contrast, noise

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Example:
        """Figure ``index``: `image` uint8 [3, H, W], `semantic` uint8 [H, W]."""
        draw = np.random.default_rng(mix("figure", self.seed, self.part, index))
        semantic = layout(self.size, *draw.uniform((0.36, 0.36, 0.0, 0.13), (0.64, 0.64, 2 * math.pi, 0.19)))
        ground, figure = np.array([GREY, SKIN]) + draw.uniform(-15, 15, (2, 3))
        colors = np.stack([ground, *(figure + self.contrast * np.array(TINTS[c]) for c in (BODY, HEAD, LEFT, RIGHT))])
        image = colors[semantic] + self.noise * draw.standard_normal((self.size, self.size, 3))
        pixels = torch.from_numpy(np.clip(image, 0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()
        return {"image": pixels, "semantic": torch.from_numpy(semantic), "image_id": index}


def layout(size: int, x: float, y: float, angle: float, radius: float) -> np.ndarray:
    """Classes uint8 [size, size] of a figure.

    Args:
        size: side in pixels.
        x, y: centre of the body, in units of the side (y downwards).
        angle: direction in which the head lies from it, in radians from the x axis towards the y axis.
        radius: of the body, in units of the side.
    """
    centres = (np.arange(size) + 0.5) / size
    across, down = (centres[None, :] - x) / radius, (centres[:, None] - y) / radius
    # in the figure's own frame: ahead towards the head, and to its right
    ahead = across * math.cos(angle) + down * math.sin(angle)
    right = -across * math.sin(angle) + down * math.cos(angle)
    classes = np.full((size, size), GROUND, np.uint8)
    for part, side in ((LEFT, -1.0), (RIGHT, 1.0)):
        # a bar that runs backwards and outwards
        along = (-ahead + 0.9 * side * right) / math.hypot(1, 0.9)
        beside = (0.9 * ahead + side * right) / math.hypot(1, 0.9)
        classes[(np.abs(along - 1.6) < 0.95) & (np.abs(beside) < 0.36)] = part
    classes[np.hypot(ahead - 1.45, right) < 0.62] = HEAD
    classes[np.hypot(ahead, right) < 1.0] = BODY
    return classes


class Figures(DenseData):
    """One figure in each image; see the module's text.

    Args:
        contrast: how far the parts' colours lie from the figure's own, of 255.
        noise: standard deviation of the pixels' noise, of 255.
        train_figures, test_figures: how many the parts have; the val split is cut from the training part.
        figure_seed: another one, other figures; the order has ``seed``.
        others: see :class:`datamodules.dense.base.DenseData`.
    """

    categories = CATEGORIES

    def __init__(
        self,
        *,
        image_size: int = 32,
        contrast: float = 16.0,
        noise: float = 12.0,
        train_figures: int = 60,
        test_figures: int = 200,
        figure_seed: int = 0,
        **others: Any,
    ):
        super().__init__(image_size=image_size, **others)
        if image_size < 16:
            raise UserError(f"dataset.image_size={image_size} is too small for a figure: use at least 16")
        if train_figures < 1 or test_figures < 1:
            raise UserError("dataset.train_figures and dataset.test_figures must be at least 1")
        for name, value in (("contrast", contrast), ("noise", noise)):
            if not 0 <= value <= 255:
                raise UserError(f"dataset.{name}={value} must be from 0 to 255")
        if self.num_classes != len(CATEGORIES) or self.in_chans != 3:
            raise UserError("figures have dataset.num_classes=5 and dataset.in_chans=3: leave them as they are")
        if self.augment["flip"]:
            raise UserError("dataset.augment.flip=true would swap a figure's left and right: leave it false")
        self.side, self.contrast, self.noise, self.figure_seed = image_size, contrast, noise, figure_seed
        self.counts = {"train": train_figures, "test": test_figures}

    def sources(self) -> dict[str, Any]:
        facts = (self.side, self.contrast, self.noise)
        return {part: DrawnFigures(self.figure_seed, part, count, *facts) for part, count in self.counts.items()}
