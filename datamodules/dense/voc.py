"""PASCAL VOC 2012 segmentation, in the publisher's layout, with or without the additional training images of SBD."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.dense.augment import Example
from datamodules.dense.base import DenseData, Source
from datamodules.loaders import Damaged
from papermix.errors import UserError
from papermix.segmentation import formats
from papermix.segmentation.segments import VOID, Category

NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


_COLORS = [(red, green, blue) for red, green, blue in formats.voc_colors().tolist()]
CATEGORIES = tuple(Category(number, name, number > 0, _COLORS[number]) for number, name in enumerate(NAMES))


class VocSegmentation(DenseData):
    """PASCAL VOC 2012 (Everingham et al. 2010): 20 classes and the background, 1,464 training and 1,449 validation images.

    The official validation images are the test split, and the val split is cut from the training images. With ``augmented`` the
    training part is that of Hariharan et al. 2011 (SBD) and VOC together without the images of VOC's validation list, 10,582
    images; the masks of VOC's own training list are VOC's.

    Args:
        data_dir: the folder that holds ``VOCdevkit/VOC2012``, and for ``augmented`` either ``benchmark_RELEASE/dataset`` as SBD
            is published (cls/*.mat, train.txt, val.txt), or in ``VOC2012`` what others have made of it: the folder
            ``SegmentationClassAug`` of PNG files and the list ``ImageSets/Segmentation/train_aug.txt`` (or trainaug.txt).
        augmented: add SBD's images to the training part.
        others: see :class:`datamodules.dense.base.DenseData`.

    Raises:
        UserError: another number of classes (here), missing folders or lists (in ``setup``).
    """

    kind = "semantic"
    typical_size = (375, 500)
    categories = CATEGORIES

    def __init__(self, *, data_dir: str, augmented: bool = False, **others: Any):
        super().__init__(**others)
        if self.num_classes != len(CATEGORIES):
            raise UserError(
                f"dataset.num_classes={self.num_classes} must be {len(CATEGORIES)}: VOC's 20 classes and the background"
            )
        self.data_dir, self.augmented = Path(data_dir), augmented
        self._names: list[str] = []

    def sources(self) -> dict[str, Source]:
        root = self.data_dir / "VOCdevkit" / "VOC2012"
        lists = root / "ImageSets" / "Segmentation"
        train, test = _listed(lists / "train.txt", self.data_dir), _listed(lists / "val.txt", self.data_dir)
        truth = dict.fromkeys([*train, *test], ("VOCdevkit/VOC2012/SegmentationClass", ".png"))
        if self.augmented:
            train = self._augment(train, truth)
        for folder in (root / "JPEGImages", *{self.data_dir / folder for folder, _ in truth.values()}):
            if not folder.is_dir():
                raise _missing(folder, self.data_dir)
        held_out = set(test)
        train = [name for name in train if name not in held_out]
        self._names = [*train, *test]

        def part(names: list[str], first: int) -> VocFiles:
            images = [f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg" for name in names]
            masks = [f"{truth[name][0]}/{name}{truth[name][1]}" for name in names]
            return VocFiles(str(self.data_dir), images, masks, first)

        return {"train": part(train, 0), "test": part(test, len(train))}

    def _augment(self, train: list[str], truth: dict[str, tuple[str, str]]) -> list[str]:
        """The names of the larger training part; ``truth`` learns where their masks lie."""
        root = self.data_dir / "VOCdevkit" / "VOC2012"
        sbd = self.data_dir / "benchmark_RELEASE" / "dataset"
        lists = [root / "ImageSets" / "Segmentation" / name for name in ("train_aug.txt", "trainaug.txt")]
        found = next((file for file in lists if file.is_file()), None)
        if found is not None and (root / "SegmentationClassAug").is_dir():
            names, place = _listed(found, self.data_dir), ("VOCdevkit/VOC2012/SegmentationClassAug", ".png")
        elif (sbd / "cls").is_dir():
            more = [name for part in ("train", "val") for name in _listed(sbd / f"{part}.txt", self.data_dir)]
            names, place = [*train, *more], ("benchmark_RELEASE/dataset/cls", ".mat")
        else:
            raise UserError(
                f"dataset.augmented=true needs SBD, but {sbd / 'cls'} is missing, and so is {root / 'SegmentationClassAug'} "
                f"with {lists[0]}: 'python scripts/prepare_data.py voc_segmentation' says where the publisher has it"
            )
        for name in names:
            truth.setdefault(name, place)
        return list(dict.fromkeys(names))

    def image_name(self, image_id: int) -> str:
        """The publisher's name of an image, such as 2007_000032, by the `image_id` of a batch (random images: the number)."""
        return self._names[image_id] if self._names else str(image_id)


class VocFiles:
    """Images and the files with their masks. ``read(index)`` gives an example or what is wrong with it.

    Args:
        folder: what the files are relative to.
        images, masks: a file for each image; masks are PNG files of class indices or SBD's .mat files.
        first: `image_id` of the first image.
    """

    def __init__(self, folder: str, images: list[str], masks: list[str], first: int):
        self.folder, self.first = folder, first
        self.images, self.masks = packed(images), packed(masks)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Example | Damaged:
        """`image` uint8 [3, H, W], `semantic` uint8 [H, W], `image_id`."""
        image, mask = (os.path.join(self.folder, os.fsdecode(files[index])) for files in (self.images, self.masks))
        pair = read_pair(image, mask, _sbd_mask if mask.endswith(".mat") else _png_mask)
        if isinstance(pair, Damaged):
            return pair
        wrong = pair[1][(pair[1] >= len(CATEGORIES)) & (pair[1] != VOID)]
        if wrong.size:
            return Damaged(mask, f"label {wrong[0]} is no class: there are 0 to {len(CATEGORIES) - 1}, and {VOID} for void")
        return {"image": pair[0], "semantic": torch.from_numpy(pair[1]), "image_id": self.first + index}


def packed(files: list[str]) -> np.ndarray:
    """Names as an array of bytes: a list of strings would be copied into every worker, page by page."""
    return np.array([os.fsencode(file) for file in files], dtype=np.bytes_)


def read_pair(image: str, truth: str, read: Callable[[str], np.ndarray]) -> tuple[Tensor, np.ndarray] | Damaged:
    """An image file in colour, uint8 [3, H, W], and its truth [H, W], which ``read`` reads; or which of them is no good."""
    path = image
    try:
        pixels = formats.read_image(image)
        path = truth
        numbers = read(truth)
        if numbers.shape != pixels.shape[:2]:
            (height, width), (high, wide) = numbers.shape, pixels.shape[:2]
            raise ValueError(f"it has {height} x {width} pixels, its image {high} x {wide}")
    except ValueError as error:
        return Damaged(path, str(error))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), numbers


def read_numbers(path: str, modes: tuple[str, ...]) -> np.ndarray:
    """An image file of numbers as it is stored, [H, W]: of a palette the indices. ``modes``: Pillow's names of what it may be.

    Raises:
        ValueError: what is wrong with it.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            if file.mode not in modes:
                kind = "colours" if len(file.getbands()) > 1 else f"pixels of kind '{file.mode}'"
                raise ValueError(f"it holds {kind} instead of a number for every pixel")
            return np.array(file)
    # Pillow raises nearly anything on a damaged file
    except Exception as error:
        raise ValueError(formats.reason_of(error)) from None


def _png_mask(path: str) -> np.ndarray:
    return read_numbers(path, ("P", "L"))


def _sbd_mask(path: str) -> np.ndarray:
    """Classes of the pixels, uint8 [H, W], in one of SBD's files. Raises ValueError saying what is wrong with it."""
    from scipy.io import loadmat

    try:
        mask = np.array(loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0])
        if mask.dtype != np.uint8 or mask.ndim != 2:
            raise ValueError(f"GTcls.Segmentation is {mask.dtype} of shape {list(mask.shape)}")
    # scipy fails in many ways on a damaged file
    except Exception as error:
        raise ValueError(formats.reason_of(error)) from None
    # stored by columns
    return np.ascontiguousarray(mask)


def _listed(file: Path, data_dir: Path) -> list[str]:
    """Names in a list: a name a line, or in some lists the paths of image and mask."""
    try:
        lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        raise _missing(file, data_dir) from None
    return [Path(line.split()[0]).stem for line in lines if line.strip()]


def _missing(path: Path, data_dir: Path) -> UserError:
    archive = "benchmark.tgz (SBD)" if "benchmark_RELEASE" in path.parts else "VOCtrainval_11-May-2012.tar"
    return UserError(
        f"{path} is missing: {archive} is to be unpacked in {data_dir} ('python scripts/prepare_data.py voc_segmentation' says "
        f"what is missing), or try dataset.fake=true"
    )
