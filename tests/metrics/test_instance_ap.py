"""COCO's AP of masks and boxes: the card's worked cases, and pycocotools on the same data."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as rle
from pycocotools import mask as reference_rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.detection import MeanAveragePrecision

from papermix.errors import UserError
from papermix.metrics.instance_ap import InstanceAP
from papermix.segmentation.segments import Segments

NAMES = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100"]
Prediction = tuple[Tensor, Tensor, Tensor]
Truth = tuple[Tensor, Tensor, Tensor]


def rows(*spans: tuple[int, int], size: int = 200) -> Tensor:
    """Masks of a row of pixels: [first, last + 1)."""
    place = torch.arange(size)
    masks = [(place >= first) & (place < end) for first, end in spans]
    return torch.stack(masks)[:, None] if masks else torch.zeros(0, 1, size, dtype=torch.bool)


def predicted(*spans: tuple[int, int], scores: tuple[float, ...] = (), labels: tuple[int, ...] = ()) -> Prediction:
    return rows(*spans), torch.tensor(labels or (0,) * len(spans)).long(), torch.tensor(scores or (0.9,) * len(spans))


def true(*spans: tuple[int, int], crowd: tuple[int, ...] = (), labels: tuple[int, ...] = ()) -> Truth:
    return rows(*spans), torch.tensor(labels or (0,) * len(spans)).long(), torch.tensor(crowd or (0,) * len(spans)).bool()


def score(*images: tuple[Prediction | Segments, Truth], **options: Any) -> dict[str, float]:
    metric = InstanceAP(**options)
    for prediction, truth in images:
        metric.update(prediction, *truth)
    return {name: value.item() for name, value in metric.compute().items()}


def scenes(number: int, seed: int = 0) -> list[tuple[Prediction, Truth]]:
    """Discs of three classes from small to large, crowds among them; shaky, forgotten, doubled and mistaken predictions."""
    random = np.random.default_rng(seed)

    rows, columns = torch.meshgrid(torch.arange(128), torch.arange(160), indexing="ij")

    def disc(y: float, x: float, h: float, w: float) -> Tensor:
        return ((rows - y) / h * 2 - 1) ** 2 + ((columns - x) / w * 2 - 1) ** 2 < 1

    images = []
    for _ in range(number):
        places = [np.array([*random.uniform(0, 60, 2), *random.choice([12, 40, 150], 2)]) for _ in range(8)]
        labels = torch.from_numpy(random.integers(0, 3, 8))
        copies = random.permutation(np.repeat(np.arange(8), random.integers(0, 3, 8)))
        found = torch.stack([disc(*(places[c] + random.normal(0, 3, 4))) for c in copies] or [disc(0, 0, 9, 9)])
        said = torch.from_numpy(np.where(random.random(len(found)) < 0.9, labels[copies] if len(copies) else 0, 2))
        truth = torch.stack([disc(*place) for place in places]), labels, torch.from_numpy(random.random(8) < 0.2)
        images.append(((found, said, torch.from_numpy(random.random(len(found))).float()), truth))
    return images


def by_pycocotools(images: list[tuple[Prediction, Truth]], kind: str = "segm", say: Any = int) -> list[float]:
    """What the reference says of result files with these classes (``say``: number of a class in the files)."""

    def annotations(masks: Tensor, labels: Tensor, image: int, truth: bool = False) -> list[dict[str, Any]]:
        found = []
        for mask, label in zip(masks.numpy(), labels.tolist()):
            coded = reference_rle.encode(np.asfortranarray(mask.astype(np.uint8)))
            own = {"image_id": image, "category_id": say(label)}
            if truth or kind == "segm":
                own["segmentation"] = coded
            if truth or kind == "bbox":
                own["bbox"] = reference_rle.toBbox(coded).tolist()
            found.append({**own, "area": float(reference_rle.area(coded))} if truth else own)
        return found

    truth, results = COCO(), []
    listed: list[dict[str, Any]] = []
    for number, ((found, said, scores), (masks, labels, crowd)) in enumerate(images):
        listed += [a | {"iscrowd": int(c)} for a, c in zip(annotations(masks, labels, number, True), crowd)]
        results += [a | {"score": s} for a, s in zip(annotations(found, said, number), scores.double().tolist())]
    sizes = [{"id": n, "height": t[0].shape[1], "width": t[0].shape[2]} for n, (_, t) in enumerate(images)]
    categories = [{"id": say(c)} for c in range(3)]
    numbered = [a | {"id": n} for n, a in enumerate(listed, 1)]
    truth.dataset = {"info": {}, "images": sizes, "categories": categories, "annotations": numbered}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:9].tolist()


# ---- worked cases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", [rle, reference_rle])
def test_box_iou(library: Any) -> None:
    truth, found = np.array([[0.0, 0, 10, 10]]), np.array([[5.0, 0, 10, 10]])
    assert np.asarray(library.iou(found, truth, [0])).item() == pytest.approx(50 / 150)
    assert np.asarray(library.iou(found, truth, [1])).item() == pytest.approx(50 / 100)


def test_two_detections_of_one_object() -> None:
    spans, truth = ((0, 92), (0, 62)), true((0, 100))
    ordered = score((predicted(*spans, scores=(0.9, 0.8)), truth))
    assert ordered["ap50"] == ordered["ar10"] / 0.9 == pytest.approx(1)
    reversed_ = score((predicted(*spans, scores=(0.8, 0.9)), truth))
    assert reversed_["ap75"] == pytest.approx(0.5)
    assert reversed_["ap"] == pytest.approx((3 * 1.0 + 6 * 0.5 + 0) / 10)
    assert reversed_["ar1"] == pytest.approx(0.3)


def test_a_crowd_alone_has_no_false_positives() -> None:
    found = predicted(*((10 * n, 10 * n + 8) for n in range(5)))
    crowd = true((0, 60), crowd=(1,))
    assert score((found, crowd)) == dict.fromkeys(NAMES, -1.0)
    other = predicted((0, 9), labels=(1,)), true((0, 9), labels=(1,))
    assert score((found, crowd), other)["ap"] == pytest.approx(1)


def test_false_positives_count_in_images_without_truth() -> None:
    images = [(predicted((0, 100), scores=(0.5,)), true((0, 100))), (predicted((0, 100), scores=(0.9,)), true())]
    assert score(*images)["ap"] == pytest.approx(0.5)
    assert score(*images)["ap"] == pytest.approx(by_pycocotools(images)[0], abs=1e-9)


def test_nothing_predicted_nothing_true() -> None:
    assert score() == score((predicted(), true())) == score((predicted((0, 9)), true())) == dict.fromkeys(NAMES, -1.0)
    missed = score((predicted(), true((0, 9))))
    assert missed == dict.fromkeys(NAMES, 0.0) | {"ap_medium": -1, "ap_large": -1}


def test_segments_are_judged_by_their_masks() -> None:
    truth = true((0, 30), (40, 80), labels=(2, 0))
    row = torch.zeros(1, 200, dtype=torch.int64)
    row[0, :30], row[0, 30:40], row[0, 40:80] = 3, 2, 1
    prediction = Segments.of(row, torch.tensor([0, 1, 2]), score=torch.tensor([0.5, 0.9, 0.6]))
    assert score((prediction, truth))["ap"] == score((prediction, truth))["ar1"] == pytest.approx(1)  # class 1 has no truth


def test_sizes_are_checked() -> None:
    with pytest.raises(UserError, match=r"size \(1, 200\) do not fit the truth's \(1, 9\)"):
        InstanceAP().update(predicted((0, 4)), rows((0, 4), size=9), torch.tensor([0]), torch.tensor([False]))


# ---- against pycocotools --------------------------------------------------------------------------------------------------


def test_equals_pycocotools_and_torchmetrics() -> None:
    images = scenes(20)
    ours = score(*images, boxes=True)
    assert list(ours) == NAMES + [f"box_{name}" for name in NAMES]
    expected = by_pycocotools(images)
    assert 0.1 < expected[0] < 0.9 and min(expected) > 0
    assert list(ours.values()) == pytest.approx(expected + by_pycocotools(images, "bbox"), abs=1e-9)
    for backend in ("pycocotools", "faster_coco_eval"):
        # its own thresholds are rounded to float32, which moves the third digit
        exact = {"iou_thresholds": np.linspace(0.5, 0.95, 10).tolist(), "rec_thresholds": np.linspace(0, 1, 101).tolist()}
        theirs = MeanAveragePrecision(iou_type="segm", backend=backend, **exact)
        for (masks, labels, scores), (true_masks, true_labels, crowd) in images:
            truth = {"masks": true_masks, "labels": true_labels, "iscrowd": crowd.int()}
            theirs.update([{"masks": masks, "labels": labels, "scores": scores}], [truth])
        values = theirs.compute()
        names = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_1", "mar_10", "mar_100"]
        assert list(ours.values())[:9] == pytest.approx([values[name].item() for name in names], abs=1e-6)


def test_truth_as_prediction_is_perfect_and_a_broken_map_is_not() -> None:
    images = [(p, (masks, labels, torch.zeros_like(crowd))) for p, (masks, labels, crowd) in scenes(6)]
    perfect = [((masks, labels, torch.ones(len(masks))), (masks, labels, crowd)) for _, (masks, labels, crowd) in images]
    assert score(*perfect)["ap"] == score(*perfect)["ar100"] == pytest.approx(1)
    broken = [((masks, (labels + 1) % 3, scores), truth) for (masks, labels, scores), truth in perfect]
    assert score(*broken)["ap"] < 0.05
    # numbers with gaps in the files change nothing, if both sides use them
    assert by_pycocotools(perfect, say=[1, 3, 7].__getitem__)[0] == pytest.approx(1)


# ---- several processes ----------------------------------------------------------------------------------------------------


def test_processes_with_unequal_shares_equal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # many equal scores
    images = [((masks, labels, scores.round(decimals=1)), truth) for (masks, labels, scores), truth in scenes(7)]
    whole = MetricCollection({"instances": InstanceAP()}, prefix="val/", compute_groups=False)
    shares = [InstanceAP(), InstanceAP(), InstanceAP()]  # the last has no image
    for number, (prediction, truth) in enumerate(images):
        whole["instances"].update(prediction, *truth)
        shares[number % 3 == 0].update(prediction, *truth)

    def gather(gathered: list[Any], own: Any, group: Any = None) -> None:
        gathered[:] = [share.images for share in shares]

    expected = {name.removeprefix("val/"): value for name, value in whole.compute().items()}
    kept = [list(share.images) for share in shares]
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group=None: 3)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    for share in shares:
        with share.sync_context(distributed_available=lambda: True):
            assert len(share.images) == 7
            assert InstanceAP.compute(share) == expected  # the class's own, which does not gather once more
    assert [share.images for share in shares] == kept


def test_moves_and_starts_anew() -> None:
    metric = InstanceAP().to(torch.float64)
    metric.update(predicted((0, 9)), *true((0, 9)))
    metric.to("cpu")
    assert metric in set(nn.ModuleList([metric]).modules()), "torch hashes modules when it goes through them"
    assert metric.compute()["ap"] == 1
    metric.reset()
    assert metric.images == []
