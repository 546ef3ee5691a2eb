"""PASCAL VOC 2012 read back from its own layout, SBD's additional images in both of their forms, damaged files."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat

from datamodules.dense.voc import CATEGORIES, VocSegmentation
from datamodules.loaders import Damaged
from papermix.errors import UserError
from tests.datamodules.dense.voc_official import (
    HEIGHT,
    SBD_TRAIN,
    SBD_VAL,
    TRAIN,
    VAL,
    WIDTH,
    mask_of,
    palette,
    write_list,
    write_mask,
    write_mat,
    write_sbd,
    write_voc,
)

FACTS = {"num_classes": 21, "mean": [0.5], "std": [0.25], "batch_size": 2, "val_fraction": 0}


def voc(folder, **changes):
    return VocSegmentation(data_dir=str(folder), **{**FACTS, **changes})


def masks(source, data):
    return {data.image_name(example["image_id"]): example["semantic"].numpy() for example in map(source.read, range(len(source)))}


def test_names_and_colours():
    assert len(CATEGORIES) == 21 and CATEGORIES[15].name == "person" and CATEGORIES[20].name == "tvmonitor"
    assert [category.id for category in CATEGORIES] == list(range(21))
    assert [channel for category in CATEGORIES for channel in category.color] == palette()[: 3 * 21]
    # as published
    assert CATEGORIES[1].color == (128, 0, 0) and CATEGORIES[15].color == (192, 128, 128) and CATEGORIES[20].color == (0, 64, 128)


def test_reads_what_was_written(tmp_path):
    write_voc(tmp_path)
    data = voc(tmp_path)
    parts = data.sources()
    assert {part: len(source) for part, source in parts.items()} == {"train": 3, "test": 2}
    found = masks(parts["train"], data) | masks(parts["test"], data)
    assert list(found) == [*TRAIN, *VAL]
    for number, name in enumerate([*TRAIN, *VAL]):
        np.testing.assert_array_equal(found[name], mask_of(number + 1))
    example = pickle.loads(pickle.dumps(parts["test"])).read(1)
    assert example["semantic"].dtype == torch.uint8 and example["image"].shape == (3, HEIGHT, WIDTH)
    # the fifth image's colour, by channel
    torch.testing.assert_close(example["image"].float().mean((1, 2)), torch.tensor([90.0, 100, 200]), atol=4, rtol=0)


def test_masks_without_a_palette(tmp_path):
    write_voc(tmp_path)
    # some masks of SBD in circulation have no palette
    Image.fromarray(mask_of(9)).save(tmp_path / "VOCdevkit/VOC2012/SegmentationClass" / f"{TRAIN[0]}.png")
    np.testing.assert_array_equal(voc(tmp_path).sources()["train"].read(0)["semantic"].numpy(), mask_of(9))


def test_augmented_from_sbd(tmp_path):
    write_voc(tmp_path)
    root = write_sbd(tmp_path)
    data = voc(tmp_path, augmented=True)
    parts = data.sources()
    found = masks(parts["train"], data)
    # VOC's training list and SBD's lists without VOC's validation images, each once
    assert list(found) == [*TRAIN, "2008_000002", "2008_000007", "2008_000009"]
    # VOC's own mask where there is one, SBD's elsewhere
    np.testing.assert_array_equal(found["2007_000039"], mask_of(2))
    for name in ("2008_000002", "2008_000007", "2008_000009"):
        number = 10 + [*SBD_TRAIN, *SBD_VAL].index(name)
        np.testing.assert_array_equal(found[name], np.where(mask_of(number) == 255, 0, mask_of(number)))
    assert list(masks(parts["test"], data)) == VAL
    assert loadmat(root / "cls" / "2008_000002.mat")["GTcls"]["Segmentation"].shape == (1, 1)


@pytest.mark.parametrize("file, line", [("train_aug", "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png"), ("trainaug", "{0}")])
def test_augmented_from_pngs(tmp_path, file, line):
    root = write_voc(tmp_path)
    # a list in which a validation image has strayed: it stays out of training
    names = [TRAIN[0], "2008_000002", VAL[0]]
    write_list(root / "ImageSets" / "Segmentation" / f"{file}.txt", [line.format(name) for name in names])
    for name in names:
        write_mask(root / "SegmentationClassAug" / f"{name}.png", mask_of(17))
    data = voc(tmp_path, augmented=True)
    parts = data.sources()
    found = masks(parts["train"], data)
    assert list(found) == [TRAIN[0], "2008_000002"]
    np.testing.assert_array_equal(found[TRAIN[0]], mask_of(1))
    np.testing.assert_array_equal(found["2008_000002"], mask_of(17))
    np.testing.assert_array_equal(masks(parts["test"], data)[VAL[0]], mask_of(4))


def spoil_size(root):
    write_mask(root / "SegmentationClass" / f"{TRAIN[1]}.png", mask_of(2)[:-1])


def spoil_label(root):
    write_mask(root / "SegmentationClass" / f"{TRAIN[1]}.png", np.where(mask_of(2) == 2, 21, mask_of(2)).astype(np.uint8))


def spoil_colours(root):
    Image.open(root / "SegmentationClass" / f"{TRAIN[1]}.png").convert("RGB").save(root / "SegmentationClass" / f"{TRAIN[1]}.png")


def spoil_image(root):
    file = root / "JPEGImages" / f"{TRAIN[1]}.jpg"
    file.write_bytes(file.read_bytes()[:-20])


def spoil_mask(root):
    file = root / "SegmentationClass" / f"{TRAIN[1]}.png"
    file.write_bytes(file.read_bytes()[:-40])


def remove_mask(root):
    (root / "SegmentationClass" / f"{TRAIN[1]}.png").unlink()


BAD = [
    (spoil_size, "SegmentationClass/2007_000039.png", "19 x 28 pixels, its image 20 x 28"),
    (spoil_label, "SegmentationClass/2007_000039.png", "label 21 is no class"),
    (spoil_colours, "SegmentationClass/2007_000039.png", "colours instead of a number for every pixel"),
    (spoil_image, "JPEGImages/2007_000039.jpg", "truncated"),
    (spoil_mask, "SegmentationClass/2007_000039.png", ""),
    (remove_mask, "SegmentationClass/2007_000039.png", "No such file or directory"),
]


@pytest.mark.parametrize("spoil, file, reason", BAD)
def test_bad_files_are_named(tmp_path, spoil, file, reason):
    root = write_voc(tmp_path)
    spoil(root)
    source = voc(tmp_path).sources()["train"]
    bad = source.read(1)
    assert isinstance(bad, Damaged) and bad.path.endswith(file) and reason in bad.reason and not bad.reason.endswith(".")
    assert isinstance(source.read(0), dict) and isinstance(source.read(2), dict)


@pytest.mark.parametrize("bytes_kept, reason", [(60, ""), (None, "int16")])
def test_bad_sbd_files_are_named(tmp_path, bytes_kept, reason):
    write_voc(tmp_path)
    file = write_sbd(tmp_path) / "cls" / "2008_000002.mat"
    if bytes_kept:
        file.write_bytes(file.read_bytes()[:bytes_kept])
    else:
        write_mat(file, mask_of(3).astype(np.int16))
    bad = voc(tmp_path, augmented=True).sources()["train"].read(3)
    assert isinstance(bad, Damaged) and bad.path == str(file) and reason in bad.reason


def test_missing_parts_say_where_they_go(tmp_path):
    with pytest.raises(UserError, match=r"train.txt is missing: VOCtrainval_11-May-2012.tar .*prepare_data.py voc_segmentation"):
        voc(tmp_path).setup()
    root = write_voc(tmp_path)
    with pytest.raises(UserError, match=r"needs SBD, but .*cls is missing, .*SegmentationClassAug .*train_aug.txt"):
        voc(tmp_path, augmented=True).setup()
    (write_sbd(tmp_path) / "val.txt").unlink()
    with pytest.raises(UserError, match=r"dataset/val.txt is missing: benchmark.tgz"):
        voc(tmp_path, augmented=True).setup()
    (root / "SegmentationClass").rename(root / "elsewhere")
    with pytest.raises(UserError, match="SegmentationClass is missing"):
        voc(tmp_path).setup()
    with pytest.raises(UserError, match="num_classes=20 must be 21"):
        voc(tmp_path, num_classes=20)


def test_batches(tmp_path):
    root = write_voc(tmp_path)
    data = voc(tmp_path, val_fraction=1)
    data.setup()
    seen = []
    for batch in data.test_dataloader():
        assert batch["semantic"].dtype == torch.int64
        for image_id, mask, (height, width) in zip(batch["image_id"].tolist(), batch["semantic"], batch["truth_size"].tolist()):
            seen.append(data.image_name(image_id))
            np.testing.assert_array_equal(mask[:height, :width].numpy(), mask_of(1 + [*TRAIN, *VAL].index(seen[-1])))
    assert seen == VAL
    assert len(data.rows["train"]) == 2 and len(data.rows["val"]) == 1
    (root / "JPEGImages" / f"{VAL[0]}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"2007_000033.jpg cannot be used \(.*skip_bad=true"):
        list(data.test_dataloader())
    data = voc(tmp_path, skip_bad=True)
    data.setup()
    with pytest.warns(UserWarning, match="1, such as .*2007_000033.jpg"):
        assert [len(batch["image_id"]) for batch in data.test_dataloader()] == [1]


def test_fake(tmp_path):
    data = voc(tmp_path / "nothing", fake=True, limit=2)
    data.setup()
    batch = next(iter(data.test_dataloader()))
    assert batch["image"].shape[1] == 3 and int(batch["semantic"][batch["semantic"] < 255].max()) < 21
    assert data.class_names[8] == "cat" and data.image_name(1) == "1"
