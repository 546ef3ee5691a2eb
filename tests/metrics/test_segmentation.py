"""Mean IoU and pixel accuracy against sets of pixels, and the errors of dense regression."""

import pytest
import torch
from torchmetrics import MetricCollection

from papermix.errors import UserError
from papermix.metrics.regression import DenseError
from papermix.metrics.segmentation import MeanIoU


def by_sets(prediction: torch.Tensor, truth: torch.Tensor, classes: int) -> tuple[float, float]:
    """Mean IoU and pixel accuracy from sets of pixels."""
    pixels = {i for i, t in enumerate(truth.flatten().tolist()) if t != 255}
    said, true = ([{i for i in pixels if m.flatten()[i] == c} for c in range(classes)] for m in (prediction, truth))
    ious = [len(a & b) / len(a | b) for a, b in zip(said, true) if a | b]
    return sum(ious) / len(ious), sum(len(a & b) for a, b in zip(said, true)) / len(pixels)


def test_worked_case() -> None:
    metric = MeanIoU(4)
    truth = torch.tensor([[0, 0, 1, 1], [2, 255, 255, 1]])
    metric.update(torch.tensor([[0, 1, 1, 1], [255, 3, 0, 2]]), truth)
    # class 0: 1 of 2; class 1: 2 of 4; class 2: said once where it is not, missed once; class 3: only said on void
    assert metric.per_class()[:3].tolist() == [0.5, 0.5, 0.0]
    assert metric.per_class()[3].isnan()
    assert metric.compute()["mean_iou"] == pytest.approx(1 / 3, abs=1e-12)
    assert metric.compute()["pixel_accuracy"] == pytest.approx(3 / 6, abs=1e-12)


def test_random_maps_in_several_updates_and_processes() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 5, (3, 6, 7), generator=generator)
    prediction = torch.where(torch.rand(truth.shape, generator=generator) < 0.5, truth, (truth + 1) % 5)
    truth[truth == 4] = 255  # class 4 is only predicted
    one, first, second = MeanIoU(6), MeanIoU(6), MeanIoU(6)
    one.update(prediction, truth)
    first.update(prediction[:1], truth[:1])
    second.update(prediction[1:].byte(), truth[1:].byte())
    assert torch.equal(one.confusion, first._reductions["confusion"](torch.stack([first.confusion, second.confusion])))
    values = one.compute()
    assert (values["mean_iou"].item(), values["pixel_accuracy"].item()) == pytest.approx(by_sets(prediction, truth, 6), abs=1e-12)
    one.reset()
    assert one.compute()["mean_iou"].isnan() and one.compute()["pixel_accuracy"].isnan()


def test_names_in_a_collection() -> None:
    both = MetricCollection({"a": MeanIoU(2), "b": DenseError()}, prefix="val/", compute_groups=False)
    both["a"].update(torch.tensor([1]), torch.tensor([1]))
    both["b"].update(torch.tensor([1.0]), torch.tensor([3.0]))
    assert {k: float(v) for k, v in both.compute().items()} == {
        "val/mean_iou": 1.0, "val/pixel_accuracy": 1.0, "val/mae": 2.0, "val/rmse": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize("value", [3, 254, 70_000])
def test_other_classes_are_refused(value: int) -> None:
    good, bad = torch.tensor([0, 1, 2]), torch.tensor([0, 1, value])
    for pair in ((good, bad), (bad, good))[: 2 if value < 256 else 1]:
        metric = MeanIoU(3)
        with pytest.raises(UserError, match=r"other values than 0 to 2 and 255"):
            metric.update(*pair)


def test_shapes_and_class_numbers_are_checked() -> None:
    with pytest.raises(UserError, match=r"\(2, 1\) do not fit the truth's \(2,\)"):
        MeanIoU(3).update(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(UserError, match="num_classes=256 must be from 1 to 255"):
        MeanIoU(256)
    with pytest.raises(UserError, match=r"does not fit the truth's \(1, 2\)"):
        DenseError().update(torch.zeros(2), torch.zeros(1, 2))


def test_dense_error_leaves_out_what_is_not_known() -> None:
    whole, part = DenseError(), DenseError()
    truth = torch.tensor([[1.0, torch.nan], [2.0, torch.inf]])
    prediction = torch.tensor([[2.0, 9.0], [-1.0, torch.nan]], requires_grad=True)
    whole.update(prediction, truth)
    assert whole.compute()["mae"] == 2.0
    assert whole.compute()["rmse"] == pytest.approx(5**0.5, abs=1e-12)
    part.update(prediction[:1], truth[:1])
    part.update(prediction[1:], truth[1:])
    assert part.compute() == whole.compute()
    part.update(torch.tensor([torch.nan]), torch.tensor([1.0]))
    assert part.compute()["mae"].isnan()  # a network that gives NaN is not forgiven
    assert DenseError().compute()["mae"].isnan()
