"""The first stage of Label structure: it sees labels alone, judges them at their own size, and shows its code."""

from pathlib import Path

import pytest
import torch

from lightning_modules.dense_tasks import DenseRegression, PanopticSegmentation
from lightning_modules.label_autoencoder import LabelAutoencoding
from papermix.errors import UserError
from papermix.models.dense.unet import UNet
from papermix.run.compose import compose, freeze
from papermix.segmentation.label_structure import LabelAutoencoder
from papermix.segmentation.segments import VOID
from tests.machine import run, weights
from tests.settings import SCENES, TINY

LABELS = [*TINY, *SCENES, "method=label_autoencoder", "model=label_autoencoder", "model.base=4", "model.code=4"]


def method_of(classes: int = 3) -> LabelAutoencoding:
    torch.manual_seed(0)
    model = LabelAutoencoder(classes, code=4, stride=4, base=4)
    return LabelAutoencoding(model, PanopticSegmentation(classes, [0], label_smoothing=0.1), torch.optim.SGD)


def batch_of() -> dict[str, torch.Tensor]:
    """Truths of 8x12 and 6x9 pixels, of images of half that size."""
    semantic = torch.full((2, 8, 12), VOID)
    semantic[0], semantic[1, :6, :9] = 1, 2
    semantic[0, :, :4] = 0
    sizes = torch.tensor([[8, 12], [6, 9]])
    image = torch.full((2, 3, 32, 32), torch.nan)
    return {"image": image, "semantic": semantic, "size": torch.tensor([[4, 6], [3, 4]]), "truth_size": sizes}


def test_images_are_never_looked_at_and_truths_are_judged_at_their_size() -> None:
    method, batch = method_of().eval(), batch_of()
    output = method.predict(batch, "val")
    assert output["semantic"].shape == (2, 3, 8, 12)
    metrics = method.task.metrics()
    method.task.update(metrics, output, batch)
    said, known = output["semantic"].argmax(1), batch["semantic"] != VOID
    right = (said == batch["semantic"])[known].double().mean()
    assert torch.equal(metrics.compute()["pixel_accuracy"], right)
    loss = torch.nn.functional.cross_entropy(output["semantic"], batch["semantic"], ignore_index=VOID)
    # neither the data's own task nor its smoothing is asked
    method.task.train()
    assert torch.allclose(method.task.loss(output, batch), loss)
    assert method.task.monitor == "val/mean_iou" and "segments" not in output


def test_void_changes_no_loss() -> None:
    method, batch = method_of(), batch_of()
    output = method.predict(batch, "train")
    other = {"semantic": torch.where((batch["semantic"] == VOID)[:, None], 9.0, output["semantic"])}
    assert torch.equal(method.task.loss(output, batch), method.task.loss(other, batch))


def test_the_code_is_shown() -> None:
    method, batch = method_of().eval(), batch_of()
    views = method.views({}, batch, 1)
    code = method.model.encode(batch["semantic"][1:, :6, :9])[0]
    assert len(views) == 2 and all(v.values.shape == (2, 3) and v.values.min() == 0 for v in views)
    widest = code.flatten(1).var(1).argmax()
    assert views[0].title == f"code, channel {widest} of 4"
    assert torch.allclose(views[0].values, code[widest] - code[widest].min())


@pytest.mark.parametrize("data", ["shapes_semantic", "shapes_panoptic", "shapes_instance"])
def test_it_learns_any_classes_of_pixels_and_draws_them(data: str, tmp_path: Path) -> None:
    overrides = [*LABELS, f"dataset={data}", "dataset.fake=false", "optimizer=adam", "optimizer.lr=0.01"]
    overrides += ["callbacks=[checkpoints,dense_pictures]", "callbacks.dense_pictures.count=2"]
    overrides += ["callbacks.checkpoints.every_n_steps=2"]
    result = run(overrides, tmp_path)
    assert 0 < result["metrics"]["test/mean_iou"] <= 1 and result["flops"] > 0
    assert (tmp_path / "pictures/final.png").is_file()
    moved = weights(tmp_path)
    assert not moved["model.lookup.weight"][-1].any()  # void stays the zero vector


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trains model=label_autoencoder, not UNet"):
        LabelAutoencoding(UNet(width=4), PanopticSegmentation(3, [0]), torch.optim.SGD)
    with pytest.raises(UserError, match="class for every pixel, which DenseRegression lacks"):
        LabelAutoencoding(LabelAutoencoder(3), DenseRegression("depth"), torch.optim.SGD)
    for mix, part in (
        (["model=label_autoencoder", "method=supervised"], "needs 'labels_alone'.*method=label_autoencoder"),
        (["model=unet", "method=label_autoencoder"], "needs 'label_model'.*model=label_autoencoder"),
        (["model=label_autoencoder", "method=label_autoencoder", "callbacks=[label_structure]"], "does not go with"),
    ):
        overrides = [*TINY, "dataset=shapes_semantic", *SCENES, *mix]
        overrides = [o for o in overrides if not (o.startswith("callbacks.") or o == TINY[-2])] if len(mix) == 3 else overrides
        with pytest.raises(UserError, match=part):
            freeze(compose(overrides), overrides, tmp_path)
