"""Segments: classes, areas, masks, boxes, numbering, and the way from a batch and a network to the truth's size."""

import pytest
import torch

from papermix.segmentation.segments import VOID, Segments, boxes_of, semantic_of, to_truth, truth_of
from tests.segmentation.scenes import batch_of, scene

MAP = torch.tensor([[0, 1, 1, 3], [2, 2, 0, 3], [2, 2, 0, 3]])
THREE = Segments(MAP, torch.tensor([7, 0, 7]), torch.tensor([False, True, False]), torch.tensor([0.25, 0.5, 0.75]))


def test_by_hand() -> None:
    assert len(THREE) == 3
    assert THREE.semantic().tolist() == [[VOID, 7, 7, 7], [0, 0, VOID, 7], [0, 0, VOID, 7]]
    assert THREE.areas().tolist() == [2, 4, 3]
    assert torch.equal(THREE.masks(), torch.stack([MAP == 1, MAP == 2, MAP == 3]))
    plain = Segments.of(MAP, torch.tensor([7, 0, 7]))
    assert plain.crowd.tolist() == [False] * 3 and plain.score.tolist() == [1.0] * 3 and plain.score.dtype == torch.float32
    copy = THREE.cpu()
    assert all(torch.equal(getattr(copy, name), getattr(THREE, name)) for name in ("map", "category", "crowd", "score"))


def test_no_segments() -> None:
    none = Segments.of(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert len(none) == 0 and none.areas().shape == (0,) and none.masks().shape == (0, 2, 3)
    assert bool((none.semantic() == VOID).all()) and none.compact() is none


def test_semantic_of_many() -> None:
    """Leading dimensions, and classes below 0 where an image has fewer segments."""
    maps = torch.stack([MAP, (MAP > 0).long()])
    classes = semantic_of(maps, torch.tensor([[7, 0, 7], [5, -1, -1]]))
    assert torch.equal(classes[0], THREE.semantic())
    assert torch.equal(classes[1], torch.where(MAP > 0, 5, VOID))
    assert torch.equal(semantic_of(maps[None], torch.tensor([[[7, 0, 7], [5, -1, -1]]]))[0], classes)


def test_compact_drops_what_has_no_pixel() -> None:
    gap = Segments(torch.tensor([[0, 2, 5], [5, 0, 4]]), torch.arange(10, 16), torch.arange(6) == 4, torch.arange(6) / 10)
    full = gap.compact()
    assert full.map.tolist() == [[0, 1, 3], [3, 0, 2]]
    assert full.category.tolist() == [11, 13, 14]
    assert full.crowd.tolist() == [False, False, True]
    assert full.score.tolist() == pytest.approx([0.1, 0.3, 0.4])
    assert torch.equal(full.semantic(), gap.semantic())
    assert full.compact() is full


def test_boxes() -> None:
    assert boxes_of(THREE.masks()).tolist() == [[1, 0, 3, 1], [0, 1, 2, 3], [3, 0, 4, 3]]
    assert boxes_of(torch.zeros(2, 3, 4, dtype=torch.bool)).tolist() == [[0, 0, 0, 0], [0, 0, 0, 0]]
    assert boxes_of(torch.zeros(0, 3, 4, dtype=torch.bool)).shape == (0, 4)
    assert boxes_of(torch.ones(1, 3, 4, dtype=torch.bool)).tolist() == [[0, 0, 4, 3]]


@pytest.mark.parametrize("seed", range(3))
def test_boxes_equal_their_definition(seed: int) -> None:
    one = scene(seed).compact()
    for mask, box in zip(one.masks(), boxes_of(one.masks())):
        y, x = mask.nonzero().unbind(1)
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_truth_of_a_batch() -> None:
    """Padding of maps and of lists of segments goes."""
    scenes = [scene(0, 40, 50), scene(1, 30, 64)]
    scenes[1] = scenes[1].compact()
    assert len(scenes[0]) != len(scenes[1])
    batch = batch_of(scenes, padding=(8, 3))
    assert batch["panoptic"].shape == (2, 48, 67)
    for i, one in enumerate(scenes):
        back = truth_of(batch, i)
        assert torch.equal(back.map, one.map) and torch.equal(back.category, one.category) and torch.equal(back.crowd, one.crowd)
        assert back.score.tolist() == [1.0] * len(one)


def test_to_truth_cuts_the_padding_off() -> None:
    sizes = torch.tensor([[8, 7], [5, 10]])
    batch = {"image": torch.zeros(2, 3, 8, 10), "size": sizes, "truth_size": sizes}
    output = torch.randn(2, 4, 8, 10)
    first, second = to_truth(output, batch)
    assert torch.equal(first, output[0, :, :, :7]) and torch.equal(second, output[1, :, :5])


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_to_truth_resizes(mode: str) -> None:
    """A map that rises linearly over the image still does at the truth's size, whatever the padding."""
    size, truth = (16, 24), (32, 12)
    batch = {"image": torch.zeros(1, 3, 32, 32), "size": torch.tensor([size]), "truth_size": torch.tensor([truth])}

    def ramp(height: int, width: int, stride: float) -> torch.Tensor:
        """Coordinates in pixels of the image, at the middles of cells of this side."""
        y, x = (torch.arange(height) + 0.5) * stride, (torch.arange(width) + 0.5) * stride
        return torch.stack([y[:, None].expand(height, width), x.expand(height, width)])

    (found,) = to_truth(ramp(16, 16, 2.0)[None], batch, mode)
    assert found.shape == (2, *truth)
    y, x = (torch.arange(32) + 0.5) * 0.5, (torch.arange(12) + 0.5) * 2.0
    inner = (slice(4, -4), slice(2, -2))  # beyond the middles of the outermost cells maps are constant
    near = {"bilinear": 1e-4, "nearest": 2.0}[mode]
    assert torch.allclose(found[0][inner], y[:, None].expand(truth)[inner], atol=near)
    assert torch.allclose(found[1][inner], x.expand(truth)[inner], atol=near)
    if mode == "nearest":
        assert set(found.flatten().tolist()) <= set(ramp(16, 16, 2.0).flatten().tolist())
