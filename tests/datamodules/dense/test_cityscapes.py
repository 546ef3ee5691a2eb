"""Cityscapes read back from its own layout: objects, groups, stuff, void; damaged files."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.dense.cityscapes import CATEGORIES, CityscapesPanoptic
from datamodules.loaders import Damaged
from papermix.errors import UserError
from papermix.segmentation.segments import Segments
from tests.datamodules.dense.cityscapes_official import HEIGHT, TRAIN, VAL, WIDTH, ids_of, write_city, write_cityscapes

FACTS = {"num_classes": 19, "mean": [0.5], "std": [0.25], "batch_size": 2, "val_fraction": 0}
# the publisher's table of the judged labels: id -> train id
TRAIN_IDS = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16,
    32: 17, 33: 18,
}  # fmt: skip


def cityscapes(folder, **changes):
    return CityscapesPanoptic(data_dir=str(folder), **{**FACTS, **changes})


def reference(ids):
    """Segments by the publisher's rule (createPanopticImgs), one by one: {id: (train id, crowd, mask)}."""
    found = {}
    for segment in np.unique(ids):
        label, crowd = (segment, True) if segment < 1000 else (segment // 1000, False)
        if label in TRAIN_IDS:
            found[segment] = (TRAIN_IDS[label], crowd and TRAIN_IDS[label] >= 11, ids == segment)
    return found


def test_categories():
    assert {category.id: number for number, category in enumerate(CATEGORIES)} == TRAIN_IDS
    assert [category.name for category in CATEGORIES if category.thing] == [
        "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"
    ]  # fmt: skip
    assert CATEGORIES[0].color == (128, 64, 128) and CATEGORIES[13].color == (0, 0, 142)
    assert len({category.color for category in CATEGORIES}) == 19


def test_reads_what_was_written(tmp_path):
    data = cityscapes(write_cityscapes(tmp_path))
    parts = data.sources()
    for part, names in (("train", TRAIN), ("test", VAL)):
        source = pickle.loads(pickle.dumps(parts[part]))
        assert len(source) == len(names)
        for index, name in enumerate(names):
            example = source.read(index)
            assert data.image_name(example["image_id"]) == name
            assert example["image"].dtype == torch.uint8 and example["image"].shape == (3, HEIGHT, WIDTH)
            assert example["image"][:, 0, 0].tolist() == [40 * index + 10, 100, 200]
            assert example["panoptic"].dtype == torch.int32 and example["category"].dtype == torch.int64
            wanted = reference(ids_of(index))
            # road, sky, cars' group, person, rider, two cars; not the ego vehicle, the caravan, the polegroup
            assert list(wanted) == [7, 23, 26, 24000, 25000, 26000, 26001]
            assert example["category"].tolist() == [0, 10, 13, 11, 12, 13, 13] == [category for category, _, _ in wanted.values()]
            assert example["crowd"].tolist() == [False, False, True, False, False, False, False]
            for number, (_, _, mask) in enumerate(wanted.values(), 1):
                np.testing.assert_array_equal((example["panoptic"] == number).numpy(), mask)
            assert int((example["panoptic"] == 0).sum()) == np.isin(ids_of(index), [1, 18, 29000]).sum()


def test_map_of_8_bits(tmp_path):
    write_cityscapes(tmp_path)
    ids = np.full((HEIGHT, WIDTH), 7, dtype=np.uint8)
    ids[4:8] = 33
    write_city(tmp_path, "val", VAL[1], ids.astype(int), 0)
    Image.fromarray(ids).save(tmp_path / "gtFine/val/munster" / f"{VAL[1]}_gtFine_instanceIds.png")
    example = cityscapes(tmp_path).sources()["test"].read(1)
    assert example["category"].tolist() == [0, 18] and example["crowd"].tolist() == [False, True]


def test_image_of_void_only(tmp_path):
    write_cityscapes(tmp_path)
    write_city(tmp_path, "val", VAL[0], np.full((HEIGHT, WIDTH), 3), 0)
    example = cityscapes(tmp_path).sources()["test"].read(0)
    assert not example["panoptic"].any() and example["category"].shape == example["crowd"].shape == (0,)


def changed(ids, value):
    ids = ids.copy()
    ids[0, 0] = value
    return ids


BAD = [
    (lambda ids: changed(ids, 34001), "id 34001 is of a label that does not exist"),
    (lambda ids: changed(ids, 34), "id 34 is of a label that does not exist"),
    (lambda ids: changed(ids, 7003), "id 7003 is an object of label 7, which has none"),
    (lambda ids: ids[:, :-2], "24 x 46 pixels, its image 24 x 48"),
]


@pytest.mark.parametrize("spoil, reason", BAD)
def test_bad_maps_are_named(tmp_path, spoil, reason):
    write_cityscapes(tmp_path)
    file = tmp_path / "gtFine/train/aachen" / f"{TRAIN[1]}_gtFine_instanceIds.png"
    Image.fromarray(spoil(ids_of(1)).astype(np.uint16)).save(file)
    source = cityscapes(tmp_path).sources()["train"]
    bad = source.read(1)
    assert isinstance(bad, Damaged) and bad.path == str(file) and reason in bad.reason
    assert isinstance(source.read(0), dict) and isinstance(source.read(2), dict)


def test_bad_files_are_named(tmp_path):
    write_cityscapes(tmp_path)
    image = tmp_path / "leftImg8bit/train/aachen" / f"{TRAIN[0]}_leftImg8bit.png"
    image.write_bytes(image.read_bytes()[:-40])
    truth = tmp_path / "gtFine/train/aachen"
    (truth / f"{TRAIN[1]}_gtFine_instanceIds.png").unlink()
    third = tmp_path / "gtFine/train/bochum" / f"{TRAIN[2]}_gtFine_instanceIds.png"
    Image.new("RGBA", (WIDTH, HEIGHT)).save(third)
    bad = [cityscapes(tmp_path).sources()["train"].read(index) for index in range(3)]
    assert [one.path for one in bad] == [str(image), str(truth / f"{TRAIN[1]}_gtFine_instanceIds.png"), str(third)]
    assert bad[1].reason == "No such file or directory" and "colours instead of a number" in bad[2].reason


def test_missing_parts_say_where_they_go(tmp_path):
    with pytest.raises(UserError, match=r"leftImg8bit/train is missing: leftImg8bit_trainvaltest.zip .*prepare_data.py"):
        cityscapes(tmp_path).setup()
    write_cityscapes(tmp_path)
    (tmp_path / "gtFine" / "val").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"gtFine/val is missing: gtFine_trainvaltest.zip"):
        cityscapes(tmp_path).setup()
    with pytest.raises(UserError, match="num_classes=20 must be 19"):
        cityscapes(tmp_path, num_classes=20)


def test_batches(tmp_path):
    data = cityscapes(write_cityscapes(tmp_path), resize=12)
    data.setup()
    (batch,) = data.test_dataloader()
    assert batch["size"].tolist() == [[12, 24]] * 2 and batch["truth_size"].tolist() == [[HEIGHT, WIDTH]] * 2
    assert [data.image_name(number) for number in batch["image_id"].tolist()] == VAL
    for place in range(2):
        wanted = reference(ids_of(place))
        found = Segments.of(batch["panoptic"][place], batch["category"][place], batch["crowd"][place])
        assert found.areas()[: len(wanted)].tolist() == [int(mask.sum()) for _, _, mask in wanted.values()]
        assert found.crowd.tolist()[:3] == [False, False, True]


def test_fake(tmp_path):
    data = cityscapes(tmp_path / "nothing", fake=True, limit=1, batch_size=1, resize=32)
    data.setup()
    batch = next(iter(data.test_dataloader()))
    assert batch["truth_size"].tolist() == [[1024, 2048]] and batch["size"].tolist() == [[32, 64]]
    assert int(batch["category"].max()) < 19 and data.class_names[13] == "car" and data.image_name(0) == "0"
