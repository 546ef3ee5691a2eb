"""Tasks with a truth for every pixel: what counts in the loss, and what the metrics see."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.dense_tasks import DenseRegression, InstanceSegmentation, PanopticSegmentation, SemanticSegmentation
from papermix.errors import UserError
from papermix.segmentation.segments import VOID, Segments


def batch_of(semantic: Tensor, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """A batch whose truth is ``semantic`` [B, H, W]; images of ``size`` (None: as large as the truth)."""
    count, *truth = semantic.shape
    height, width = size or truth
    return {
        "image": torch.zeros(count, 3, height, width),
        "semantic": semantic,
        "size": torch.tensor([[height, width]] * count),
        "truth_size": torch.tensor([truth] * count),
    }


def test_void_is_left_out_of_the_loss() -> None:
    task = SemanticSegmentation(3)
    truth = torch.tensor([[[0, 1], [VOID, 2]]])
    logits = torch.randn(1, 3, 2, 2)
    wanted = F.cross_entropy(logits.permute(0, 2, 3, 1)[truth != VOID], truth[truth != VOID])
    assert torch.allclose(task.loss({"semantic": logits}, batch_of(truth)), wanted)
    logits[:, :, 1, 0] = 100 * torch.randn(3)  # says nothing of void
    assert torch.allclose(task.loss({"semantic": logits}, batch_of(truth)), wanted)
    nothing = task.loss({"semantic": logits.requires_grad_()}, batch_of(torch.full((1, 2, 2), VOID)))
    nothing.backward()
    assert nothing.item() == 0 and not logits.grad.any()


def test_semantic_metrics_at_another_stride_and_size() -> None:
    task = SemanticSegmentation(2)
    truth = torch.zeros(1, 8, 12, dtype=torch.int64)
    truth[:, :, 4:] = 1
    logits = torch.stack([1.0 - truth[:, ::4, ::4], truth[:, ::4, ::4].float()], 1) * 20
    metrics = task.metrics()
    # the network saw an image of half the publisher's size, at stride 2
    task.update(metrics, {"semantic": logits}, batch_of(truth, (4, 6)))
    values = metrics.compute()
    assert values["mean_iou"] == 1 and values["pixel_accuracy"] == 1 and set(values) == {"mean_iou", "pixel_accuracy", "loss"}
    truth[:, :, :2] = VOID
    truth[:, :, 2:4] = 1
    metrics.reset()
    task.update(metrics, {"semantic": logits}, batch_of(truth, (4, 6)))
    assert metrics.compute()["pixel_accuracy"] == pytest.approx(8 / 10)


def scene() -> tuple[dict[str, Tensor], Segments]:
    panoptic = torch.zeros(8, 8, dtype=torch.int64)
    panoptic[:, 2:] = 3
    panoptic[1:4, 2:5], panoptic[5:8, 4:8] = 1, 2
    category = torch.tensor([0, 1, 2])
    segments = Segments.of(panoptic, category)
    batch = batch_of(segments.semantic()[None])
    padded = torch.tensor([[0, 1, 2, -1]])
    batch |= {"panoptic": panoptic[None], "category": padded, "crowd": torch.zeros(1, 4, dtype=torch.bool)}
    batch["masks"] = torch.cat([segments.masks(), torch.zeros(1, 8, 8, dtype=torch.bool)])[None]
    return batch, segments


def test_the_truth_as_prediction_is_perfect() -> None:
    batch, segments = scene()
    logits = F.one_hot(batch["semantic"].clamp_max(2), 3).permute(0, 3, 1, 2).float()
    panoptic = PanopticSegmentation(3, things=[0, 1])
    metrics = panoptic.metrics()
    panoptic.update(metrics, {"semantic": logits, "segments": [segments]}, batch)
    values = metrics.compute()
    assert values["pq"] == values["pq_things"] == values["pq_stuff"] == values["mean_iou"] == 1
    instance = InstanceSegmentation(3)
    metrics = instance.metrics()
    instance.update(metrics, {"segments": [segments]}, batch)
    assert metrics.compute()["ap"] == 1


def test_instances_of_another_class_and_the_background_do_not_count() -> None:
    batch, segments = scene()
    task = InstanceSegmentation(3)
    metrics = task.metrics()
    swapped = Segments.of(segments.map, torch.tensor([1, 0, 2]))
    task.update(metrics, {"segments": [swapped]}, batch)
    assert metrics.compute()["ap"] == 0


@pytest.mark.parametrize(("kind", "wanted"), [("l1", 1.5), ("l2", 2.5), ("huber", 1.0)])
def test_regression_counts_finite_pixels(kind: str, wanted: float) -> None:
    task = DenseRegression("depth", kind=kind)
    truth = torch.tensor([[[[0.0, float("nan")], [3.0, float("inf")]]]])
    batch = batch_of(torch.zeros(1, 2, 2, dtype=torch.int64)) | {"depth": truth}
    output = torch.tensor([[[[1.0, 9.0], [1.0, 9.0]]]], requires_grad=True)
    loss = task.loss({"depth": output}, batch)
    assert loss.item() == pytest.approx(wanted)
    loss.backward()
    assert not output.grad[..., 1].any() and output.grad[..., 0].all()
    metrics = task.metrics()
    task.update(metrics, {"depth": output.detach()}, batch)
    assert metrics.compute()["mae"] == 1.5 and metrics.compute()["rmse"] == pytest.approx(2.5**0.5)
    assert task.loss({"depth": output}, batch, reduction="none").shape == truth.shape


def test_wrong_settings_are_refused() -> None:
    for make, words in (
        (lambda: SemanticSegmentation(3, label_smoothing=1.0), "label_smoothing"),
        (lambda: PanopticSegmentation(3, things=[3]), "names class 3"),
        (lambda: DenseRegression("depth", kind="l3"), "l1, l2 or huber"),
        (lambda: DenseRegression("depth", delta=0), "delta"),
    ):
        with pytest.raises(UserError, match=words):
            make()
