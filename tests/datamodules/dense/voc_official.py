"""Writers of tiny PASCAL VOC 2012 and SBD trees in their publishers' layouts."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

TRAIN, VAL = ["2007_000032", "2007_000039", "2007_000063"], ["2007_000033", "2007_000042"]
# SBD has lists of its own; some of its images are VOC's, for training as well as for validation
SBD_TRAIN, SBD_VAL = ["2008_000002", "2007_000033", "2008_000007"], ["2007_000039", "2008_000009"]
HEIGHT, WIDTH = 20, 28


def mask_of(number: int) -> np.ndarray:
    """uint8 [H, W]: classes ``number`` and 20 on the background, with a strip of void."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[3:9, 4:20] = number
    mask[12:17, 10:27] = 20
    mask[9] = 255
    return mask


def palette() -> list[int]:
    """VOC's colours as its masks carry them, from the rule of its development kit."""
    colors = np.zeros((256, 3), dtype=np.uint8)
    for index in range(256):
        rest = index
        for place in range(8):
            for channel in range(3):
                colors[index, channel] |= (rest >> channel & 1) << (7 - place)
            rest >>= 3
    return colors.ravel().tolist()


def write_mask(path: Path, mask: np.ndarray) -> None:
    """A PNG with a palette, as VOC's are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask, "P")
    image.putpalette(palette())
    image.save(path)


def write_list(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def write_voc(folder: Path) -> Path:
    """VOCdevkit/VOC2012 with the images of all lists, flat in colour; a mask holds its place in ``TRAIN + VAL`` + 1."""
    root = folder / "VOCdevkit" / "VOC2012"
    (root / "JPEGImages").mkdir(parents=True)
    for number, name in enumerate(dict.fromkeys([*TRAIN, *VAL, *SBD_TRAIN, *SBD_VAL])):
        color = (20 * number + 10, 100, 200)
        Image.new("RGB", (WIDTH, HEIGHT), color).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
    for number, name in enumerate([*TRAIN, *VAL]):
        write_mask(root / "SegmentationClass" / f"{name}.png", mask_of(number + 1))
        write_mask(root / "SegmentationObject" / f"{name}.png", (mask_of(number + 1) > 0).astype(np.uint8))
    for name, names in (("train", TRAIN), ("val", VAL), ("trainval", [*TRAIN, *VAL])):
        write_list(root / "ImageSets" / "Segmentation" / f"{name}.txt", names)
    return root


def write_sbd(folder: Path) -> Path:
    """benchmark_RELEASE/dataset; masks hold class 10 + their place in the lists, no void. Returns it."""
    root = folder / "benchmark_RELEASE" / "dataset"
    (root / "cls").mkdir(parents=True)
    for number, name in enumerate([*SBD_TRAIN, *SBD_VAL]):
        mask = mask_of(10 + number)
        mask[mask == 255] = 0
        write_mat(root / "cls" / f"{name}.mat", mask)
    write_list(root / "train.txt", SBD_TRAIN)
    write_list(root / "val.txt", SBD_VAL)
    return root


def write_mat(path: Path, mask: np.ndarray) -> None:
    """SBD's struct GTcls, as MATLAB 5 writes it."""
    boundaries = np.empty((20, 1), dtype=object)
    boundaries[:, 0] = [np.zeros((2, 2), dtype=np.uint8) for _ in range(20)]
    classes = np.unique(mask[mask > 0])[:, None]
    savemat(path, {"GTcls": {"Segmentation": mask, "Boundaries": boundaries, "CategoriesPresent": classes}}, do_compression=True)
