"""The method of pixel consensus voting: its losses, where they count, that they fall, and the way back to the truth's size."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from lightning_modules.dense_tasks import PanopticSegmentation
from lightning_modules.pixel_consensus import PixelConsensus
from papermix.errors import UserError
from papermix.segmentation.segments import VOID, Segments
from papermix.segmentation.voting import targets
from tests.methods.joint_batch import assert_shared
from tests.methods.test_center_offset import Maps, Small
from tests.segmentation.scenes import CLASSES, THINGS, Batch, assert_same, batch_of, classes_of, one_hot, scene

RINGS = [[1, 1], [3, 2], [5, 2]]
BINS = 73
HEADS = {"semantic": CLASSES, "vote": BINS + 1}


def method_of(model: nn.Module, **options: Any) -> PixelConsensus:
    task = PanopticSegmentation(CLASSES, THINGS)
    return PixelConsensus(model, task, torch.optim.SGD, **{"grid": RINGS, "stuff_area": 0, **options})


GRID = method_of(Maps(**{name: torch.zeros(1, channels, 3, 4) for name, channels in HEADS.items()})).grid


def votes_of(vote: Tensor) -> Tensor:
    return F.one_hot(torch.where(vote < 0, BINS, vote), BINS + 1).movedim(-1, 1).float() * 30


def perfect(scenes: list[Segments], padding: tuple[int, int] = (0, 0)) -> dict[str, Tensor]:
    """Heads that say the truth; void and crowds are the class that no scene has."""
    batch = batch_of(scenes, padding=padding)
    truth = targets(batch["panoptic"], batch["category"], batch["crowd"], THINGS, GRID)
    crowd = F.pad(batch["crowd"], (1, 0)).gather(1, batch["panoptic"].flatten(1)).view_as(batch["panoptic"])
    return {"semantic": one_hot(torch.where(crowd, VOID, batch["semantic"])), "vote": votes_of(truth.vote)}


def losses(method: PixelConsensus, batch: Batch) -> dict[str, float]:
    method.progress.clear()
    method.training_step(batch, 0)
    return {k: v.item() for k, v in method.progress.items()}


def test_losses_by_hand() -> None:
    """A stuff row, a void row, and an object of 1x2 pixels at columns 1 and 2, whose centre is column 1."""
    map = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 2, 2, 1]])
    batch = batch_of([Segments.of(map, torch.tensor([2, 0]))])
    maps = {name: torch.zeros(1, channels, 3, 4) for name, channels in HEADS.items()}
    # the cells of the two pixels: 0 (itself), 6 (one to the left); and at one pixel of stuff, no vote
    maps["vote"][0, 0, 2, 1], maps["vote"][0, 6, 2, 2], maps["vote"][0, BINS, 0, 0] = 2.0, 3.0, 4.0
    maps["semantic"][0, 2, 0, 0] = 1.0
    found = losses(method_of(Maps(**maps), semantic_weight=3.0, vote_weight=0.5), batch)

    def right(classes: int, height: float) -> Tensor:
        return torch.tensor(classes - 1 + torch.tensor(height).exp().item()).log() - height

    stuff, thing = 6**-0.5, 2**-0.5
    total = 6 * stuff + 2 * thing
    vote = stuff * (right(74, 4) + 5 * right(74, 0)) + thing * (right(74, 2) + right(74, 3))
    semantic = stuff * (right(CLASSES, 1) + 5 * right(CLASSES, 0)) + thing * 2 * right(CLASSES, 0)
    assert found["vote_loss"] == pytest.approx(float(vote) / total, rel=1e-5)
    assert found["semantic_loss"] == pytest.approx(float(semantic) / total, rel=1e-5)
    assert found["loss"] == pytest.approx(3 * found["semantic_loss"] + 0.5 * found["vote_loss"], rel=1e-5)


def test_where_the_losses_count() -> None:
    """Neither head learns from void, crowds and padding."""
    scenes = [scene(0), scene(1, 52, 70)]
    batch = batch_of(scenes, padding=(4, 6))
    shape = batch["panoptic"].shape
    g = torch.Generator().manual_seed(0)
    method = method_of(Maps(**{name: torch.randn(shape[0], channels, *shape[1:], generator=g) for name, channels in HEADS.items()}))
    method.training_step(batch, 0).backward()
    known = torch.zeros(shape, dtype=torch.bool)
    for i, one in enumerate(scenes):
        known[i, : one.map.shape[0], : one.map.shape[1]] = classes_of(one) != VOID
    for name in HEADS:
        gradient = method.model.maps[name].grad
        assert torch.equal(gradient.abs().sum(1) > 0, known), name


@pytest.mark.parametrize("label", [0, 2])
def test_nothing_to_learn_from(label: int) -> None:
    """All void, or all one crowd: the loss is finite, and the votes get no gradient."""
    method = method_of(Maps(**{name: torch.ones(1, channels, 6, 7) for name, channels in HEADS.items()}))
    one = Segments(torch.full((6, 7), int(label > 0)), torch.tensor([0]), torch.tensor([True]), torch.ones(1))
    loss = method.training_step(batch_of([one]), 0)
    loss.backward()
    assert bool(loss.isfinite()) and not method.model.maps["vote"].grad.any()


def test_votes_are_learnt_at_the_networks_stride() -> None:
    """The truth is made at the size of the votes; what a task adds to its loss comes along."""
    one = scene(0)
    batch = batch_of([one])
    small = F.interpolate(one.map[None, None].double(), (30, 42), mode="nearest-exact")[0].long()
    truth = targets(small, batch["category"], batch["crowd"], THINGS, GRID)
    maps = {"semantic": torch.zeros(1, CLASSES, 30, 42), "vote": votes_of(truth.vote)}
    method = method_of(Maps(**maps))
    assert losses(method, batch)["vote_loss"] < 1e-5
    before = losses(method, batch)["semantic_loss"]
    method.task.terms.append(lambda output, batch: output["semantic"].mean() + 5)
    assert losses(method, batch)["semantic_loss"] == pytest.approx(before + 5)


def test_both_losses_fall() -> None:
    torch.manual_seed(0)
    scenes = [scene(0, 40, 48), scene(1, 40, 48)]
    batch = batch_of(scenes)
    colors = torch.randn(64, 3)
    batch["image"] = colors[batch["panoptic"]].movedim(-1, 1) + 0.1 * torch.rand(2, 3, 40, 48)
    method = method_of(Small())
    assert {k: v.out_channels for k, v in method.model.heads.items()} == HEADS
    optimizer = torch.optim.Adam(method.parameters(), lr=0.01)
    before = losses(method, batch)
    for _ in range(40):
        optimizer.zero_grad()
        method.training_step(batch, 0).backward()
        optimizer.step()
    after = losses(method, batch)
    for name in ("semantic_loss", "vote_loss"):
        assert after[name] < 0.7 * before[name], name
    with torch.no_grad():
        assert all(len(s) > 0 for s in method.predict(batch, "val")["segments"])


@pytest.mark.parametrize("flip", [False, True])
def test_perfect_heads_are_perfect_segments(flip: bool) -> None:
    """Of images of several sizes, padded; the metrics say so, too. A network that answers the mirror image in kind changes nothing."""
    scenes = [scene(0), scene(1, 52, 70), scene(2, 60, 61)]
    batch = batch_of(scenes, padding=(4, 6))
    heads = perfect(scenes, (4, 6))
    # the class that stands for void and crowds covers less, the bands of stuff more
    method = method_of(Answers(heads) if flip else Maps(**heads), stuff_area=250, flip=flip)
    batch["image"][..., 0] = 1  # where the image begins
    output = method.predict(batch, "val")
    assert {k: v.shape[1] for k, v in output.items() if k != "segments"} == HEADS
    assert set(method.predict(batch, "train")) == set(HEADS)
    for one, found in zip(scenes, output["segments"]):
        assert found.map.shape == one.map.shape
        assert_same(found, one)
    method.validation_step(batch, 0)
    values = method.metrics["val_metrics"].compute()
    assert {k: values[k].item() for k in ("pq", "pq_things", "pq_stuff")} == {"pq": 1.0, "pq_things": 1.0, "pq_stuff": 1.0}


class Answers(nn.Module):
    """Gives the maps it holds, mirrored with their votes where the image is (its first column is not 1)."""

    def __init__(self, maps: dict[str, Tensor]) -> None:
        super().__init__()
        self.maps, self.asked = maps, 0

    def reset_heads(self, heads: dict[str, int]) -> None:
        assert heads == HEADS

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        self.asked += 1
        if bool((image[..., 0] == 1).all()):
            return self.maps
        return {"semantic": self.maps["semantic"].flip(-1), "vote": self.maps["vote"].flip(-1)[:, GRID.mirror]}


def test_the_mirror_image_is_averaged() -> None:
    one = scene(0)
    heads = perfect([one])
    model = Answers(heads)
    method, batch = method_of(model, flip=True), batch_of([one])
    batch["image"][..., 0] = 1
    output = method.predict(batch, "test")
    assert model.asked == 2
    for name in HEADS:
        assert torch.allclose(output[name], F.log_softmax(heads[name].float(), 1), atol=1e-5)


@pytest.mark.parametrize("factor", [(1, 3), (3, 1), (2, 2)])
def test_truth_of_another_size(factor: tuple[int, int]) -> None:
    """With a larger truth the segments are those of the network's map, enlarged."""
    small = scene(4)
    large = Segments.of(small.map.repeat_interleave(factor[0], 0).repeat_interleave(factor[1], 1), small.category, small.crowd)
    batch = batch_of([large], sizes=[tuple(small.map.shape)])
    batch["image"] = torch.zeros(1, 3, 70, 88)
    (found,) = method_of(Maps(**perfect([small], (10, 4)))).predict(batch, "test")["segments"]
    assert found.map.shape == large.map.shape
    assert_same(found, large)


def test_coarse_heads_and_padding() -> None:
    """A map at a quarter of the image's size: the votes there are of that map, and what lies in the padding has no vote."""
    coarse = scene(0)
    heads = perfect([coarse], (4, 4))
    heads["vote"][:, :, 60:], heads["vote"][:, :, :, 84:] = 0, 0
    heads["vote"][:, 0, 60:] = heads["vote"][:, 0, :, 84:] = 30  # peaks everywhere
    large = Segments.of(coarse.map.repeat_interleave(4, 0).repeat_interleave(4, 1), coarse.category, coarse.crowd)
    batch = batch_of([large], padding=(16, 16))
    (found,) = method_of(Maps(**heads)).predict(batch, "val")["segments"]
    assert_same(found, large)


def test_no_peaks_and_components() -> None:
    """Things without a peak are void; connected parts need none."""
    scenes = [scene(0)]
    batch, heads = batch_of(scenes), perfect(scenes)
    (found,) = method_of(Maps(**heads), threshold=1e4).predict(batch, "val")["segments"]
    assert bool((found.category >= 2).all()) and len(found) > 0
    by_votes, by_parts = (method_of(Maps(**heads), stuff_area=250, grouping=g) for g in ("votes", "components"))
    for method in (by_votes, by_parts):
        method.validation_step(batch, 0)
    quality = [m.metrics["val_metrics"].compute()["pq_things"].item() for m in (by_votes, by_parts)]
    assert quality[0] == 1 and quality[1] < 0.9


def test_views() -> None:
    """The heat map has one peak, framed, for each object that is found, and all its votes; parts have no heat map."""
    scenes = [scene(0), scene(1, 52, 70)]
    batch, heads = batch_of(scenes, padding=(4, 6)), perfect(scenes, (4, 6))
    for place, one in enumerate(scenes):
        objects = int(((one.areas() > 0) & (one.category < 2) & ~one.crowd).sum())
        method = method_of(Maps(**heads))
        heat, masks = method.views(method.predict(batch, "val"), batch, place)
        assert heat.title == f"votes; peaks framed: {objects}" and heat.values.shape == masks.values.shape == one.map.shape
        assert heat.frames.shape == (objects, 4) and torch.equal(heat.frames, masks.frames)
        assert torch.equal(masks.values > 0, (classes_of(one) < 2))
        assert heat.values.sum().item() == pytest.approx(float((masks.values > 0).sum()), rel=0.02)
        parts = method_of(Maps(**heads), grouping="components")
        (view,) = parts.views(parts.predict(batch, "val"), batch, place)
        assert view.title == f"connected parts: {int(view.values.max())}" and not len(view.frames)


def test_half_precision() -> None:
    """Evaluation is in single precision, within autocast, too."""
    scenes = [scene(3)]
    heads = {k: v.bfloat16() for k, v in perfect(scenes).items()}
    method = method_of(Answers(heads), stuff_area=250)
    batch = batch_of(scenes)
    batch["image"][..., 0] = 1
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = method.predict(batch, "val")["segments"]
        loss = method.training_step(batch, 0)
    assert_same(found, scenes[0])
    assert found.score.dtype == torch.float32 and bool(loss.isfinite())


def test_processes_share_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """However unevenly objects and void are spread."""
    scenes = [scene(0), scene(4)]
    scenes[1].map[:, 30:] = 0
    g = torch.Generator().manual_seed(0)
    maps = {name: torch.randn(2, channels, *scenes[0].map.shape, generator=g) for name, channels in HEADS.items()}

    def gradients(places: list[int]) -> dict[str, Tensor]:
        method = method_of(Maps(**{k: v[places] for k, v in maps.items()}))
        method.training_step(batch_of([scenes[i] for i in places]), 0).backward()
        return {k: v.grad for k, v in method.model.maps.items()}

    assert_shared(monkeypatch, gradients, 2)


def test_settings() -> None:
    """The option's values are the defaults, and values out of range are refused in a sentence."""
    option = yaml.safe_load((Path(__file__).parents[2] / "conf/method/pixel_consensus.yaml").read_text())
    keywords = inspect.signature(PixelConsensus.__init__).parameters.values()
    defaults = {p.name: p.default for p in keywords if p.kind is p.KEYWORD_ONLY}
    defaults["grid"] = [list(level) for level in defaults["grid"]]
    assert defaults == {k: v for k, v in option.items() if k[0] != "_"}
    maps = {name: torch.zeros(1, channels, 3, 4) for name, channels in HEADS.items()}
    wrong: dict[str, Any] = {"threshold": 0.0, "top_k": 74, "stuff_area": -1, "semantic_weight": -1.0}
    wrong |= {"vote_weight": float("nan"), "area_power": -0.5, "center": "masss", "grouping": "vote"}
    for name, value in wrong.items():
        with pytest.raises(UserError, match=rf"^method\.{name}=.*\.$"):
            method_of(Maps(**maps), **{name: value})
    with pytest.raises(UserError, match="voting grid"):
        method_of(Maps(**maps), grid=[[1, 1], [5, 1]])
