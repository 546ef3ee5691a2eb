"""The method of centres and offsets: its losses, where they count, that they fall, and the way back to the truth's size."""

import inspect
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from lightning_modules.center_offset import CenterOffset
from lightning_modules.dense_tasks import PanopticSegmentation
from papermix.errors import UserError
from papermix.segmentation.center_offset import targets
from papermix.segmentation.segments import VOID, Segments, truth_of
from tests.methods.joint_batch import assert_shared
from tests.segmentation.scenes import CLASSES, THINGS, Batch, assert_same, batch_of, classes_of, one_hot, scene

HEADS = {"semantic": CLASSES, "center": 1, "offset": 2}


class Maps(nn.Module):
    """Gives the maps it holds, whatever the image."""

    def __init__(self, **maps: Tensor) -> None:
        super().__init__()
        self.maps = nn.ParameterDict({k: nn.Parameter(v.float()) for k, v in maps.items()})

    def reset_heads(self, heads: dict[str, int]) -> None:
        assert heads == {k: v.shape[1] for k, v in self.maps.items()}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return dict(self.maps)


class Small(nn.Module):
    """Three convolutions at half the image's size, then the heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential()
        for chans, side, stride in ((3, 3, 2), (24, 5, 1), (24, 5, 1)):
            self.body.extend([nn.Conv2d(chans, 24, side, stride, side // 2), nn.BatchNorm2d(24), nn.ReLU()])
        self.heads = nn.ModuleDict()

    def reset_heads(self, heads: dict[str, int]) -> None:
        self.heads = nn.ModuleDict({name: nn.Conv2d(24, channels, 1) for name, channels in heads.items()})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.body(image)
        return {name: head(x) for name, head in self.heads.items()}


def method_of(model: nn.Module, **options: float) -> CenterOffset:
    task = PanopticSegmentation(CLASSES, THINGS)
    return CenterOffset(model, task, torch.optim.SGD, **{"sigma": 4.0, "stuff_area": 0, **options})


def perfect(scenes: list[Segments], padding: tuple[int, int] = (0, 0)) -> dict[str, Tensor]:
    """Heads that say the truth; void and crowds are the class that no scene has."""
    batch = batch_of(scenes, padding=padding)
    truth = targets(batch["panoptic"], batch["category"], batch["crowd"], THINGS, 4.0)
    crowd = F.pad(batch["crowd"], (1, 0)).gather(1, batch["panoptic"].flatten(1)).view_as(batch["panoptic"])
    classes = torch.where(crowd, VOID, batch["semantic"])
    return {"semantic": one_hot(classes), "center": truth.center, "offset": truth.offset}


def losses(method: CenterOffset, batch: Batch) -> dict[str, float]:
    method.progress.clear()
    method.training_step(batch, 0)
    return {k: v.item() for k, v in method.progress.items()}


def test_losses_by_hand() -> None:
    """A stuff row, a void row, and an object of 1x2 pixels at columns 1 and 2, whose centre lies between them."""
    map = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 2, 2, 1]])
    batch = batch_of([Segments.of(map, torch.tensor([2, 0]))])
    zeros = {name: torch.zeros(1, channels, 3, 4) for name, channels in HEADS.items()}
    found = losses(method_of(Maps(**zeros), sigma=1.0, center_weight=3.0, offset_weight=0.5), batch)

    def gauss(dy: float, dx: float) -> float:
        return float(torch.exp(torch.tensor(-(dy**2 + dx**2) / 2)))

    row = [gauss(0, dx) ** 2 for dx in (-1.5, -0.5, 0.5, 1.5)]
    center = (sum(row) + sum(gauss(-2, dx) ** 2 for dx in (-1.5, -0.5, 0.5, 1.5))) / 8
    assert found["center_loss"] == pytest.approx(center, rel=1e-5)
    assert found["offset_loss"] == pytest.approx(0.5)  # (0, 0.5) and (0, -0.5)
    assert found["semantic_loss"] == pytest.approx(torch.tensor(float(CLASSES)).log().item())
    assert found["loss"] == pytest.approx(found["semantic_loss"] + 3 * center + 0.25)


def test_where_the_losses_count() -> None:
    """Centres do not learn from void, crowds and padding; offsets learn from nothing but objects."""
    scenes = [scene(0), scene(1, 52, 70)]
    batch = batch_of(scenes, padding=(4, 6))
    shape = batch["panoptic"].shape
    g = torch.Generator().manual_seed(0)
    maps = {name: torch.randn(shape[0], channels, *shape[1:], generator=g) for name, channels in HEADS.items()}
    method = method_of(Maps(**maps))
    method.training_step(batch, 0).backward()
    gradients = {k: v.grad != 0 for k, v in method.model.maps.items()}
    known, things = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for i, one in enumerate(scenes):
        height, width = one.map.shape
        known[i, :height, :width] = classes_of(one) != VOID
        things[i, :height, :width] = classes_of(one) < 2
    assert torch.equal(gradients["center"][:, 0], known)
    assert torch.equal(gradients["offset"][:, 0], things) and torch.equal(gradients["offset"][:, 1], things)


@pytest.mark.parametrize("label", [0, 2])
def test_nothing_to_learn_from(label: int) -> None:
    """All void, or all one crowd: the losses are finite, and centres and offsets get no gradient."""
    maps = {name: torch.ones(1, channels, 6, 7) for name, channels in HEADS.items()}
    method = method_of(Maps(**maps))
    one = Segments(torch.full((6, 7), int(label > 0)), torch.tensor([0]), torch.tensor([True]), torch.ones(1))
    loss = method.training_step(batch_of([one]), 0)
    loss.backward()
    assert bool(loss.isfinite())
    assert not method.model.maps["center"].grad.any() and not method.model.maps["offset"].grad.any()


def test_all_three_losses_fall() -> None:
    torch.manual_seed(0)
    scenes = [scene(0, 40, 48), scene(1, 40, 48)]
    batch = batch_of(scenes)
    noise = torch.rand(2, 3, 40, 48)
    colors = torch.randn(64, 3)
    batch["image"] = colors[batch["panoptic"]].movedim(-1, 1) + 0.1 * noise
    method = method_of(Small(), center_weight=10.0, offset_weight=0.2)
    assert {k: v.out_channels for k, v in method.model.heads.items()} == HEADS
    optimizer = torch.optim.Adam(method.parameters(), lr=0.01)
    before = losses(method, batch)
    for _ in range(60):
        optimizer.zero_grad()
        method.training_step(batch, 0).backward()
        optimizer.step()
    after = losses(method, batch)
    for name in ("semantic_loss", "center_loss", "offset_loss"):
        assert after[name] < 0.85 * before[name], name
    with torch.no_grad():
        assert all(len(s) > 0 for s in method.predict(batch, "val")["segments"])


def test_perfect_heads_are_perfect_segments() -> None:
    """Of images of several sizes, padded; the metrics say so, too."""
    scenes = [scene(0), scene(1, 52, 70), scene(2, 60, 61)]
    batch = batch_of(scenes, padding=(4, 6))
    # the class that stands for void and crowds covers less, the bands of stuff more
    method = method_of(Maps(**perfect(scenes, (4, 6))), stuff_area=250)
    output = method.predict(batch, "val")
    assert {k: v.shape[1] for k, v in output.items() if k != "segments"} == HEADS
    assert set(method.predict(batch, "train")) == set(HEADS)
    for i, found in enumerate(output["segments"]):
        assert found.map.shape == scenes[i].map.shape
        assert_same(found, truth_of(batch, i))
    method.validation_step(batch, 0)
    values = method.metrics["val_metrics"].compute()
    assert {k: values[k].item() for k in ("pq", "pq_things", "pq_stuff")} == {"pq": 1.0, "pq_things": 1.0, "pq_stuff": 1.0}


def test_peaks_in_the_padding_do_not_count() -> None:
    """Two objects at the image's edge, and beyond it a centre map higher than theirs."""
    map = torch.ones(20, 20, dtype=torch.int64)
    map[:10, 17:], map[10:, 17:] = 2, 3
    one = Segments.of(map, torch.tensor([2, 0, 0]))
    heads = perfect([one], (4, 4))
    heads["center"][:, :, 20:], heads["center"][:, :, :, 20:] = 2, 2
    (found,) = method_of(Maps(**heads)).predict(batch_of([one], padding=(4, 4)), "val")["segments"]
    assert_same(found, one)


def test_views() -> None:
    """The centre map without the padding, and the windows of its peaks."""
    scenes = [scene(0), scene(1, 52, 70)]
    batch = batch_of(scenes, padding=(4, 6))
    heads = perfect(scenes, (4, 6))
    for place, one in enumerate(scenes):
        method = method_of(Maps(**heads), window=5)
        (view,) = method.views(method.predict(batch, "val"), batch, place)
        objects = int(((one.areas() > 0) & (one.category < 2) & ~one.crowd).sum())
        assert view.title == f"centre map; peaks framed: {objects}" and view.values.shape == one.map.shape
        middle = (view.frames[:, :2] + view.frames[:, 2:]) // 2
        assert bool((view.values[middle[:, 0], middle[:, 1]] > 0.9).all())
        assert bool((view.frames[:, 2:] - view.frames[:, :2] == 4).all())


@pytest.mark.parametrize("factor", [(1, 3), (3, 1), (2, 2)])
def test_truth_of_another_size(factor: tuple[int, int]) -> None:
    """Offsets count in pixels of the image: with a larger truth the segments are those of the image, enlarged.

    Touching objects of one class are told apart by their numbers alone, so there every pixel is exact; so are straight edges.
    """
    map = torch.ones(30, 44, dtype=torch.int64)
    map[6:24, 5:20], map[6:24, 20:38] = 2, 3
    small = Segments.of(map, torch.tensor([2, 1, 1]))
    large = Segments.of(map.repeat_interleave(factor[0], 0).repeat_interleave(factor[1], 1), small.category)
    batch = batch_of([large], sizes=[(30, 44)])
    batch["image"] = torch.zeros(1, 3, 40, 48)
    (found,) = method_of(Maps(**perfect([small], (10, 4)))).predict(batch, "test")["segments"]
    assert found.map.shape == large.map.shape
    # interpolation rounds the corners off, within half a pixel of the image
    corners = torch.zeros_like(large.map, dtype=torch.bool)
    for y in (6 * factor[0], 24 * factor[0]):
        for x in (5 * factor[1], 38 * factor[1]):
            corners[y - factor[0] : y + factor[0], x - factor[1] : x + factor[1]] = True
    found.map[corners], large.map[corners] = 0, 0
    assert_same(found, large)


def test_truth_of_a_third_of_the_size() -> None:
    """A pixel of the truth is what the middle of its 3x3 pixels is."""
    map = torch.ones(30, 45, dtype=torch.int64)
    map[6:24, 5:19], map[6:24, 19:38] = 2, 3
    one = Segments.of(map, torch.tensor([2, 1, 1]))
    small = Segments.of(map[1::3, 1::3].contiguous(), one.category)
    (found,) = method_of(Maps(**perfect([one]))).predict(batch_of([small], sizes=[(30, 45)]), "val")["segments"]
    assert_same(found, small)


def test_coarse_heads() -> None:
    """Maps at a quarter of the image's size: objects as large as 20 pixels come back nearly whole."""
    map = torch.ones(64, 96, dtype=torch.int64)
    map[10:40, 8:32], map[10:40, 32:60], map[44:62, 60:90] = 2, 3, 4
    one = Segments.of(map, torch.tensor([2, 1, 1, 0]))
    heads = {k: F.avg_pool2d(v.float(), 4) for k, v in perfect([one]).items()}
    (found,) = method_of(Maps(**heads)).predict(batch_of([one]), "val")["segments"]
    assert sorted(found.category.tolist()) == [0, 1, 1, 2]
    for mask in one.masks():
        overlap = (found.masks() & mask).sum((1, 2)) / (found.masks() | mask).sum((1, 2))
        assert overlap.max() > 0.85


def test_no_peaks() -> None:
    """Things without a centre are void; the metrics take that."""
    scenes = [scene(0)]
    heads = perfect(scenes)
    method = method_of(Maps(**{**heads, "center": heads["center"] * 0.05}))
    batch = batch_of(scenes)
    (found,) = method.predict(batch, "val")["segments"]
    assert bool((found.category >= 2).all()) and len(found) > 0
    method.validation_step(batch, 0)
    assert method.metrics["val_metrics"].compute()["pq_things"] == 0


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

    assert_shared(monkeypatch, gradients, 3)


def test_settings() -> None:
    """The option's values are the defaults, and values out of range are refused in a sentence that names the key."""
    option = yaml.safe_load((Path(__file__).parents[2] / "conf/method/center_offset.yaml").read_text())
    keywords = inspect.signature(CenterOffset.__init__).parameters.values()
    assert {p.name: p.default for p in keywords if p.kind is p.KEYWORD_ONLY} == {k: v for k, v in option.items() if k[0] != "_"}
    maps = {name: torch.zeros(1, channels, 3, 4) for name, channels in HEADS.items()}
    wrong = {"sigma": 0.0, "window": 6, "top_k": 0, "threshold": -0.1, "stuff_area": -1}
    wrong |= {"center_weight": -1.0, "offset_weight": float("nan")}
    for name, value in wrong.items():
        with pytest.raises(UserError, match=rf"^method\.{name}=.*\.$"):
            method_of(Maps(**maps), **{name: value})
