"""Folders of image files, one folder per class, in ImageNet's layout; read, cropped and resized by worker processes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.images import ImageData
from datamodules.loaders import Batch, Damaged, WorkerLoader
from papermix.errors import UserError, nearest

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


class ImageFolders(ImageData):
    """Images in ``train/<class>/*`` and ``val/<class>/*``, or in a flat ``val`` with a list of labels.

    The official validation images are the test split, and the val split is cut from the training images: nothing is tuned on the
    images that a result is reported for. A flat ``val`` needs its labels: lines ``file,class`` or ``file class`` (what follows is
    ignored, as is a heading) in ``val_labels``, in ``LOC_val_solution.csv`` or in ``val_labels.txt``; or the unpacked development
    kit ``ILSVRC2012_devkit_t12``.

    Training images get a random resized crop in the workers; the rest of ``augment`` happens per batch on the device. Test images
    are resized to ``resize`` pixels on the shorter side and cropped in the middle.

    Args:
        data_dir: the folder that holds ``train`` and ``val``.
        classes: names of the class folders to use, or a file with one at the start of each line; null: all. They are numbered in
            sorted order.
        val_labels: file with the labels of a flat ``val``; null: looked for as said above.
        image_size: side of the crops.
        resize: shorter side before the middle crop.
        crop_scale: smallest and largest part of the area that a random crop takes.
        workers: reading processes.
        skip_bad: leave out damaged files, with a warning, instead of stopping.
        others: see :class:`datamodules.images.ImageData`.
    """

    def __init__(
        self,
        *,
        data_dir: str,
        classes: str | Sequence[str] | None = None,
        val_labels: str | None = None,
        resize: int = 256,
        crop_scale: Sequence[float] = (0.08, 1.0),
        workers: int = 4,
        skip_bad: bool = False,
        val_fraction: float = 10_000,
        **others: Any,
    ):
        super().__init__(val_fraction=val_fraction, **others)
        if resize < self.image_size:
            raise UserError(f"dataset.resize={resize} is smaller than dataset.image_size={self.image_size}: make it at least as large")
        if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise UserError(f"dataset.crop_scale={list(crop_scale)} must be two growing numbers above 0 and at most 1")
        if workers < 0:
            raise UserError(f"dataset.workers={workers} must be at least 0")
        self.data_dir, self.classes, self.val_labels = Path(data_dir), classes, val_labels
        self.resize, self.crop_scale = resize, (crop_scale[0], crop_scale[1])
        self.workers, self.skip_bad = workers, skip_bad

    def read_labels(self) -> tuple[tuple[Tensor, str], tuple[Tensor, str]]:
        train, val = self.data_dir / "train", self.data_dir / "val"
        for folder in (train, val):
            if not folder.is_dir():
                raise UserError(
                    f"{folder} is missing: put class folders of images there, set dataset.data_dir, or try dataset.fake=true"
                )
        found = sorted(entry.name for entry in os.scandir(train) if entry.is_dir())
        names = self._selected(found, train)
        if len(names) != self.num_classes:
            cure = f"set dataset.num_classes={len(names)}" + ("" if self.classes else " or list dataset.classes")
            raise UserError(f"{train} offers {len(names)} classes but dataset.num_classes={self.num_classes}: {cure}")
        number = {name: label for label, name in enumerate(names)}
        self.class_names = _spoken(self.data_dir, names)
        train_files = [(f"{name}/{file}", number[name]) for name in names for file in _images(train / name)]
        if any(entry.is_dir() for entry in os.scandir(val)):
            test_files = [(f"{name}/{file}", number[name]) for name in names for file in _images(val / name)]
        else:
            truth = self._truth(val)
            unknown = [file for file in _images(val) if Path(file).stem not in truth]
            if unknown:
                raise UserError(f"{val / unknown[0]} has no label: it is not in the list of labels of {val}")
            labelled = [(file, truth[Path(file).stem]) for file in _images(val)]
            test_files = [(file, number[name]) for file, name in labelled if name in number]
        self._files = {"train": _packed(train_files), "val": _packed(train_files), "test": _packed(test_files)}
        self._folder = {"train": train, "val": train, "test": val}
        labels = [torch.tensor([label for _, label in files], dtype=torch.int64) for files in (train_files, test_files)]
        return (labels[0], str(train)), (labels[1], str(val))

    def _selected(self, found: list[str], train: Path) -> list[str]:
        if self.classes is None:
            return found
        wanted = self.classes
        if isinstance(wanted, str):
            try:
                lines = Path(wanted).read_text(encoding="utf-8").splitlines()
            except OSError as error:
                raise UserError(
                    f"dataset.classes={wanted} cannot be read ({error.strerror}): name a file or list classes"
                ) from None
            wanted = [line.split()[0] for line in lines if line.strip()]
        there = set(found)
        for name in wanted:
            if name not in there:
                raise UserError(f"{train} has no class '{name}'{nearest(name, found)}, which dataset.classes names")
        return sorted(set(wanted))

    def _truth(self, val: Path) -> dict[str, str]:
        """File name without its ending -> class, for a flat ``val``."""
        places = (
            [Path(self.val_labels)] if self.val_labels else [val.parent / "LOC_val_solution.csv", val.parent / "val_labels.txt"]
        )
        file = next((place for place in places if place.is_file()), None)
        if file is not None:
            rows = [line.replace(",", " ").split() for line in file.read_text(encoding="utf-8").splitlines()]
            return {Path(row[0]).stem: row[1] for row in rows if len(row) > 1}
        kit = val.parent / "ILSVRC2012_devkit_t12" / "data"
        if not self.val_labels and (kit / GROUND_TRUTH).is_file() and (kit / "meta.mat").is_file():
            return _devkit(kit)
        wanted = self.val_labels or f"{val.parent}/val_labels.txt"
        raise UserError(f"{val} has no class folders and {wanted} is missing: write a line 'file class' for each image there")

    def image_loader(self, split: str, tensors: Batch, train: bool, **settings: Any) -> WorkerLoader:
        from torchvision.transforms import v2

        if train:
            geometry: list[Any] = [v2.RandomResizedCrop(self.image_size, self.crop_scale)]
        else:
            geometry = [v2.Resize(self.resize), v2.CenterCrop(self.image_size)]
        read = ReadImage(
            str(self._folder[split]),
            self._files[split][self.rows[split].numpy()],
            v2.Compose([*geometry, v2.PILToTensor()]),
            "RGB" if self.in_chans == 3 else "L",
        )
        return WorkerLoader(read, tensors, workers=self.workers, skip_bad=self.skip_bad, damaged=self.damaged, **settings)


class ReadImage:
    """``read(index) -> uint8 [C, H, W]`` or what is wrong with the file.

    Args:
        folder: what the file names are relative to.
        files: names as an array of bytes: a list of a million strings would be copied into every worker, page by page.
        transform: PIL image -> tensor.
        mode: "RGB" or "L".
    """

    def __init__(self, folder: str, files: np.ndarray, transform: Any, mode: str):
        self.folder, self.files, self.transform, self.mode = folder, files, transform, mode

    def __call__(self, index: int) -> Tensor | Damaged:
        from PIL import Image

        path = os.path.join(self.folder, os.fsdecode(self.files[index]))
        try:
            with Image.open(path) as image:
                pixels = image.convert(self.mode)
        # Pillow raises nearly anything on a damaged file
        except Exception as error:
            return Damaged(path, str(error).replace(f" '{path}'", "") or type(error).__name__)
        return self.transform(pixels)


def _images(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(SUFFIXES))


def _packed(files: list[tuple[str, int]]) -> np.ndarray:
    return np.array([os.fsencode(name) for name, _ in files], dtype=np.bytes_)


def _spoken(folder: Path, names: list[str]) -> tuple[str, ...]:
    """The first English name of each class where ``LOC_synset_mapping.txt`` gives it, otherwise the folder's name."""
    mapping = folder / "LOC_synset_mapping.txt"
    lines = mapping.read_text(encoding="utf-8").splitlines() if mapping.is_file() else []
    words = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return tuple(words.get(name, name).split(",")[0] for name in names)


def _devkit(kit: Path) -> dict[str, str]:
    """Labels of the official validation images from ImageNet's development kit: numbers that meta.mat translates to classes."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(kit / "meta.mat", squeeze_me=True)["synsets"]
        wnid = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        numbers = (kit / GROUND_TRUTH).read_text(encoding="utf-8").split()
        return {f"ILSVRC2012_val_{place:08d}": wnid[int(number)] for place, number in enumerate(numbers, 1)}
    # scipy fails in many ways on a damaged file
    except Exception as error:
        raise UserError(f"{kit} is damaged ({error}): unpack the development kit again") from None
