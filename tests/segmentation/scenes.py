"""Random scenes of blobs for the tests of segments: stuff in bands, touching objects of one class, crowds, void."""

import torch
import torch.nn.functional as F
from torch import Tensor

from papermix.segmentation.segments import VOID, Segments

Batch = dict[str, Tensor]
# classes: things 0 and 1, stuff 2, 3, 4
THINGS = [0, 1]
CLASSES = 5


def scene(seed: int, height: int = 60, width: int = 84, apart: float = 5.0) -> Segments:
    """Two bands of stuff, up to eight ellipses that hide each other, two touching squares, a crowd, and void at a corner.

    The centres of mass of the objects lie at least ``apart`` pixels from each other along one axis.
    """
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    horizon = int(torch.randint(height // 4, 3 * height // 4, (), generator=g))
    map = torch.where(y < horizon, 1, 2)
    category, crowd = [2, 3], [False, False]

    def paint(mask: Tensor, kind: int, group: bool = False) -> None:
        category.append(kind)
        crowd.append(group)
        map[mask] = len(category)

    for i in range(8):
        cy, cx, ry, rx = (torch.rand(4, generator=g) * torch.tensor([height, width, 9, 9]) + torch.tensor([0, 0, 2, 2])).tolist()
        paint(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1, i % 2)
    top, left = int(torch.randint(0, height - 10, (), generator=g)), int(torch.randint(0, width - 20, (), generator=g))
    for side in range(2):
        paint((y >= top) & (y < top + 9) & (x >= left + 8 * side) & (x < left + 8 * side + 8), 1)
    paint((y >= height - 12) & (x >= width - 20) & (x < width - 6), 0, group=True)
    map[(y < 7) & (x < 11)] = 0

    centers: list[Tensor] = []
    for number in range(3, len(category)):
        mask = map == number
        if crowd[number - 1] or not bool(mask.any()):
            continue
        center = mask.nonzero().float().mean(0)
        if all((center - other).abs().max() >= apart for other in centers):
            centers.append(center)
        else:  # its place goes to the band
            map[mask] = torch.where(y < horizon, 1, 2)[mask]
    return Segments.of(map, torch.tensor(category), torch.tensor(crowd))


def batch_of(scenes: list[Segments], sizes: list[tuple[int, int]] | None = None, padding: tuple[int, int] = (0, 0)) -> Batch:
    """A batch of these truths, with images of zeros: ``sizes`` are those of the images where they are not the truth's."""
    truths = [tuple(s.map.shape) for s in scenes]
    sizes = sizes or truths
    high, wide = (max(n) + p for n, p in zip(zip(*truths), padding))
    height, width = (max(n) + p for n, p in zip(zip(*sizes), padding))
    slots = max(len(s) for s in scenes)

    def pad(map: Tensor, value: int) -> Tensor:
        return F.pad(map, (0, wide - map.shape[1], 0, high - map.shape[0]), value=value)

    return {
        "image": torch.zeros(len(scenes), 3, height, width),
        "size": torch.tensor(sizes),
        "truth_size": torch.tensor(truths),
        "semantic": torch.stack([pad(s.semantic(), VOID) for s in scenes]),
        "panoptic": torch.stack([pad(s.map, 0) for s in scenes]),
        "category": torch.stack([F.pad(s.category, (0, slots - len(s)), value=-1) for s in scenes]),
        "crowd": torch.stack([F.pad(s.crowd, (0, slots - len(s))) for s in scenes]),
    }


def classes_of(one: Segments) -> Tensor:
    """Class of every pixel, void also where a crowd is."""
    return torch.where(F.pad(one.crowd, (1, 0))[one.map], VOID, one.semantic())


def one_hot(semantic: Tensor, sure: float = 30.0) -> Tensor:
    """Logits [..., C, H, W] of these classes; void gets the last class, which no scene has."""
    classes = torch.where(semantic == VOID, CLASSES - 1, semantic)
    return F.one_hot(classes, CLASSES).movedim(-1, -3) * sure


def assert_same(found: Segments, truth: Segments) -> None:
    """Every true segment is found, pixel by pixel and with its class, and nothing else is; void and crowds may hold anything."""
    known = (truth.map > 0) & ~F.pad(truth.crowd, (1, 0))[truth.map]
    numbers = truth.map[known].unique()
    pairs = torch.stack([truth.map[known], found.map[known]], -1).unique(dim=0)
    assert (pairs[:, 1] > 0).all(), "a pixel has no segment"
    assert pairs[:, 0].tolist() == numbers.tolist(), "a segment is split"
    assert len(pairs[:, 1].unique()) == len(numbers), "segments are merged"
    assert found.category[pairs[:, 1] - 1].tolist() == truth.category[numbers - 1].tolist()
