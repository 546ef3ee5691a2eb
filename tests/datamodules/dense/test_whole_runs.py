"""Whole runs on COCO's official layout: train, predict in COCO's formats, read back; bad examples left out, counted, reported."""

import json
from pathlib import Path

import pytest

from datamodules.dense.coco import PANOPTIC, THINGS
from papermix.errors import UserError
from papermix.run.result import rows
from papermix.segmentation.formats import read_instances, read_panoptic
from tests.datamodules.dense.coco_official import VAL, write_coco
from tests.machine import run
from tests.settings import METHODS

COMMON = [
    "hardware=cpu", "hardware.threads=1", "model=unet", "model.width=4", "model.levels=3", "method=center_offset",
    *METHODS["center_offset"], "dataset.batch_size=2", "dataset.val_fraction=1", "dataset.workers=0", "dataset.resize=32",
    "dataset.max_size=48", "dataset.augment.crop=[24,32]", "trainer.max_epochs=1", "callbacks=[dense_pictures,predictions]",
]  # fmt: skip


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    write_coco(tmp_path / "coco")
    return tmp_path / "coco"


def test_panoptic_predictions_in_the_official_format(coco: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    result = run([*COMMON, "dataset=coco_panoptic", f"dataset.data_dir={coco}"], place)
    assert 0 <= result["metrics"]["test/pq"] <= 1 and result["skipped_examples"] == []
    # at the publisher's size, with the publisher's ids, for every image, also one without an object
    read = dict(read_panoptic(place / "predictions/test/panoptic.json", PANOPTIC))
    assert {number: tuple(segments.map.shape) for number, segments in read.items()} == VAL
    assert (place / "pictures/final.png").is_file()


def test_instance_predictions_in_the_official_format(coco: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    overrides = [*COMMON, "dataset=coco_instances", f"dataset.data_dir={coco}", "method.threshold=0.0", "method.top_k=5"]
    result = run(overrides, place)
    assert -1 <= result["metrics"]["test/ap"] <= 1
    content = json.loads((place / "predictions/test/instances.json").read_text())
    assert {entry["image_id"] for entry in content} <= set(VAL)
    assert {entry["category_id"] for entry in content} <= {category.id for category in THINGS}
    for number, found in read_instances(place / "predictions/test/instances.json", THINGS):
        assert tuple(found.masks.shape[1:]) == VAL[number]


def test_bad_examples_stop_the_run_or_are_left_out_and_reported(coco: Path, tmp_path: Path) -> None:
    (coco / "train2017" / "000000000009.jpg").write_bytes(b"no image")
    path = coco / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    del next(a for a in content["annotations"] if a["image_id"] == 724)["segments_info"][0]
    path.write_text(json.dumps(content))
    overrides = [*COMMON, "dataset=coco_panoptic", f"dataset.data_dir={coco}"]
    with pytest.raises(UserError, match=r"cannot be used \(.*\): restore the file or set dataset.skip_bad=true"):
        run(overrides, tmp_path / "stopped")
    with pytest.warns(UserWarning, match="damaged examples skipped so far"):
        result = run([*overrides, "dataset.skip_bad=true"], tmp_path / "went on")
    assert [Path(name).name for name in result["skipped_examples"]] == ["000000000724.png", "000000000009.jpg"]
    assert any(line[0] == "bad examples left out" and line[1].startswith("2, such as") for line in rows(result))
