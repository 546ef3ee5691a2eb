"""Associative recall: images come one after the other, then one of them again; which class had the image after it?

Huynh, Maire & Walter 2020, section 4.2, in the settings of the authors' code.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.images import SOURCES, SmallImages
from datamodules.loaders import Batch
from datamodules.sequences.base import Drawn, DrawnData, Source, at
from papermix.errors import UserError, nearest

# sides of the images as published
SIDES = {"digits": 8, "mnist": 28, "fashion_mnist": 28}


class Rows(Drawn):
    """Rows of different images, drawn evenly; the query at the last step is one of all but the last.

    Args:
        image, label: float32 [images, 1, side, side] and int64 [images].
        others: see :class:`datamodules.sequences.base.Drawn`.
    """

    def __init__(self, image: Tensor, label: Tensor, **others: Any):
        super().__init__(**others)
        self.image, self.label = image, label

    def draw(self, random: np.random.Generator, count: int) -> Batch:
        """See :class:`datamodules.sequences.base.Drawn`."""
        images = random.integers(0, len(self.label), (count, self.length))
        while True:
            ordered = np.sort(images, 1)
            twice = (ordered[:, 1:] == ordered[:, :-1]).any(1)
            if not twice.any():
                break
            images[twice] = random.integers(0, len(self.label), (int(twice.sum()), self.length))
        place = random.integers(0, self.length - 1, count)
        return {"images": torch.from_numpy(images), "place": torch.from_numpy(place)}

    def segment(self, held: Batch, steps: Tensor) -> Batch:
        """`frames` [rows, T, 1, side, side]; `query` likewise, zero but at the last step of an episode, the one that is asked; `target`
        int64 [rows, T], there the class of the image that followed the queried one."""
        if self.image.device != steps.device:
            self.image, self.label = self.image.to(steps.device), self.label.to(steps.device)
        asked = steps == self.length - 1
        rows = torch.arange(len(steps), device=steps.device)
        queried, answer = (held["images"][rows, held["place"] + ahead] for ahead in (0, 1))
        query = self.image[queried][:, None] * asked[..., None, None, None]
        return {
            "frames": self.image[at(held["images"], steps)],
            "query": query,
            "target": self.label[answer][:, None] * asked,
            "asked": asked,
        }


class RecallData(DrawnData):
    """Rows of images of a small set; the batch is that of :meth:`Rows.segment`. Training, validation and test draw from the images of
    their split.

    Args:
        images: digits (of scikit-learn), mnist or fashion_mnist.
        num_classes: 10.
        image_size: images are brought to this side by taking the nearest pixels; they are in 0 to 1.
        length: images of a row.
        val_fraction, split_seed: see :class:`datamodules.images.ImageData`.
        data_dir, download: see :class:`datamodules.images.SmallImages`.
        others: see :class:`datamodules.sequences.base.DrawnData`.

    Raises:
        UserError: an unknown set, a row of fewer than 2 images; missing or damaged files (in ``setup``).
    """

    def __init__(
        self,
        images: str,
        *,
        num_classes: int = 10,
        image_size: int = 12,
        length: int = 10,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        data_dir: str = "data",
        download: bool = True,
        **others: Any,
    ):
        super().__init__(**others)
        if images not in SIDES:
            raise UserError(f"dataset.images={images} is not known{nearest(images, SIDES)}: use one of {', '.join(SIDES)}")
        if length < 2:
            raise UserError(f"dataset.length={length} must be at least 2: an image, and one that follows it")
        shape = (1, image_size, image_size)
        self.check_shapes(in_shape=shape, query_shape=shape, out_shape=(num_classes,))
        if not val_fraction:
            self.counts["val"] = 0
        self.image_size, self.length = image_size, length
        self.class_names = SOURCES[images].class_names
        self.images = SmallImages(
            images, num_classes=num_classes, in_chans=1, image_size=SIDES[images], mean=[0.0], std=[1.0], batch_size=1,
            val_fraction=val_fraction, split_seed=split_seed, data_dir=data_dir, download=download, fake=self.fake,
            limit=10 * length if self.fake else None,
        )  # fmt: skip

    def prepare_data(self) -> None:
        """Download what is missing; Lightning calls this in one process per machine."""
        self.images.prepare_data()

    def load(self) -> None:
        self.images.load()
        super().load()

    def source(self, split: str, key: tuple[int | str, ...], count: int, endless: bool) -> Source:
        part = self.images.tensors[split]
        if len(part["label"]) < self.length:
            raise UserError(f"dataset.length={self.length} needs as many images, but the {split} split has {len(part['label'])}")
        image = F.interpolate(part["image"].float() / 255, (self.image_size, self.image_size), mode="nearest")
        return Rows(image, part["label"], key=key, count=count, length=self.length, endless=endless)
