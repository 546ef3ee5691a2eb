"""Cityscapes with a panoptic truth, straight from the publisher's instance maps."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.dense.augment import Example
from datamodules.dense.base import DenseData, Source
from datamodules.dense.voc import packed, read_numbers, read_pair
from datamodules.loaders import Damaged
from papermix.errors import UserError
from papermix.segmentation.segments import VOID, Category

# the 19 classes that are judged, in the order of the publisher's train ids; labels between them are void
CATEGORIES = (
    Category(7, "road", False, (128, 64, 128)),
    Category(8, "sidewalk", False, (244, 35, 232)),
    Category(11, "building", False, (70, 70, 70)),
    Category(12, "wall", False, (102, 102, 156)),
    Category(13, "fence", False, (190, 153, 153)),
    Category(17, "pole", False, (153, 153, 153)),
    Category(19, "traffic light", False, (250, 170, 30)),
    Category(20, "traffic sign", False, (220, 220, 0)),
    Category(21, "vegetation", False, (107, 142, 35)),
    Category(22, "terrain", False, (152, 251, 152)),
    Category(23, "sky", False, (70, 130, 180)),
    Category(24, "person", True, (220, 20, 60)),
    Category(25, "rider", True, (255, 0, 0)),
    Category(26, "car", True, (0, 0, 142)),
    Category(27, "truck", True, (0, 0, 70)),
    Category(28, "bus", True, (0, 60, 100)),
    Category(31, "train", True, (0, 80, 100)),
    Category(32, "motorcycle", True, (0, 0, 230)),
    Category(33, "bicycle", True, (119, 11, 32)),
)
# labels are numbered 0 to 33; from 24 on (humans and vehicles, two kinds of which are void) they have instances
LABELS, FIRST_THING = 34, 24
CLASS_OF = np.full(LABELS, VOID)
CLASS_OF[[category.id for category in CATEGORIES]] = range(len(CATEGORIES))


class CityscapesPanoptic(DenseData):
    """Cityscapes, fine annotations (Cordts et al. 2016): 19 classes, 8 of them things; 2,975 training, 500 validation images.

    Read are ``leftImg8bit/{train,val}/<city>/*_leftImg8bit.png`` and, below ``gtFine``, the ``*_gtFine_instanceIds.png`` beside
    them: an id below 1000 is a label, all pixels of it one segment, and of a class of things it is a group of objects, a crowd;
    id 1000 * label + n is an object. Classes are numbered by train id, labels that are not judged are void: the segments that
    the publisher's conversion to panoptic files gives. The official validation images are the test split, and the val split is
    cut from the training images.

    Args:
        data_dir: the folder that holds ``leftImg8bit`` and ``gtFine``.
        others: see :class:`datamodules.dense.base.DenseData`.

    Raises:
        UserError: another number of classes (here), missing folders (in ``setup``).
    """

    kind = "panoptic"
    typical_size = (1024, 2048)
    categories = CATEGORIES

    def __init__(self, *, data_dir: str, **others: Any):
        super().__init__(**others)
        if self.num_classes != len(CATEGORIES):
            raise UserError(
                f"dataset.num_classes={self.num_classes} must be {len(CATEGORIES)}, the classes that Cityscapes judges"
            )
        self.data_dir = Path(data_dir)
        self._names: list[str] = []

    def sources(self) -> dict[str, Source]:
        train, test = self._images("train"), self._images("val")
        self._names = [Path(file).name for file in train + test]
        return {
            "train": CityscapesFiles(str(self.data_dir), "train", train, 0),
            "test": CityscapesFiles(str(self.data_dir), "val", test, len(train)),
        }

    def _images(self, part: str) -> list[str]:
        """``<city>/<name>`` of all images of a part."""
        images, truth = (self.data_dir / kind / part for kind in ("leftImg8bit", "gtFine"))
        for folder, archive in ((images, "leftImg8bit_trainvaltest.zip"), (truth, "gtFine_trainvaltest.zip")):
            if not folder.is_dir():
                raise UserError(
                    f"{folder} is missing: {archive} is to be unpacked in {self.data_dir} ('python scripts/prepare_data.py "
                    f"cityscapes_panoptic' says what is missing), or try dataset.fake=true"
                )
        ending = "_leftImg8bit.png"
        return sorted(f"{file.parent.name}/{file.name.removesuffix(ending)}" for file in images.glob(f"*/*{ending}"))

    def image_name(self, image_id: int) -> str:
        """The publisher's name of an image, such as aachen_000000_000019, by its `image_id` (random images: the number)."""
        return self._names[image_id] if self._names else str(image_id)


class CityscapesFiles:
    """Images and instance maps of a part. ``read(index)`` gives an example or what is wrong with it.

    Args:
        folder: holds ``leftImg8bit`` and ``gtFine``.
        part: "train" or "val".
        names: ``<city>/<name>`` of each image.
        first: `image_id` of the first image.
    """

    def __init__(self, folder: str, part: str, names: list[str], first: int):
        self.folder, self.part, self.names, self.first = folder, part, packed(names), first

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Example | Damaged:
        """`image` uint8 [3, H, W], `panoptic` int32 [H, W], `category` int64 [S], `crowd` bool [S], `image_id`."""
        name = os.fsdecode(self.names[index])
        truth = f"{self.folder}/gtFine/{self.part}/{name}_gtFine_instanceIds.png"
        pair = read_pair(f"{self.folder}/leftImg8bit/{self.part}/{name}_leftImg8bit.png", truth, _instance_ids)
        if isinstance(pair, Damaged):
            return pair
        try:
            return {"image": pair[0], "image_id": self.first + index, **_segments(pair[1])}
        except ValueError as error:
            return Damaged(truth, str(error))


def _instance_ids(path: str) -> np.ndarray:
    return read_numbers(path, ("I;16", "I", "L"))


def _segments(ids: np.ndarray) -> Example:
    """Instance ids [H, W] -> segments in the order of their ids. Raises ValueError naming an id that there cannot be."""
    values = np.bincount(ids.ravel()).nonzero()[0]
    label = np.where(values < 1000, values, values // 1000)
    for value, its in zip(values, label):
        if its >= LABELS:
            raise ValueError(f"id {value} is of a label that does not exist: there are 0 to {LABELS - 1}")
        if value >= 1000 and its < FIRST_THING:
            raise ValueError(f"id {value} is an object of label {its}, which has none: those have from {FIRST_THING} on")
    judged = CLASS_OF[label] != VOID
    number = np.zeros(values[-1] + 1, dtype=np.int32)
    number[values[judged]] = np.arange(1, judged.sum() + 1)
    return {
        "panoptic": torch.from_numpy(number[ids]),
        "category": torch.from_numpy(CLASS_OF[label[judged]]),
        "crowd": torch.from_numpy(((values < 1000) & (label >= FIRST_THING))[judged]),
    }
