"""COCO's official layout: what was drawn is read back, ids are mapped, bad files are told by name and id, captions."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from datamodules.dense.coco import (
    PANOPTIC,
    SPECIAL,
    THINGS,
    AnnotationFile,
    CocoCaptions,
    CocoInstances,
    CocoPanoptic,
    elements,
    words,
)
from datamodules.loaders import Damaged
from papermix.errors import UserError
from papermix.segmentation import formats
from tests.datamodules.dense import coco_official as official
from tests.datamodules.dense.coco_official import CROWD_IMAGE, EMPTY_TRAIN, EMPTY_VAL, TRAIN, VAL, write_coco

FACTS = {"mean": [0.5], "std": [0.25], "batch_size": 2, "val_fraction": 1}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "coco"
    return folder, write_coco(folder)


@pytest.fixture
def coco(written, tmp_path):
    """A copy that may be spoiled."""
    shutil.copytree(written[0], tmp_path / "coco")
    return tmp_path / "coco"


def panoptic(folder, **changes):
    return CocoPanoptic(data_dir=str(folder), **{**FACTS, "num_classes": 133, **changes})


def instances(folder, **changes):
    return CocoInstances(data_dir=str(folder), **{**FACTS, "num_classes": 81, **changes})


def captions(folder, **changes):
    return CocoCaptions(data_dir=str(folder), **{**FACTS, "vocab_size": 100, "min_count": 1, **changes})


def examples(source):
    return {example["image_id"]: example for example in map(source.read, range(len(source)))}


def rewrite(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_categories_of_the_publisher() -> None:
    assert len(THINGS) == 80 and len(PANOPTIC) == 133 and PANOPTIC[:80] == THINGS
    assert set(range(1, 91)) - {c.id for c in THINGS} == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    ids = [c.id for c in PANOPTIC]
    assert ids == sorted(set(ids)) and all(c.thing for c in THINGS) and not any(c.thing for c in PANOPTIC[80:])
    number = formats.numbers_of(PANOPTIC)
    assert (number[1], number[13], number[90], number[92], number[200]) == (0, 11, 79, 80, 132)
    assert [PANOPTIC[number[id]].name for id in (1, 10, 58, 90, 187, 200)] == [
        "person", "traffic light", "hot dog", "toothbrush", "sky-other-merged", "rug-merged",
    ]  # fmt: skip
    assert len({c.name for c in PANOPTIC}) == 133 and len({c.color for c in PANOPTIC}) == 133


def test_instances_are_what_was_drawn(written) -> None:
    folder, truths = written
    parts = instances(folder).sources()
    train, test = examples(parts["train"]), examples(parts["test"])
    assert set(train) == set(TRAIN) - {EMPTY_TRAIN} and list(test) == list(VAL)
    assert test[EMPTY_VAL]["masks"].shape == (0, 50, 70)
    for image_id, example in {**train, **test}.items():
        truth = truths[image_id]
        assert example["image"].shape == (3, *truth.size) and example["image"].dtype == torch.uint8
        masks, areas = example["masks"].numpy(), example["masks"].sum((1, 2)).tolist()
        assert masks.dtype == bool and len(masks) == len(truth.objects)
        crowd = example["crowd"].tolist()
        assert [(k, a) for k, a in zip(crowd, areas)] == sorted(zip(crowd, areas))  # the small in front, crowds behind
        for mask, category, is_crowd in truth.objects:
            iou = [(mask & m).sum() / (mask | m).sum() for m in masks]
            best = int(np.argmax(iou))
            assert iou[best] == 1 if is_crowd else iou[best] > 0.97
            assert THINGS[int(example["category"][best])].id == category and crowd[best] == is_crowd
    assert train[CROWD_IMAGE]["crowd"].tolist() == [False] * 4 + [True]


def test_segments_are_what_was_drawn(written) -> None:
    folder, truths = written
    data = panoptic(folder)
    parts = data.sources()
    found = examples(parts["train"]) | examples(parts["test"])
    assert set(found) == set(truths) and data.categories == PANOPTIC
    crowds = 0
    for image_id, example in found.items():
        truth = truths[image_id]
        assert example["panoptic"].dtype == torch.int32 and example["category"].dtype == torch.int64
        # segments in the order of the JSON; void where nothing was drawn
        number = {0: 0, **{id: place for place, id in enumerate(truth.segments, 1)}}
        wanted = np.vectorize(number.get)(truth.ids)
        assert (example["panoptic"].numpy() == wanted).all() and (wanted == 0).any()
        listed = [(PANOPTIC[c].id, k) for c, k in zip(example["category"].tolist(), example["crowd"].tolist())]
        assert listed == list(truth.segments.values())
        crowds += int(example["crowd"].sum())
    assert crowds == 1


def test_images_have_three_channels_whatever_the_file_has(written) -> None:
    folder, truths = written
    found = examples(panoptic(folder).sources()["train"])
    for image_id in (official.GREY_IMAGE, official.CMYK_IMAGE, 9):
        with Image.open(folder / "train2017" / f"{image_id:012d}.jpg") as image:
            assert image.mode == {official.GREY_IMAGE: "L", official.CMYK_IMAGE: "CMYK"}.get(image_id, "RGB")
        truth, image = truths[image_id], found[image_id]["image"].float()
        sky = next(number for number, (category, _) in truth.segments.items() if category == official.SKY)
        drawn = torch.tensor(official.COLOURS[official.SKY]).float()
        if image_id == official.GREY_IMAGE:
            drawn = (drawn @ torch.tensor([0.299, 0.587, 0.114])).expand(3)
        torch.testing.assert_close(image[:, torch.from_numpy(truth.ids == sky)].median(-1).values, drawn, atol=8, rtol=0)


def test_sources_go_to_worker_processes(written) -> None:
    folder, _ = written
    for make in (panoptic, instances, captions):
        source = make(folder).sources()["train"]
        there = pickle.loads(pickle.dumps(source))
        assert len(there) == len(source)
        for key, value in source.read(1).items():
            other = there.read(1)[key]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_batches(written) -> None:
    folder, truths = written
    data = instances(folder)
    data.setup()
    seen = [int(i) for split in ("train", "val") for batch in data.loader(split) for i in batch["image_id"]]
    assert set(seen) <= set(TRAIN) - {EMPTY_TRAIN} and len(seen) == len(set(seen)) == 3
    ids = [int(i) for batch in data.loader("test") for i in batch["image_id"]]
    assert ids == list(VAL)
    for batch in data.loader("test"):
        for place, image_id in enumerate(batch["image_id"].tolist()):
            assert batch["truth_size"][place].tolist() == list(truths[image_id].size)
            assert int((batch["category"][place] == 80).sum()) == 1  # the background
            assert int((batch["category"][place] >= 0).sum()) == len(truths[image_id].objects) + 1


def average_precision(truth: Path, results: Path) -> float:
    from faster_coco_eval.core import COCO, COCOeval_faster

    gt = COCO(str(truth))
    judge = COCOeval_faster(gt, gt.loadRes(str(results)), "segm", print_function=lambda *a: None)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return float(judge.stats[0])


def test_results_carry_the_publishers_ids(written, tmp_path) -> None:
    folder, _ = written
    data = instances(folder)
    source = data.sources()["test"]
    contiguous = tuple(formats.Category(number, c.name, c.thing, c.color) for number, c in enumerate(data.categories))
    ap = {}
    for name, categories in (("right", data.categories), ("wrong", contiguous)):
        path = tmp_path / f"{name}.json"
        with formats.InstanceWriter(path, categories) as writer:
            for image_id, example in examples(source).items():
                score = torch.ones(len(example["masks"]))
                writer.add(image_id, formats.Instances(example["masks"], example["category"], score))
        ap[name] = average_precision(folder / "annotations" / "instances_val2017.json", path)
    assert ap["right"] == pytest.approx(1.0) and ap["wrong"] < 0.05


def test_panoptic_results_are_read_as_a_data_set(written, tmp_path) -> None:
    folder, _ = written
    data = panoptic(folder)
    drawn = examples(data.sources()["test"])
    copy = tmp_path / "coco"
    shutil.copytree(folder, copy)
    path = copy / "annotations" / "panoptic_val2017.json"
    shutil.rmtree(path.with_suffix(""))
    with formats.PanopticWriter(path, data.categories) as writer:
        for image_id, example in drawn.items():
            writer.add(image_id, formats.Segments.of(example["panoptic"].long(), example["category"], example["crowd"]))
    again = examples(panoptic(copy).sources()["test"])
    assert list(again) == list(drawn)
    for image_id, example in drawn.items():
        assert all(torch.equal(example[key], again[image_id][key]) for key in ("image", "panoptic", "category", "crowd"))


# bad examples

JPG, PNG = "train2017/000000000009.jpg", "annotations/panoptic_train2017/000000000009.png"
PANOPTIC_JSON, INSTANCES_JSON = "annotations/panoptic_train2017.json", "annotations/instances_train2017.json"
CAPTIONS_JSON = "annotations/captions_train2017.json"


def entry(content: dict) -> dict:
    return next(a for a in content["annotations"] if a["image_id"] == 9)


def of_segments(change):
    return lambda folder: rewrite(folder / PANOPTIC_JSON, lambda c: change(entry(c)["segments_info"]))


def of_object(**values):
    return lambda folder: rewrite(folder / INSTANCES_JSON, lambda c: entry(c).update(values))


def listed_size(name: str):
    return lambda folder: rewrite(folder / name, lambda c: next(i for i in c["images"] if i["id"] == 9).update(height=65))


def cut(name: str):
    def spoil(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return spoil


def without_entry(folder: Path) -> None:
    rewrite(folder / PANOPTIC_JSON, lambda c: c["annotations"].remove(entry(c)))


def another_size(folder: Path) -> None:
    Image.new("RGB", (96, 60)).save(folder / PNG)


FAULTS = [
    (panoptic, of_segments(lambda infos: infos.pop(2)), PNG, r"image 9 .*segment 140309, which the JSON lacks"),
    (panoptic, of_segments(lambda infos: infos[0].update(id=5)), PNG, r"image 9 .*segment 309, which the JSON lacks"),
    (panoptic, of_segments(lambda infos: infos.append({**infos[0], "id": 77})), PNG, r"image 9 .*segment 77 has no pixels"),
    (panoptic, of_segments(lambda infos: infos[2].update(category_id=12)), PNG, r"segment 140309 has category 12"),
    (panoptic, another_size, PNG, r"60 x 96 pixels, its image 64 x 96"),
    (panoptic, cut(PNG), PNG, r"image 9 of panoptic_train2017.json: "),
    (panoptic, lambda folder: (folder / PNG).unlink(), PNG, "No such file"),
    (panoptic, cut(JPG), JPG, r"image 9: image file is truncated"),
    (panoptic, without_entry, JPG, "0 entries for image 9"),
    (instances, cut(JPG), JPG, r"image 9: image file is truncated"),
    (instances, lambda folder: (folder / JPG).write_bytes(b"no image"), JPG, r"image 9: cannot identify"),
    (instances, lambda folder: (folder / JPG).unlink(), JPG, r"image 9: No such file"),
    (instances, listed_size(INSTANCES_JSON), JPG, r"image 9: it has 64 x 96 pixels, in instances_train2017.json 65 x 96"),
    (instances, of_object(category_id=12), JPG, r"annotation 9000 of image 9 in instances_train2017.json: its category 12 "),
    (instances, of_object(segmentation=[[200, 9, 220, 9, 220, 30]]), JPG, r"annotation 9000 .*no pixel in the image"),
    (instances, of_object(segmentation={"size": [60, 96], "counts": [5760]}), JPG, r"annotation 9000 .*60 x 96 pixels.*64 x 96"),
    (instances, of_object(segmentation=[[1, 2, 3]]), JPG, r"annotation 9000 .*polygon has 3 numbers"),
    (captions, cut(JPG), JPG, r"image 9: image file is truncated"),
    (captions, lambda folder: rewrite(folder / CAPTIONS_JSON, lambda c: entry(c).update(caption=None)), JPG,
     r"annotation \d+ of image 9 in captions_train2017.json: its caption is no text"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "spoil", "path", "said"), FAULTS)
def test_bad_examples_are_told_by_file_and_id(make, spoil, path, said, coco) -> None:
    spoil(coco)
    source = make(coco).sources()["train"]
    read = [source.read(index) for index in range(len(source))]
    (bad,) = [example for example in read if isinstance(example, Damaged)]
    assert bad.path == str(coco / path)
    assert re.search(said, bad.reason), bad.reason
    assert "\n" not in bad.reason and not bad.reason.endswith(".")


def test_a_bad_example_stops_the_run_unless_skipped(coco) -> None:
    of_object(category_id=12)(coco)
    strict = instances(coco, batch_size=1, val_fraction=0)
    strict.setup()
    with pytest.raises(UserError, match=r"000000000009.jpg cannot be used \(annotation 9000 .*dataset.skip_bad=true"):
        list(strict.loader("train", evaluate=True))
    lenient = instances(coco, skip_bad=True, val_fraction=0)
    lenient.setup()
    with pytest.warns(UserWarning, match="skipped so far: 1"):
        ids = [int(i) for batch in lenient.loader("train", evaluate=True) for i in batch["image_id"]]
    assert sorted(ids) == [25, 30, 139] and len(lenient.damaged) == 1


def test_objects_without_a_pixel_are_left_out_only_if_their_box_is_thin(coco) -> None:
    sliver = [[10.65, 18.33, 10.65, 18.33, 11.68, 18.33, 11.68, 18.33]]
    of_object(segmentation=sliver, bbox=[10.65, 18.33, 1.03, 0.0])(coco)
    example = examples(instances(coco).sources()["train"])[9]
    assert len(example["masks"]) == 3 and bool(example["masks"].flatten(1).any(1).all())
    of_object(bbox=[10, 18, 5, 5])(coco)
    source = instances(coco).sources()["train"]
    assert [type(source.read(index)) is Damaged for index in range(len(source))].count(True) == 1


# bad annotation files


def fails(make, folder, said: str, **changes) -> None:
    with pytest.raises(UserError, match=said) as caught:
        make(folder, **changes).setup()
    assert "\n" not in str(caught.value)


def test_annotation_files_that_cannot_be_used(coco) -> None:
    path = coco / INSTANCES_JSON
    good = path.read_text()
    for change, said in (
        (
            lambda c: entry(c).update(image_id=7),
            r"instances_train2017.json, annotation 9000 at byte \d+ cannot be used \(it belongs to image 7, .* not list.*skip_bad=true",
        ),
        (
            lambda c: entry(c).update(image_id="9"),
            r"instances_train2017.json, annotation at byte \d+ cannot be used \(it has no image_id",
        ),
        (lambda c: c["images"].append(c["images"][0]), r"image 139 at byte \d+ cannot be used \(.*listed before"),
        (lambda c: c["images"][0].pop("file_name"), "image at byte 94 cannot be used .*no id .* or no file_name"),
        (lambda c: c["categories"].append(c["categories"][3]), "lists category 4 twice"),
        (lambda c: c["categories"][3].pop("name"), "lists a category without an id"),
        (lambda c: c["categories"].clear(), "lists no categories"),
        (lambda c: c["categories"][3].update(name="bike"), "val2017.json lists other categories than .*train2017.json"),
    ):
        rewrite(path, change)
        fails(instances, coco, said)
        path.write_text(good)
    path.write_text(good[:-1])
    fails(instances, coco, rf"instances_train2017.json is broken JSON at byte {len(good) - 1} \(Expecting , or }}\)")
    path.write_text(good.replace('"iscrowd": 0', '"iscrowd": ', 1))
    place = good.index('"iscrowd": 0') + len('"iscrowd": ')
    fails(instances, coco, rf"instances_train2017.json is broken JSON at byte {place} \(Expecting value\)")
    path.write_bytes(good.replace("person", "pers\u00f6n").encode("latin-1"))
    fails(instances, coco, r"broken JSON at byte \d+ \(no UTF-8\)")
    path.write_text("[1]")
    fails(instances, coco, r"broken JSON at byte 0 \(Expecting {\)")
    path.unlink()
    fails(instances, coco, "instances_train2017.json is missing: put COCO's files there .*dataset.fake=true")
    shutil.rmtree(coco / "annotations" / "panoptic_val2017")
    fails(panoptic, coco, "panoptic_val2017 is missing")
    shutil.rmtree(coco / "val2017")
    fails(captions, coco, "val2017 is missing")


def strangers(content: dict) -> None:
    """Two annotations of image 9 get ids of no image, a third none at all; an image is listed twice, another has no name."""
    first, second, third = [a for a in content["annotations"] if a["image_id"] == 9][:3]
    first["image_id"], second["image_id"] = 7, "9"
    del third["image_id"]
    content["images"].append(dict(content["images"][0]))
    content["images"].insert(0, {"id": 10_000})


@pytest.mark.parametrize(("make", "name"), [(captions, CAPTIONS_JSON), (instances, INSTANCES_JSON)])
def test_what_a_file_has_too_much_is_left_out_if_asked(make, name, coco) -> None:
    whole = examples(make(coco).sources()["train"])
    rewrite(coco / name, strangers)
    data = make(coco, skip_bad=True, val_fraction=0)
    with pytest.warns(UserWarning, match="skipped so far: 5"):
        data.setup()
    said = [f"{path.removeprefix(f'{coco / name}, ')}: {reason}" for path, reason in data.damaged.items()]
    assert sorted(re.sub(r"(\d+ )?at byte \d+", "N", one).split(",")[0] for one in said) == [
        "annotation N: it belongs to image 7",
        "annotation N: it has no image_id that is a whole number",
        "annotation N: it has no image_id that is a whole number",
        "image N: an image of this id was listed before",
        "image N: it has no id (a whole number) or no file_name",
    ]
    left = examples(data.sources()["train"])
    assert list(left) == list(whole)
    key = "captions" if make is captions else "category"
    assert all(len(left[n][key]) == len(whole[n][key]) - 3 * (n == 9) for n in whole)
    if make is captions:
        assert left[9]["captions"] == whole[9]["captions"][3:]


def test_words_of_lost_captions_are_not_learned(coco) -> None:
    rewrite(coco / CAPTIONS_JSON, lambda c: c["annotations"].append({"id": 1, "image_id": 7, "caption": "zebra"}))
    data = captions(coco, skip_bad=True, min_count=1)
    with pytest.warns(UserWarning, match="annotation 1 at byte .* image 7"):
        data.setup()
    assert "zebra" not in data.vocabulary.symbols


def test_other_categories_than_cocos(coco) -> None:
    def other(content: dict) -> None:
        # ids 500 (stuff) and 3000, 17 (things) instead of the publisher's
        names = {1: (3000, "man", 1), 13: (17, "sign", 1), 90: (40, "brush", 1), 187: (500, "sky", 0), 193: (2, "lawn", 0)}
        content["categories"] = [{"id": id, "name": name, "isthing": thing} for id, name, thing in names.values()]
        for annotation in content["annotations"]:
            for info in annotation.get("segments_info", [annotation]):
                info["category_id"] = names[info["category_id"]][0]

    for part in ("train2017", "val2017"):
        rewrite(coco / "annotations" / f"panoptic_{part}.json", other)
    fails(
        panoptic,
        coco,
        r"lists 5 categories, which dataset.num_classes=133 .*: set dataset.num_classes=5 'dataset.task.things=\$\{range:0,3\}'",
    )
    data = panoptic(coco, num_classes=5)
    data.setup()
    assert [(c.id, c.name, c.thing) for c in data.categories] == [
        (17, "sign", True), (40, "brush", True), (3000, "man", True), (2, "lawn", False), (500, "sky", False)
    ]  # fmt: skip
    example = examples(data.sources()["train"])[9]
    # sky, grass, then the objects from the largest on
    assert example["category"].tolist()[:2] == [4, 3] and set(example["category"].tolist()[2:]) == {0, 1, 2}
    fails(instances, coco, "lists 80 categories besides the background, .*: set dataset.num_classes=81", num_classes=80)
    assert panoptic(coco, fake=True, num_classes=5).categories == ()


def test_a_json_is_gone_through_as_the_library_reads_it(tmp_path) -> None:
    content = {
        "info": {"note": "a ] and a } and a \" in words", "list": [1, [2]]},
        "images": [{"id": 3, "file_name": "caf\u00e9/3.jpg"}, {"id": 1, "file_name": "\u65e5 1.jpg", "height": 5, "width": 6.5}],
        "licenses": [],
        "annotations": [{"id": n, "image_id": (3, 1, 3)[n], "caption": "\u65e5 \\ \n"} for n in range(3)],
        "categories": [],
        "scalar": -1.5e3,
    }  # fmt: skip
    for indent in (None, 2):
        for ascii_only in (True, False):
            text = json.dumps(content, indent=indent, ensure_ascii=ascii_only)
            found: dict = {}
            for key, value, start, end in elements(text):
                found.setdefault(key, []).append(value)
                assert json.loads(text[start:end]) == value
            assert found == {k: v if isinstance(v, list) else [v] for k, v in content.items() if v != []}
            path = tmp_path / "some.json"
            path.write_text(text, encoding="utf-8")
            file = AnnotationFile(path)
            assert file.ids.tolist() == [3, 1] and file.counts.tolist() == [2, 1] and file.sizes.tolist() == [[0, 0], [5, 0]]
            assert [name.decode() for name in file.names] == ["caf\u00e9/3.jpg", "\u65e5 1.jpg"]
            assert file.annotations(0) == content["annotations"][::2] and file.annotations(1) == content["annotations"][1:2]
            assert list(file.everything("annotations")) == content["annotations"]
    for text in ("{}", ' { "annotations" : [ ] , "images" : [] } '):
        assert list(elements(text)) == []
    for text, place in (
        ("", 0),
        ("{", 1),
        ('{"a" 1}', 5),
        ('{"a": [1 2]}', 9),
        ('{"a": [1,]}', 9),
        ('{"a": 1,}', 8),
        ("{1: 2}", 1),
        ('{"a": 1} x', 9),
        ('{"a": [1]', 9),
    ):
        with pytest.raises(json.JSONDecodeError) as caught:
            list(elements(text))
        assert caught.value.pos == place, text


# captions


def said(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The words of each caption of a batch, from <start> to <end>."""
    pairs = zip(batch["tokens"], batch["target"])
    assert all(torch.equal(t[1 : int((n >= 0).sum())], n[: int((n >= 0).sum()) - 1]) for t, n in zip(batch["tokens"], batch["target"]))
    return [torch.cat([tokens[:1], target[target >= 0]]) for tokens, target in pairs]


def test_captions(written) -> None:
    folder, truths = written
    data = captions(folder)
    data.setup()
    assert tuple(data.vocabulary.symbols[:4]) == SPECIAL
    for split in ("val", "test"):
        for batch in data.loader(split):
            for index, image_id, caption in zip(batch["index"].tolist(), batch["image_id"].tolist(), said(batch)):
                assert data.captions(split, index) == truths[image_id].captions
                wanted = " ".join(["<start>", *words(truths[image_id].captions[0]), "<end>"])
                assert data.vocabulary.decode(caption) == wanted
    loader = data.loader("train")
    drawn: dict[int, set[str]] = {}
    for _ in range(12):
        for batch in loader:
            assert batch["target"].dtype == torch.int64 and batch["fresh"].all() and set(batch) >= {"image", "size", "truth_size", "index"}
            for image_id, caption in zip(batch["image_id"].tolist(), said(batch)):
                drawn.setdefault(image_id, set()).add(data.vocabulary.decode(caption))
    assert all(len(texts) >= 3 for texts in drawn.values())
    every = {" ".join(["<start>", *words(text), "<end>"]) for truth in truths.values() for text in truth.captions}
    assert set().union(*drawn.values()) <= every

    def epoch_of(data):
        loader = data.loader("train")
        loader.set_epoch(5)
        return torch.cat([batch["target"].flatten() for batch in loader])

    again = captions(folder)
    again.setup()
    assert torch.equal(epoch_of(data), epoch_of(again))


def test_words_of_captions(coco) -> None:
    assert words("A caf\u00e9's  LAWN, (under) the 'sky'!") == ["a", "caf\u00e9's", "lawn", "under", "the", "sky"]
    data = captions(coco, min_count=6, vocab_size=7)
    data.setup()
    assert data.vocabulary.symbols == [*SPECIAL, "a", "and", "person"]
    unknown = data.vocabulary.symbols.index("<unk>")
    batch = next(iter(data.loader("test")))
    assert int((batch["target"][0] == unknown).sum()) == len(
        [w for w in words(data.captions("test", 0)[0]) if w not in ("a", "person", "and")]
    )
    # an image about which nobody said anything is left out
    rewrite(
        coco / "annotations/captions_train2017.json",
        lambda c: c.update(annotations=[a for a in c["annotations"] if a["image_id"] != 9]),
    )
    assert 9 not in examples(captions(coco).sources()["train"])
    for wrong in ({"vocab_size": 4}, {"min_count": 0}):
        with pytest.raises(UserError, match=f"dataset.{next(iter(wrong))}="):
            captions(coco, **wrong)


@pytest.mark.parametrize("name", ["coco_panoptic", "coco_instances", "coco_captions"])
def test_options_run_on_fake_data(name, tmp_path) -> None:
    option = yaml.safe_load(Path(f"conf/dataset/{name}.yaml").read_text())
    own = {key: value for key, value in option.items() if not key.startswith("_") and key != "task"}
    make = {"coco_panoptic": CocoPanoptic, "coco_instances": CocoInstances, "coco_captions": CocoCaptions}[name]
    small = {
        "batch_size": 2,
        "limit": 4,
        "resize": 32,
        "max_size": 48,
        "workers": 0,
        "seed": 0,
        "data_dir": str(tmp_path / "none"),
    }
    data = make(**{**own, **small, "fake": True})
    data.setup()
    batch = next(iter(data.loader("train")))
    assert batch["image"].shape[:2] == (2, 3)
    if name == "coco_captions":
        assert batch["tokens"].shape == batch["target"].shape and 255 < int(batch["target"].max()) < option["vocab_size"]
        assert len(data.captions("test", 0)[0].split()) == 12
    else:
        assert len(data.categories) == option["num_classes"] and int(batch["category"].max()) < option["num_classes"]
        assert data.class_names[0] == "person" and data.class_names[-1] == {"coco_panoptic": "rug-merged"}.get(name, "background")
