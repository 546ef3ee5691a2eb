"""The publishers' formats: worked cases of COCO's card, what is written is read back equal, what is wrong is said."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from papermix.errors import UserError
from papermix.segmentation import formats
from papermix.segmentation.formats import Instances, InstanceWriter, PanopticWriter
from papermix.segmentation.segments import VOID, Category, Segments

CATEGORIES = (
    Category(7, "disc", True, (250, 0, 0)),
    Category(13, "square", True, (0, 250, 0)),
    Category(193, "grass", False, (0, 120, 0)),
)


def masks(seed: int, count: int = 3, height: int = 9, width: int = 14) -> torch.Tensor:
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(seed)) < 0.4


def scene(seed: int = 0) -> Segments:
    """Void, two things of one class, a crowd, stuff, and a segment without pixels (the third)."""
    map = torch.randint(0, 6, (11, 17), generator=torch.Generator().manual_seed(seed))
    map[map == 3] = 0
    return Segments.of(map, torch.tensor([1, 1, 0, 0, 2]), torch.tensor([False, False, False, True, False]))


def test_ids_of_colours() -> None:
    assert formats.id_of_rgb(np.array([[[10, 2, 1]]], np.uint8)).tolist() == [[66058]]
    ids = np.concatenate([[0, 255, 256, 65535, 65536, 2**24 - 1], np.random.default_rng(0).integers(0, 2**24, 500)])
    assert (formats.id_of_rgb(formats.rgb_of_id(ids)) == ids).all()
    for wrong in (-1, 2**24):
        with pytest.raises(ValueError, match="0 to 16777215"):
            formats.rgb_of_id(np.array([wrong]))


def test_run_lengths_go_down_the_columns() -> None:
    mask = torch.tensor([[0, 1, 1], [0, 0, 1]]).bool()
    (rle,) = formats.rles_of(mask[None])
    assert formats.counts_of(rle) == [2, 1, 1, 2] and rle["size"] == [2, 3] and isinstance(rle["counts"], str)
    (starting,) = formats.rles_of(~mask[None])
    assert formats.counts_of(starting) == [0, 2, 1, 1, 2]
    for counts in ([2, 1, 1, 2], rle["counts"], rle["counts"].encode()):
        read = formats.rle_of({"segmentation": {"size": [2, 3], "counts": counts}}, 2, 3)
        assert read == rle and torch.equal(formats.masks_of([read], 2, 3)[0], mask)
    random = masks(0, 5)
    again = formats.rles_of(random)
    assert all(sum(formats.counts_of(r)) == random[0].numel() for r in again)
    assert torch.equal(formats.masks_of(again, *random.shape[1:]), random)
    assert formats.areas_of(again) == random.sum((1, 2)).tolist()
    assert formats.rles_of(random[:0]) == [] and formats.masks_of([], 4, 5).shape == (0, 4, 5) and formats.areas_of([]) == []


def mask_of(annotation: dict, height: int = 8, width: int = 10) -> torch.Tensor:
    return formats.masks_of([formats.rle_of(annotation, height, width)], height, width)[0]


def test_polygons_and_boxes() -> None:
    wanted = torch.zeros(8, 10, dtype=torch.bool)
    wanted[1:4, 2:7] = True
    polygon = [2, 1, 7, 1, 7, 4, 2, 4]
    assert torch.equal(mask_of({"segmentation": [polygon]}), wanted)
    box = [2, 1, 5, 3]
    for annotation in ({"bbox": box}, {"bbox": box, "segmentation": []}, {"bbox": box, "segmentation": None}):
        assert torch.equal(mask_of(annotation), wanted)
    wanted[5:8, 0:3] = True  # a second piece that leaves the image
    assert torch.equal(mask_of({"segmentation": [polygon, [-6, 5, 3, 5, 3, 20, -6, 20]], "bbox": box}), wanted)
    assert torch.equal(mask_of({"bbox": [-3, 5, 100, 90]}), torch.arange(8)[:, None].expand(8, 10) >= 5)
    # a piece of two points is no box
    with pytest.raises(ValueError, match="4 numbers"):
        mask_of({"segmentation": [[1, 1, 3, 3]]})


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        ({}, "neither a segmentation nor a box"),
        ({"bbox": [1, 2, 3]}, "box has 3 numbers"),
        ({"bbox": [1, 2, "wide", 3]}, "box holds something that is no number"),
        ({"bbox": [float("nan"), 2, 3, 3]}, "box has the number nan, far outside"),
        ({"bbox": [0, 0, 101, 3]}, "box has the number 101, far outside"),
        ({"segmentation": [[1, 1, 5, 5, 9]]}, "polygon has 5 numbers"),
        ({"segmentation": [[1, 1, 1e9, 5, 5, 9]]}, r"polygon has the number 1e\+09, far outside"),
        ({"segmentation": [[[1, 1], [5, 5], [5, 9]]]}, "polygon is not a list of numbers"),
        ({"segmentation": {"size": [10, 8], "counts": [80]}}, "for 10 x 8 pixels, the image has 8 x 10"),
        ({"segmentation": {"size": [8, 10], "counts": [70, 9]}}, "do not cover the 80 pixels"),
        ({"segmentation": {"size": [8, 10], "counts": [70, 11]}}, "do not cover the 80 pixels"),
        ({"segmentation": {"size": [8, 10], "counts": [90, -10]}}, "whole numbers from 0 on"),
        ({"segmentation": {"size": [8, 10], "counts": "~~~"}}, "do not cover"),
        ({"segmentation": {"size": [8, 10], "counts": ""}}, "do not cover"),
        ({"segmentation": {"size": [8, 10]}}, "neither a string nor whole numbers"),
        ({"segmentation": {"counts": [80]}}, "for None pixels"),
    ],
)
def test_segmentations_that_cannot_be_used(annotation: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        formats.rle_of(annotation, 8, 10)
    assert "\n" not in str(caught.value)


def test_panoptic_is_read_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "panoptic_val.json"
    scenes = {
        5: scene(0),
        120_000: scene(1),
        7: Segments.of(torch.zeros(4, 6, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)),
    }
    with PanopticWriter(path, CATEGORIES) as writer:
        for image_id, segments in scenes.items():
            writer.add(image_id, segments, "seven" if image_id == 7 else None)
            assert not path.exists()
    found = dict(formats.read_panoptic(path, CATEGORIES))
    assert list(found) == list(scenes)
    for image_id, segments in scenes.items():
        wanted, read = segments.compact(), found[image_id]
        assert torch.equal(read.map, wanted.map) and read.map.dtype == torch.int64
        assert torch.equal(read.category, wanted.category) and torch.equal(read.crowd, wanted.crowd)
    written = json.loads(path.read_text())
    assert [c["id"] for c in written["categories"]] == [7, 13, 193] and [c["isthing"] for c in written["categories"]] == [1, 1, 0]
    assert written["images"][1] == {"id": 120_000, "file_name": "000000120000.jpg", "height": 11, "width": 17}
    assert [a["file_name"] for a in written["annotations"]] == ["000000000005.png", "000000120000.png", "seven.png"]
    infos = written["annotations"][0]["segments_info"]
    assert [i["category_id"] for i in infos] == [13, 13, 7, 193] and [i["iscrowd"] for i in infos] == [0, 0, 1, 0]
    ids = formats.read_ids(path.with_suffix("") / "000000000005.png")
    for info in infos:
        y, x = np.nonzero(ids == info["id"])
        assert info["area"] == len(x)
        assert info["bbox"] == [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
    assert not list(tmp_path.rglob("*.part"))


def test_instances_are_read_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    categories = (*CATEGORIES[:2], Category(-1, "background", False, (0, 0, 0)))
    drawn = {9: masks(1, 4), 3: masks(2, 1, 20, 6), 8: masks(3, 0)}
    with InstanceWriter(path, categories) as writer:
        for image_id, found in drawn.items():
            number = len(found)
            category = torch.tensor([1, 0, 2, 1])[:number]
            writer.add(image_id, Instances(found, category, torch.tensor([0.9, 0.1, 0.5, 1 / 3])[:number]))
    read = dict(formats.read_instances(path, categories))
    assert list(read) == [9, 3]  # an image without objects is not in such a file
    assert torch.equal(read[9].masks, drawn[9][[0, 1, 3]]) and torch.equal(read[3].masks, drawn[3])
    assert read[9].category.tolist() == [1, 0, 1]  # the background is no object
    assert torch.equal(read[9].score, torch.tensor([0.9, 0.1, 1 / 3]))
    first = json.loads(path.read_text())[0]
    assert first["category_id"] == 13 and isinstance(first["segmentation"]["counts"], str)
    y, x = torch.nonzero(drawn[9][0], as_tuple=True)
    assert first["bbox"] == [int(x.min()), int(y.min()), int(np.ptp(x.numpy())) + 1, int(np.ptp(y.numpy())) + 1]


def test_a_stopped_writer_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "panoptic.json"
    with PanopticWriter(path, CATEGORIES) as writer:
        writer.add(1, scene(0))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), PanopticWriter(path, CATEGORIES) as writer:
        writer.add(2, scene(1))
        raise KeyboardInterrupt
    assert path.read_bytes() == before and not list(tmp_path.rglob("*.part"))
    killed = InstanceWriter(tmp_path / "killed.json", CATEGORIES)
    killed.add(1, Instances(masks(0, 1), torch.tensor([0]), torch.tensor([1.0])))
    assert not (tmp_path / "killed.json").exists()
    with InstanceWriter(tmp_path / "killed.json", CATEGORIES):
        pass
    assert json.loads((tmp_path / "killed.json").read_text()) == []
    image = tmp_path / "classes.png"
    formats.write_voc(image, torch.zeros(3, 4))
    before = image.read_bytes()
    with pytest.raises(OSError), formats.replacing(image) as part:
        part.write_bytes(b"half")
        raise OSError
    assert image.read_bytes() == before and not part.exists()


def test_panoptic_files_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "panoptic.json"
    with PanopticWriter(path, CATEGORIES) as writer:
        writer.add(5, scene())
    good = json.loads(path.read_text())

    def said(change) -> str:
        content = json.loads(json.dumps(good))
        change(content["annotations"][0]["segments_info"])
        path.write_text(json.dumps(content))
        with pytest.raises(UserError) as caught:
            list(formats.read_panoptic(path, CATEGORIES))
        assert "000000000005.png" in str(caught.value) and "\n" not in str(caught.value)
        return str(caught.value)

    assert "segment 2, which the JSON lacks" in said(lambda infos: infos.pop(1))
    assert "segment 99 has no pixels" in said(lambda infos: infos.append({**infos[0], "id": 99}))
    assert "segment 2 twice" in said(lambda infos: infos.append(infos[1]))
    assert "segment 3 has category 12" in said(lambda infos: infos[2].update(category_id=12))
    assert "the id 0," in said(lambda infos: infos[0].update(id=0))
    path.write_text(json.dumps(good))
    png = tmp_path / "panoptic" / "000000000005.png"
    png.write_bytes(png.read_bytes()[:60])
    with pytest.raises(UserError, match=r"000000000005\.png cannot be used"):
        list(formats.read_panoptic(path, CATEGORIES))
    path.write_text(json.dumps(good)[:-1])
    with pytest.raises(UserError, match=rf"panoptic.json is broken JSON at character {len(json.dumps(good)) - 1} "):
        list(formats.read_panoptic(path, CATEGORIES))
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match="at byte 7"):
        formats.read_json(path)
    with pytest.raises(UserError, match=r"none\.json cannot be read"):
        formats.read_json(tmp_path / "none.json")


def test_results_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    rle = formats.rles_of(masks(0, 1))[0]
    good = {"image_id": 4, "category_id": 13, "segmentation": rle, "score": 0.5}
    for change, said in (
        ({"category_id": 12}, "image 4 has a result with an unknown category or key, 12"),
        ({"segmentation": {**rle, "counts": "111"}}, "image 4 has a result that cannot be used"),
    ):
        path.write_text(json.dumps([good, {**good, **change}]))
        with pytest.raises(UserError, match=said):
            list(formats.read_instances(path, CATEGORIES))


def test_pngs_of_classes(tmp_path: Path) -> None:
    colors = formats.voc_colors()
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        8: (64, 0, 0),
        15: (192, 128, 128),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    assert {number: tuple(colors[number].tolist()) for number in known} == known
    assert colors.shape == (256, 3) and len(np.unique(colors, axis=0)) == 256
    semantic = torch.tensor([[0, 1, 20], [VOID, 15, 2]])
    formats.write_voc(tmp_path / "deep" / "voc.png", semantic)
    with Image.open(tmp_path / "deep" / "voc.png") as image:
        assert image.mode == "P"
        assert np.array(image.convert("RGB"))[0, 2].tolist() == [0, 64, 128]
    read = formats.read_voc(tmp_path / "deep" / "voc.png")
    assert read.dtype == torch.uint8 and torch.equal(read.long(), semantic)

    semantic = torch.tensor([[0, 1, 2], [VOID, 2, 0]])
    formats.write_cityscapes(tmp_path / "labelIds.png", semantic, CATEGORIES)
    with Image.open(tmp_path / "labelIds.png") as image:
        assert image.mode == "L" and np.array(image).tolist() == [[7, 13, 193], [0, 193, 7]]
    assert torch.equal(formats.read_cityscapes(tmp_path / "labelIds.png", CATEGORIES).long(), semantic)
    Image.new("RGB", (3, 3)).save(tmp_path / "colour.png")
    for name, said in (("colour.png", "its pixels are RGB"), ("none.png", "No such file")):
        with pytest.raises(UserError, match=f"{name} cannot be used .{said}"):
            formats.read_voc(tmp_path / name)
