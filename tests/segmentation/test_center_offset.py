"""Centres and offsets: worked cases, a slow twin, symmetries, and perfect heads that give the truth back."""

import math

import pytest
import torch
from torch import Tensor

from papermix.segmentation.center_offset import Targets, fuse, group, peaks, targets
from papermix.segmentation.segments import VOID, Segments
from tests.segmentation.scenes import CLASSES, THINGS, assert_same, batch_of, classes_of, one_hot, scene


def targets_of(scenes: list[Segments], sigma: float = 4.0) -> Targets:
    batch = batch_of(scenes)
    return targets(batch["panoptic"], batch["category"], batch["crowd"], THINGS, sigma)


def found_in(semantic: Tensor, center: Tensor, offset: Tensor, window: int = 7, stuff_area: int = 0) -> Segments:
    """Segments of an image from logits [C, H, W], [1, H, W], [2, H, W]."""
    points, score = peaks(center[0], 0.1, window, 200)
    return fuse(semantic, group(offset, points), score, THINGS, stuff_area)


def test_rectangle_by_hand() -> None:
    """Rows 1 to 3 and columns 2 to 5: its centre is (2, 3.5)."""
    map = torch.ones(6, 9, dtype=torch.int64)
    map[1:4, 2:6] = 2
    map[5] = 0
    truth = targets_of([Segments.of(map, torch.tensor([2, 0]))], sigma=2.0)
    assert truth.offset[0, :, 1, 2].tolist() == [1.0, 1.5]
    assert truth.offset[0, :, 3, 5].tolist() == [-1.0, -1.5]
    assert truth.offset[0, :, 0, 0].tolist() == [0.0, 0.0]
    assert truth.center[0, 0, 2, 3] == truth.center[0, 0, 2, 4] == truth.center.max()
    assert truth.center[0, 0, 2, 3] == pytest.approx(math.exp(-0.25 / 8))
    assert truth.center[0, 0, 4, 1] == pytest.approx(math.exp(-(4 + 6.25) / 8))
    assert truth.offset_weight[0, 0].sum() == 12 and bool((truth.offset_weight[0, 0, 1:4, 2:6] == 1).all())
    assert bool((truth.center_weight[0, 0, :5] == 1).all()) and not truth.center_weight[0, 0, 5].any()


@pytest.mark.parametrize("sigma", [0.7, 3.0, 8.0])
def test_targets_equal_their_definition(sigma: float) -> None:
    scenes = [scene(0), scene(1)]
    truth = targets_of(scenes, sigma)
    for i, one in enumerate(scenes):
        y, x = torch.meshgrid(*(torch.arange(n).double() for n in one.map.shape), indexing="ij")
        center, offset, things = torch.zeros_like(y), torch.zeros(2, *y.shape, dtype=torch.float64), torch.zeros_like(y)
        for number in range(1, len(one) + 1):
            mask = one.map == number
            if one.category[number - 1] in THINGS and not one.crowd[number - 1] and mask.any():
                cy, cx = y[mask].mean(), x[mask].mean()
                near = ((y - cy).abs() <= 3 * sigma) & ((x - cx).abs() <= 3 * sigma)
                center = torch.maximum(center, torch.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * sigma**2)) * near)
                offset[:, mask] = torch.stack([cy - y[mask], cx - x[mask]])
                things[mask] = 1
        known = (one.map > 0) & (one.map != 1 + one.crowd.nonzero().item())
        assert torch.allclose(truth.center[i, 0].double(), center, atol=1e-5)
        assert torch.allclose(truth.offset[i].double(), offset, atol=1e-4)
        assert torch.equal(truth.offset_weight[i, 0].double(), things) and 0 < things.sum() < things.numel()
        assert torch.equal(truth.center_weight[i, 0], known.float())


@pytest.mark.parametrize("axis", [1, 2])
def test_targets_of_a_mirror_image(axis: int) -> None:
    one = scene(3)
    there = targets_of([one])
    back = targets_of([Segments.of(one.map.flip(axis - 1), one.category, one.crowd)])
    sign = torch.ones(1, 2, 1, 1)
    sign[:, axis - 1] = -1
    assert torch.allclose(there.center.flip(axis + 1), back.center, atol=1e-5)
    assert torch.allclose(there.offset.flip(axis + 1) * sign, back.offset, atol=1e-4)
    assert torch.equal(there.center_weight.flip(axis + 1), back.center_weight)


def test_what_is_no_object() -> None:
    """Crowds, stuff, void, padding of the list of segments, segments that have no pixel."""
    map = torch.tensor([[[1, 1, 2, 2, 0, 0]], [[0, 0, 0, 0, 0, 0]]])
    category, crowd = torch.tensor([[0, 2, 1], [-1, -1, -1]]), torch.tensor([[True, False, False], [False, False, False]])
    truth = targets(map, category, crowd, THINGS, 8.0)
    assert not truth.center.any() and not truth.offset.any() and not truth.offset_weight.any()
    assert truth.center_weight[0, 0, 0].tolist() == [0, 0, 1, 1, 0, 0] and not truth.center_weight[1].any()
    none = targets(torch.zeros(2, 4, 5, dtype=torch.int64), category[:, :0], crowd[:, :0], THINGS, 8.0)
    assert [t.shape[1:] for t in none] == [(1, 4, 5), (2, 4, 5), (1, 4, 5), (1, 4, 5)] and not any(bool(t.any()) for t in none)


@pytest.mark.parametrize("seed", range(12))
def test_perfect_heads_give_the_truth_back(seed: int) -> None:
    one = scene(seed)
    truth = targets_of([one])
    found = found_in(one_hot(classes_of(one)), truth.center[0], truth.offset[0])
    assert_same(found, one)
    assert bool((found.areas() > 0).all()) and (found.category < 2).sum() >= 4
    assert torch.allclose(found.score[found.category >= 2], torch.ones(()))
    assert bool((found.score[found.category < 2] > 0.9).all())


@pytest.mark.parametrize("axis", [1, 2])
def test_segments_of_a_mirror_image(axis: int) -> None:
    """Noisy heads, mirrored: the same pixels belong together."""
    one = scene(5)
    truth = targets_of([one])
    g = torch.Generator().manual_seed(0)
    center = truth.center[0] + 0.02 * torch.rand(truth.center[0].shape, generator=g)
    offset = truth.offset[0] + torch.randn(truth.offset[0].shape, generator=g)
    logits = one_hot(one.semantic(), sure=2.0) + torch.randn(CLASSES, *one.map.shape, generator=g)
    sign = torch.ones(2, 1, 1)
    sign[axis - 1] = -1
    there = found_in(logits, center, offset)
    back = found_in(logits.flip(axis), center.flip(axis), offset.flip(axis) * sign)
    mirrored = Segments.of(there.map.flip(axis - 1), there.category, score=there.score)
    assert_same(back, mirrored)
    assert_same(mirrored, back)
    assert torch.allclose(back.score.sort().values, there.score.sort().values)


def test_peaks() -> None:
    heat = torch.zeros(12, 20)
    heat[2, 3], heat[2, 6], heat[2, 7], heat[9, 15], heat[11, 0] = 0.9, 0.5, 0.6, 0.95, 0.1
    points, score = peaks(heat, 0.1, 7, 200)
    assert points.tolist() == [[9, 15], [2, 3], [2, 7]]  # 0.5 lies beside a higher one, 0.1 is not above the threshold
    assert score.tolist() == pytest.approx([0.95, 0.9, 0.6])
    assert peaks(heat, 0.1, 9, 200)[0].tolist() == [[9, 15], [2, 3]]
    assert peaks(heat, 0.1, 1, 200)[0].tolist() == [[9, 15], [2, 3], [2, 7], [2, 6]]
    assert peaks(heat, 0.1, 7, 2)[0].tolist() == [[9, 15], [2, 3]]
    assert peaks(heat, 0.95, 7, 200)[0].shape == (0, 2) and peaks(heat, 0.95, 7, 200)[1].shape == (0,)
    assert peaks(heat - 1, 0.0, 7, 200)[0].shape == (0, 2)


def test_a_plateau_is_one_peak() -> None:
    """Heights tie between pixels of a coarse map, and in reduced precision."""
    heat = torch.zeros(10, 30)
    heat[3:6, 4:8] = 0.7
    heat[4, 12:29] = 0.6
    assert peaks(heat, 0.1, 7, 200)[0].tolist() == [[3, 4], [4, 12]]


def test_group_by_hand() -> None:
    offset = torch.zeros(2, 1, 6)
    offset[1, 0, 5] = -5.0
    assert group(offset, torch.tensor([[0, 4], [0, 1]])).tolist() == [[2, 2, 2, 1, 1, 2]]
    assert group(offset, torch.zeros(0, 2, dtype=torch.int64)).tolist() == [[0] * 6]
    # (3, 0) lies nearer to row 3 than to row 0, however far the columns
    assert group(torch.tensor([[[3.0]], [[0.0]]]), torch.tensor([[0, 2], [3, 1]])).tolist() == [[2]]


def test_chunks_change_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    offset, centers = 30 * torch.randn(2, 23, 31, generator=g), 25 * torch.rand(17, 2, generator=g)
    whole = group(offset, centers, chunk=10**9)
    y, x = torch.meshgrid(torch.arange(23), torch.arange(31), indexing="ij")
    distance = torch.stack([(y + offset[0] - cy) ** 2 + (x + offset[1] - cx) ** 2 for cy, cx in centers])
    assert torch.equal(whole, distance.argmin(0) + 1) and len(whole.unique()) == 17
    for chunk in (1, 17, 18, 1000, 23 * 31 * 17 - 1):
        assert torch.equal(group(offset, centers, chunk), whole)


def test_fuse_by_hand() -> None:
    """Majority of thing pixels, stuff inside an instance stays stuff, small stuff and things without an instance are void."""
    semantic = torch.tensor([[0, 0, 1, 2, 2, 2], [1, 1, 2, 3, 2, 2], [0, 1, 1, 2, 2, 2]])
    instance = torch.tensor([[1, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2], [3, 0, 0, 0, 0, 0]])
    # four instances: the last has no pixel; probabilities 1/2 and 1/8, so that means are exact
    logits = one_hot(semantic, sure=math.log(4))
    score = torch.tensor([0.8, 0.6, 0.4, 0.2])
    found = fuse(logits, instance, score, THINGS, stuff_area=2)
    assert found.map.tolist() == [[1, 1, 1, 4, 4, 4], [2, 2, 4, 0, 4, 4], [3, 0, 0, 4, 4, 4]]
    assert found.category.tolist() == [0, 1, 0, 2]
    assert not found.crowd.any()
    # the mean of 1/2, 1/2, 1/8; of 1/2, 1/2; ...
    assert found.score.tolist() == pytest.approx([0.8 * 0.375, 0.6 * 0.5, 0.4 * 0.5, 0.5])
    assert fuse(logits, instance, score, THINGS, stuff_area=1).map[1, 3] == 5
    assert fuse(logits, instance, score, THINGS, stuff_area=9).category.tolist() == [0, 1, 0, 2]
    assert fuse(logits, instance, score, THINGS, stuff_area=10).category.tolist() == [0, 1, 0]


def test_no_things_no_peaks_all_void() -> None:
    one = scene(2)
    logits, truth = one_hot(one.semantic()), targets_of([one])
    flat = torch.zeros_like(truth.center[0])
    stuff = found_in(logits, flat, truth.offset[0])
    assert bool((stuff.category >= 2).all())
    assert torch.equal(stuff.map == 0, (one.semantic() < 2))
    points, score = peaks(truth.center[0, 0], 0.1, 7, 200)
    every = fuse(logits, group(truth.offset[0], points), score, [], 0)
    assert torch.equal(every.semantic(), logits.argmax(0)) and len(every) == len(logits.argmax(0).unique())
    nothing = fuse(logits, group(truth.offset[0], points[:0]), score[:0], range(CLASSES), 0)
    assert len(nothing) == 0 and not nothing.map.any() and bool((nothing.semantic() == VOID).all())
