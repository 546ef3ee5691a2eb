"""Predictions in the official formats: read back they are what the model said, of every image once, under the publisher's ids."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from callbacks.predictions import Predictions, Share, join
from papermix.errors import UserError
from papermix.segmentation.formats import read_cityscapes, read_instances, read_panoptic, read_voc
from papermix.segmentation.segments import Category, Segments
from tests.callbacks.dense_world import CATEGORIES, SIZES, Data, Seer, batch_of, example
from tests.callbacks.world import trainer

IDS = [100, 107, 114, 121, 128]


def written(folder: Path, callback: Predictions, module: Seer, data: Any = None) -> Path:
    trainer(folder, [callback]).test(module, datamodule=data or Data(), verbose=False)
    assert [p.name for p in (folder / "predictions").iterdir()] == [callback.split], "nothing is left over"
    return folder / "predictions" / callback.split


def said(number: int) -> Segments:
    """What the seer says of an image: dogs are cats."""
    part = example(number)
    return Segments.of(part["panoptic"], part["category"].where(part["category"] != 1, 0))


def test_panoptic(tmp_path: Path) -> None:
    folder = written(tmp_path, Predictions(), Seer("panoptic"))
    found = dict(read_panoptic(folder / "panoptic.json", CATEGORIES))
    assert list(found) == IDS
    for number, segments in enumerate(found.values()):
        assert torch.equal(segments.map, said(number).map), "at the size of the truth, without padding"
        assert torch.equal(segments.category, said(number).category)
    content = json.loads((folder / "panoptic.json").read_text())
    assert {s["category_id"] for a in content["annotations"] for s in a["segments_info"]} == {1, 92}, "ids of the publisher"
    assert [(i["id"], i["height"], i["width"]) for i in content["images"]] == [(i, h, w) for i, (h, w) in zip(IDS, SIZES)]
    assert [c["id"] for c in content["categories"]] == [1, 7, 92]
    assert sorted(p.name for p in (folder / "panoptic").iterdir()) == [f"{i:012d}.png" for i in IDS]


def test_instances(tmp_path: Path) -> None:
    folder = written(tmp_path, Predictions(), Seer("panoptic"), Data("instance"))
    results = json.loads((folder / "instances.json").read_text())
    assert {r["category_id"] for r in results} == {1}, "no background, and the publisher's id"
    found = dict(read_instances(folder / "instances.json", CATEGORIES))
    assert list(found) == IDS
    for number, instances in enumerate(found.values()):
        assert torch.equal(instances.masks, said(number).masks()[1:])
        assert instances.score.tolist() == [1, 1, 1]


def test_classes_under_the_publishers_names(tmp_path: Path) -> None:
    class Named(Data):
        def image_name(self, image_id: int) -> str:
            return f"2007_{image_id:06d}"

    folder = written(tmp_path, Predictions(), Seer("semantic"), Named())
    assert sorted(p.name for p in folder.iterdir()) == [f"2007_{i:06d}.png" for i in IDS]
    for number, image_id in enumerate(IDS):
        path = folder / f"2007_{image_id:06d}.png"
        expected = said(number).semantic()
        known = expected != 255
        assert read_voc(path).shape == SIZES[number]
        assert torch.equal(read_voc(path)[known].long(), expected[known])
    with Image.open(path) as image:
        assert image.mode == "P"
        assert np.array(image.convert("RGB"))[8, 0].tolist() == [0, 128, 0], "class 2 in VOC's palette"


def test_classes_as_the_publishers_ids(tmp_path: Path) -> None:
    folder = written(tmp_path, Predictions("cityscapes"), Seer("panoptic"))
    with Image.open(folder / "100.png") as image:
        assert image.mode == "L"
        assert set(np.unique(np.array(image))) == {1, 92}
    expected = said(0).semantic()
    known = expected != 255
    assert torch.equal(read_cityscapes(folder / "100.png", CATEGORIES)[known].long(), expected[known])


def test_classes_at_the_size_of_a_larger_truth(tmp_path: Path) -> None:
    batch = batch_of([1])
    logits = F.one_hot(batch["semantic"].clamp_max(2), 3).movedim(-1, 1).float()
    batch["truth_size"] = torch.tensor([[48, 30]])
    share = Share(tmp_path, "voc", CATEGORIES)
    share.add({"semantic": logits}, batch)
    classes, part = read_voc(tmp_path / "107.png"), example(1)
    assert classes.shape == (48, 30)
    middles = part["category"][part["panoptic"] - 1].where(part["panoptic"] > 0, 2)
    assert torch.equal(classes[1::3, 1::3].long(), middles)


def test_two_processes_write_every_image_once(tmp_path: Path) -> None:
    seer = Seer("panoptic")
    # the second one has an image of the first again, as samplers pad, and each one of its own twice
    for form in ("coco_panoptic", "coco_instances", "voc"):
        shares = [tmp_path / form / str(rank) for rank in range(2)]
        for share, batches in zip(shares, ([[4, 0], [2, 2]], [[1, 3], [4]])):
            writer = Share(share, form, CATEGORIES)
            for numbers in batches:
                batch = batch_of(numbers)
                writer.add(seer.predict(batch, "test"), batch)
            writer.close()
        join(shares, tmp_path / f"{form}.joined")
        trainer(tmp_path / f"one.{form}", [Predictions(form)]).test(seer, datamodule=Data(), verbose=False)
        one = tmp_path / f"one.{form}" / "predictions/test"
        files = sorted(p.relative_to(one) for p in one.rglob("*.*"))
        assert files == sorted(p.relative_to(tmp_path / f"{form}.joined") for p in (tmp_path / f"{form}.joined").rglob("*.*"))
        assert len(files) == {"coco_panoptic": 6, "coco_instances": 1, "voc": 5}[form]
        for file in files:
            assert (tmp_path / f"{form}.joined" / file).read_bytes() == (one / file).read_bytes(), file


def test_written_again_it_replaces_the_old_and_a_failure_leaves_it(tmp_path: Path) -> None:
    folder = written(tmp_path, Predictions("voc"), Seer("semantic"))
    (folder / "old.png").write_bytes(b"")

    class Broken(Seer):
        def predict(self, batch, split):
            if self.asked >= 4:
                raise RuntimeError("the power fails")
            return super().predict(batch, split)

    with pytest.raises(RuntimeError, match="power"):
        trainer(tmp_path, [Predictions("voc")]).test(Broken("semantic"), datamodule=Data(), verbose=False)
    assert len(list(folder.iterdir())) == 6
    assert (tmp_path / "predictions/.test.part").exists()
    written(tmp_path, Predictions("voc"), Seer("semantic"))
    assert sorted(p.name for p in folder.iterdir()) == [f"{i}.png" for i in IDS]


def test_the_network_runs_again_only_where_the_step_is_silent(tmp_path: Path) -> None:
    silent, telling = Seer("panoptic"), Seer("panoptic", tell=True)
    first, second = written(tmp_path / "a", Predictions(), silent), written(tmp_path / "b", Predictions(), telling)
    assert (silent.asked, telling.asked) == (10, 5)
    assert (first / "panoptic.json").read_bytes() == (second / "panoptic.json").read_bytes()


def test_the_last_validation_stays(tmp_path: Path) -> None:
    seer = Seer("panoptic")
    runner = trainer(tmp_path, [Predictions(split="val")], max_epochs=2, num_sanity_val_steps=1)
    runner.fit(seer, datamodule=Data())
    assert [p.name for p in (tmp_path / "predictions").iterdir()] == ["val"]
    assert [i for i, _ in read_panoptic(tmp_path / "predictions/val/panoptic.json", CATEGORIES)] == IDS
    runner.test(seer, datamodule=Data(), verbose=False)
    assert [p.name for p in (tmp_path / "predictions").iterdir()] == ["val"], "the test split was not asked for"


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"format=coco_panoptc .*\(did you mean 'coco_panoptic'\?\)"):
        Predictions("coco_panoptc")
    with pytest.raises(UserError, match="split=train must be one of val, test"):
        Predictions(split="train")
    with pytest.raises(UserError, match="format=coco_instances needs a method that finds segments"):
        written(tmp_path, Predictions("coco_instances"), Seer("semantic"))
    with pytest.raises(UserError, match="class for every pixel"):
        written(tmp_path, Predictions(), Seer("depth"))
    flat = SimpleNamespace(task=SimpleNamespace(heads={"semantic": 3}))
    with pytest.raises(UserError, match="class for every pixel"):
        Predictions().setup(SimpleNamespace(datamodule=None), flat, "fit")  # type: ignore[arg-type]


def test_objects_of_stuff_alone_give_an_empty_list(tmp_path: Path) -> None:
    share = Share(tmp_path / "0", "coco_instances", (Category(5, "background", False, (0, 0, 0)),))
    batch = batch_of([0])
    share.add({"segments": [Segments.of(torch.ones(12, 16, dtype=torch.int64), torch.tensor([0]))]}, batch)
    share.close()
    join([tmp_path / "0"], tmp_path / "joined")
    assert json.loads((tmp_path / "joined/instances.json").read_text()) == []
