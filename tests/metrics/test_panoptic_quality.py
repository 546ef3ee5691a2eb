"""Panoptic quality: the card's worked cases, and random segments against a count by masks."""

import math

import pytest
import torch
from torchmetrics import MetricCollection

from papermix.errors import UserError
from papermix.metrics.panoptic_quality import PanopticQuality
from papermix.segmentation.segments import Segments


def segments(*spans: tuple[int, int, int], size: int = 300, crowd: tuple[int, ...] = ()) -> Segments:
    """A row of pixels: (first, last + 1, class) of each segment; the numbers of those that are crowds."""
    row = torch.zeros(1, size, dtype=torch.int64)
    for number, (first, end, _) in enumerate(spans, 1):
        row[0, first:end] = number
    crowds = torch.tensor([number in crowd for number in range(1, len(spans) + 1)], dtype=torch.bool)
    return Segments.of(row, torch.tensor([category for *_, category in spans], dtype=torch.int64), crowds)


def counts(prediction: Segments, truth: Segments, classes: int = 3) -> list[list[float]]:
    """[sum of IoU, TP, FP, FN] of each class, for one image."""
    metric = PanopticQuality(classes, [0, 1])
    metric.update(prediction, truth)
    return metric.sums.tolist()


def near(*values: float):
    return pytest.approx(list(values), abs=1e-12)


# the rest of the row belongs to a segment of class 2, so that it is not void
@pytest.mark.parametrize(("overlap", "expected"), [(80, (80 / 120, 1, 0, 0)), (66, (0, 0, 1, 1))])
def test_card_without_void(overlap: int, expected: tuple[float, ...]) -> None:
    truth = segments((0, 300, 2), (0, 100, 0))
    assert counts(segments((100 - overlap, 200 - overlap, 0)), truth)[0] == near(*expected)
    metric = PanopticQuality(1, [0])
    metric.update(segments((100 - overlap, 200 - overlap, 0)), segments((0, 300, 0), (0, 100, 0), crowd=(1,)))
    assert metric.compute()["pq"] == pytest.approx(expected[0], abs=1e-12)


def test_card_with_void() -> None:
    assert counts(segments((34, 134, 0)), segments((0, 100, 0)))[0] == near(66 / 100, 1, 0, 0)


def test_half_is_no_match() -> None:
    truth = segments((0, 300, 2), (0, 100, 0))
    assert counts(segments((0, 50, 0)), truth)[0] == near(0, 0, 1, 1)
    assert counts(segments((0, 51, 0)), truth)[0] == near(51 / 100, 1, 0, 0)


def test_another_class_is_a_false_positive_and_a_miss() -> None:
    assert [c[1:] for c in counts(segments((0, 100, 1)), segments((0, 100, 0)))] == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(("inside", "wrong"), [(50, 1), (51, 0)])
def test_more_than_half_on_void_is_forgiven(inside: int, wrong: int) -> None:
    truth = segments((0, 100, 2))
    assert counts(segments((inside, 100 + inside, 0)), truth)[0] == near(0, 0, wrong, 0)


@pytest.mark.parametrize(("inside", "of", "wrong"), [(50, 0, 1), (51, 0, 0), (100, 1, 1)])
def test_more_than_half_on_a_crowd_of_its_class_is_forgiven(inside: int, of: int, wrong: int) -> None:
    truth = segments((0, 300, 2), (0, inside, of), crowd=(2,))
    assert counts(segments((0, 100, 0)), truth)[0] == near(0, 0, wrong, 0)


def test_void_and_crowds_add_up() -> None:
    truth = segments((20, 300, 2), (20, 40, 0), (40, 51, 0), crowd=(2, 3))
    assert counts(segments((0, 100, 0)), truth)[0] == near(0, 0, 0, 0)


def test_a_crowd_is_neither_matched_nor_missed() -> None:
    truth = segments((0, 300, 2), (0, 100, 0), crowd=(2,))
    assert counts(segments(), truth)[0] == near(0, 0, 0, 0)
    # exactly the crowd: forgiven, not matched
    assert counts(segments((0, 100, 0)), truth)[0] == near(0, 0, 0, 0)


def test_segments_without_pixels_do_not_exist() -> None:
    full = (0, 300, 2)
    assert counts(segments((0, 100, 0), full), segments((0, 100, 1), full)) == [
        near(0, 0, 0, 0),
        near(0, 0, 0, 0),
        near(1, 1, 0, 0),
    ]


def test_images_without_segments() -> None:
    assert counts(segments(), segments((0, 9, 1)))[1] == near(0, 0, 0, 1)
    assert counts(segments((0, 9, 1)), segments())[1] == near(0, 0, 0, 0)  # all is void
    assert counts(segments(), segments()) == [near(0, 0, 0, 0)] * 3


def test_averages_over_things_and_stuff() -> None:
    metric = PanopticQuality(5, [0, 1, 4])
    truth = segments((0, 100, 0), (100, 200, 2), (200, 300, 1))
    metric.update(segments((0, 100, 0), (100, 180, 2), (180, 300, 3)), truth)
    # 0: perfect; 1: missed; 2: IoU 0.8; 3: wrong; 4: not there
    expected = {"pq": (1 + 0 + 0.8 + 0) / 4, "sq": 1.8 / 4, "rq": 2 / 4, "pq_things": 0.5, "sq_things": 0.5, "rq_things": 0.5}
    expected |= {"pq_stuff": 0.4, "sq_stuff": 0.4, "rq_stuff": 0.5}
    collection = MetricCollection({"segments": metric}, prefix="val/", compute_groups=False)
    assert {k: v.item() for k, v in collection.compute().items()} == pytest.approx({f"val/{k}": v for k, v in expected.items()})
    classes = metric.per_class()
    assert classes["pq"][:4].tolist() == near(1, 0, 0.8, 0)
    assert all(value[4].isnan() for value in classes.values())


def test_groups_without_classes_have_no_names() -> None:
    assert set(PanopticQuality(2, [0, 1]).compute()) == {"pq", "sq", "rq", "pq_things", "sq_things", "rq_things"}
    assert PanopticQuality(2, [0]).compute()["pq_stuff"].isnan()


def test_bad_input() -> None:
    with pytest.raises(UserError, match=r"size \(1, 300\) do not fit the truth's \(1, 299\)"):
        PanopticQuality(1, []).update(segments((0, 1, 0)), segments((0, 1, 0), size=299))
    for pair in ((segments((0, 1, 7)), segments()), (segments(), segments((0, 1, 7)))):
        with pytest.raises(UserError, match="a segment is of class 7, but num_classes=2"):
            PanopticQuality(2, []).update(*pair)
    with pytest.raises(UserError, match="things holds class 3, but num_classes=3"):
        PanopticQuality(3, [0, 3])


# ---- against a count by masks ---------------------------------------------------------------------------------------------


def scene(generator: torch.Generator) -> tuple[Segments, Segments]:
    """Rectangles on stuff with void and crowds, and a prediction that moves, forgets and mistakes some of them."""

    def whole(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    boxes = [(whole(12), whole(12), 3 + whole(8), 3 + whole(8), whole(3)) for _ in range(6)]
    maps = []
    for shake in (0, 2):
        image = torch.ones(16, 16, dtype=torch.int64)
        image[8:] = 2
        for number, (y, x, h, w, _) in enumerate(boxes, 3):
            image[y + whole(1 + shake) : y + h, x + whole(1 + shake) : x + w] = number
        image[whole(16)] = 0
        maps.append(image)
    category = torch.tensor([3, 4, *(box[-1] for box in boxes)])
    said = torch.where(torch.rand(8, generator=generator) < 0.8, category, torch.randint(5, (8,), generator=generator))
    crowd = (torch.rand(8, generator=generator) < 0.3) & (category < 3)
    return Segments.of(maps[1], said), Segments.of(maps[0], category, crowd)


def by_masks(images: list[tuple[Segments, Segments]], classes: int) -> dict[int, tuple[float, float, float]]:
    """(PQ, SQ, RQ) of every class that occurs, from the definition, mask by mask."""
    sums = {c: [0.0, 0, 0, 0] for c in range(classes)}
    for prediction, truth in images:
        void = truth.map == 0
        said = [(m, int(c)) for m, c in zip(prediction.masks(), prediction.category) if m.any()]
        true = [(m, int(c), bool(k)) for m, c, k in zip(truth.masks(), truth.category, truth.crowd) if m.any()]
        used = set()
        for mask, category, crowd in true:
            hits = [
                (n, int((mask & other).sum()) / int(((mask | other) & ~(other & void)).sum()))
                for n, (other, its) in enumerate(said)
                if its == category and not crowd
            ]
            hits = [(n, iou) for n, iou in hits if iou > 0.5]
            assert len(hits) <= 1
            for n, iou in hits:
                used.add(n)
                sums[category][0] += iou
                sums[category][1] += 1
            sums[category][3] += not hits and not crowd
        for n, (other, category) in enumerate(said):
            soft = void.clone()
            for mask, its, crowd in true:
                if crowd and its == category:
                    soft |= mask
            sums[category][2] += n not in used and not (other & soft).sum() / other.sum() > 0.5
    found = {}
    for c, (iou, tp, fp, fn) in sums.items():
        if tp + fp + fn:
            weight = tp + fp / 2 + fn / 2
            found[c] = (iou / weight, iou / tp if tp else 0.0, tp / weight)
    return found


def test_random_segments_and_the_sum_over_processes() -> None:
    generator = torch.Generator().manual_seed(5)
    images = [scene(generator) for _ in range(40)]
    one, first, second = (PanopticQuality(5, [0, 1, 2]) for _ in range(3))
    for number, image in enumerate(images):
        one.update(*image)
        (first if number < 13 else second).update(*image)
    joint = PanopticQuality(5, [0, 1, 2])
    joint.sums = first._reductions["sums"](torch.stack([first.sums, second.sums]))
    expected = by_masks(images, 5)
    assert one.sums.sum(0).min() > 10  # matches, wrong and missed ones: all kinds occur
    for metric in (one, joint):
        values, classes = metric.compute(), metric.per_class()
        for ending, group in {"": range(5), "_things": range(3), "_stuff": range(3, 5)}.items():
            for place, name in enumerate(("pq", "sq", "rq")):
                mean = sum(expected[c][place] for c in group) / len(group)
                assert math.isclose(values[name + ending].item(), mean, rel_tol=0, abs_tol=1e-9)
                assert classes[name].tolist() == pytest.approx([expected[c][place] for c in range(5)], abs=1e-9)
