"""Procedural scenes of shapes as a data set: semantic, instance and panoptic truth, depth, captions and questions, no files."""

from typing import Any

import torch
from torch import Tensor

from datamodules.dense import scenes
from datamodules.dense.augment import Example
from datamodules.dense.base import DenseData
from datamodules.dense.scenes import Scene, draw_scene
from papermix.errors import UserError, nearest
from papermix.segmentation.segments import Category

# kind -> what a scene must render for it
RENDERED = {
    "semantic": ("image", "semantic"),
    "instance": ("image", "masks"),
    "panoptic": ("image", "panoptic"),
    "depth": ("image", "depth"),
}
BACKGROUND = Category(0, "background", False, (120, 120, 120))


class DrawnScenes:
    """The scenes ``0 ... count - 1`` of a part, each drawn when it is read.

    Args:
        seed, part: what the scenes are a function of, besides their number.
        count: how many.
        kind: which truth, see :class:`datamodules.dense.base.DenseData`.
        size: side of the images in pixels.
    """

    def __init__(self, seed: int, part: str, count: int, kind: str, size: int):
        self.seed, self.part, self.count, self.kind, self.size = seed, part, count, kind, size

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """The layout of scene ``index``."""
        return draw_scene(self.seed, self.part, index)

    def read(self, index: int) -> Example:
        """Scene ``index``, rendered."""
        drawn: dict[str, Tensor] = self.scene(index).render(self.size, RENDERED[self.kind])
        if self.kind in ("semantic", "depth"):
            drawn = {name: drawn[name] for name in RENDERED[self.kind]}
        elif self.kind == "instance":
            # stuff has no instances: what no thing covers is background
            things = torch.isin(drawn["category"], torch.tensor(scenes.THINGS))
            drawn |= {name: drawn[name][things] for name in ("masks", "category", "crowd")}
        return {**drawn, "image_id": index}


class Shapes(DenseData):
    """Scenes of discs, squares, triangles and stars before bands of sky, grass, water and sand; see :mod:`datamodules.dense.scenes`.

    Args:
        kind: semantic, instance, panoptic or depth.
        train_scenes, test_scenes: how many scenes the parts have; the val split is cut from the training part.
        scene_seed: another one, other scenes; the order and the augmentation have ``seed``.
        others: see :class:`datamodules.dense.base.DenseData`.
    """

    def __init__(
        self,
        kind: str,
        *,
        image_size: int = 64,
        train_scenes: int = 2000,
        test_scenes: int = 500,
        scene_seed: int = 0,
        **others: Any,
    ):
        if kind not in RENDERED:
            raise UserError(f"dataset.kind={kind} is not known{nearest(kind, RENDERED)}: use one of {', '.join(RENDERED)}")
        if train_scenes < 1 or test_scenes < 1:
            raise UserError("dataset.train_scenes and dataset.test_scenes must be at least 1")
        if image_size < 32:
            raise UserError(f"dataset.image_size={image_size} is too small for shapes to be seen: use at least 32")
        super().__init__(image_size=image_size, **others)
        self.kind, self.counts, self.scene_seed = kind, {"train": train_scenes, "test": test_scenes}, scene_seed
        if kind == "instance":
            self.categories = (*(scenes.CATEGORIES[c] for c in scenes.THINGS), BACKGROUND)
        elif kind != "depth":
            self.categories = scenes.CATEGORIES
        if self.categories and self.num_classes != len(self.categories):
            raise UserError(
                f"dataset.num_classes={self.num_classes}, but shapes have {len(self.categories)} classes as {kind}: set it to that"
            )
        self.size = image_size

    def sources(self) -> dict[str, Any]:
        return {part: DrawnScenes(self.scene_seed, part, n, self.kind, self.size) for part, n in self.counts.items()}

    def scene(self, split: str, index: int) -> Scene:
        """The scene behind example ``index`` of a split, for the captions and questions of :mod:`datamodules.dense.scene_language`."""
        part = "test" if split == "test" else "train"
        return draw_scene(self.scene_seed, part, int(self.rows[split][index]))
