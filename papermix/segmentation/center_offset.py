"""Instances as centres and offsets: every pixel of a thing points at its object's centre, a heat map says where centres are.

Panoptic-DeepLab: A Simple, Strong, and Fast Baseline for Bottom-Up Panoptic Segmentation (Cheng et al., CVPR 2020, arXiv
1911.10194), section 3. Coordinates are (y, x) in pixels, 0 at the middle of the first pixel. Two objects whose centres lie within
one window of the search for peaks (concentric ones above all) cannot be told apart.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from papermix.segmentation.segments import Segments


class Targets(NamedTuple):
    """What the two heads should give, and where it counts.

    Attributes:
        center: float32 [B, 1, H, W], 1 at an object's centre of mass, falling off as a Gaussian; the greater where two meet.
        offset: float32 [B, 2, H, W], (dy, dx) in pixels from a pixel to the centre of its object, 0 outside objects.
        center_weight: float32 [B, 1, H, W], 0 at void and crowds, 1 elsewhere.
        offset_weight: float32 [B, 1, H, W], 1 at the pixels of objects, 0 elsewhere.
    """

    center: Tensor
    offset: Tensor
    center_weight: Tensor
    offset_weight: Tensor


def _isin(category: Tensor, things: Sequence[int]) -> Tensor:
    return torch.isin(category, torch.tensor(list(things), dtype=category.dtype, device=category.device))


def targets(panoptic: Tensor, category: Tensor, crowd: Tensor, things: Sequence[int], sigma: float) -> Targets:
    """The truth of both heads. Objects are the segments of things that are no crowd and have a pixel.

    Args:
        panoptic: int64 [B, H, W], 0 void, s > 0 segment s.
        category: int64 [B, S], class of segment s at place s - 1, -1 where there is none.
        crowd: bool [B, S].
        things: classes that have instances.
        sigma: standard deviation of the Gaussians in pixels; they end at three of them.
    """
    batch, height, width = panoptic.shape
    device = panoptic.device
    slots = category.shape[1] + 1
    image = torch.arange(batch, device=device)[:, None]
    number = panoptic + slots * image[:, :, None]
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)

    def total(value: Tensor) -> Tensor:
        # sums of integers are exact and do not depend on their order
        sums = torch.zeros(batch * slots, dtype=torch.int64, device=device)
        return sums.scatter_add_(0, number.flatten(), value.expand_as(number).flatten())

    area = total(torch.ones_like(y[:, None]))
    mean = torch.stack([total(y[:, None]), total(x)], -1) / area.clamp_min(1)[:, None]
    known = F.pad(~crowd, (1, 0), value=False).flatten()
    objects = F.pad(_isin(category, things), (1, 0), value=False).flatten() & known & (area > 0)

    center_weight, offset_weight = known[number][:, None].float(), objects[number][:, None].float()
    offset = (mean[number] - torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)).permute(0, 3, 1, 2) * offset_weight

    # each Gaussian is painted into a square around its centre only: memory grows with objects and pixels, not with their product
    reach = int(3 * sigma + 0.5)
    last = torch.tensor([[height - 1], [width - 1]], device=device)
    around = (mean.round().long()[:, :, None] + torch.arange(-reach, reach + 1, device=device)).clamp_min(0).minimum(last)
    away = around - mean[:, :, None]
    falloff = torch.exp(-away.square() / (2 * sigma**2)) * (away.abs() <= 3 * sigma) * objects[:, None, None]
    top = (image * height).expand(batch, slots).reshape(-1, 1, 1)
    pixel = (top + around[:, 0, :, None]) * width + around[:, 1, None, :]
    value = falloff[:, 0, :, None] * falloff[:, 1, None, :]
    center = torch.zeros(batch * height * width, device=device).scatter_reduce_(0, pixel.flatten(), value.flatten(), "amax")
    return Targets(center.view(batch, 1, height, width), offset, center_weight, offset_weight)


def peaks(center: Tensor, threshold: float, window: int, top_k: int) -> tuple[Tensor, Tensor]:
    """The highest points of a heat map: coordinates int64 [K, 2] as (y, x), and their values float [K], highest first.

    Args:
        center: float [H, W].
        threshold: peaks lie above it.
        window: side in pixels, odd, of the square in which a peak is the highest point; of equal ones the first in reading order.
        top_k: at most so many.
    """
    width = center.shape[-1]
    _, highest = F.max_pool2d(center[None], window, stride=1, padding=window // 2, return_indices=True)
    flat = center.flatten()
    own = torch.arange(flat.numel(), device=center.device)
    found = ((highest.flatten() == own) & (flat > threshold)).nonzero()[:, 0]
    score, order = flat[found].sort(descending=True, stable=True)
    found = found[order[:top_k]]
    return torch.stack([found // width, found % width], -1), score[:top_k]


def group(offset: Tensor, centers: Tensor, chunk: int = 2**20) -> Tensor:
    """Number of the centre nearest to where each pixel points: int64 [H, W] from 1 to K, all 0 without centres.

    Args:
        offset: float [2, H, W], (dy, dx) in pixels.
        centers: [K, 2] as (y, x).
        chunk: so many distances are held in memory at once.
    """
    height, width = offset.shape[-2:]
    if not len(centers):
        return torch.zeros(height, width, dtype=torch.int64, device=offset.device)
    y, x = torch.arange(height, device=offset.device), torch.arange(width, device=offset.device)
    aim = (offset + torch.stack(torch.meshgrid(y, x, indexing="ij"))).flatten(1)
    centers = centers.to(offset.dtype)
    # differences, not the cheaper products of a matrix multiplication, which lose the small distances in reduced precision
    nearest = [
        torch.add((py[:, None] - centers[:, 0]).square_(), (px[:, None] - centers[:, 1]).square_()).argmin(1)
        for py, px in zip(*(axis.split(max(1, chunk // len(centers))) for axis in aim))
    ]
    return torch.cat(nearest).view(height, width) + 1


def fuse(logits: Tensor, instance: Tensor, score: Tensor, things: Sequence[int], stuff_area: int) -> Segments:
    """Majority vote: an instance is made of its pixels whose class is a thing, and has the class that most of them have.

    Stuff is one segment for each class, removed below ``stuff_area``. Pixels of things in no instance, and of removed stuff, are
    void. A segment's score is the mean probability of its class over its pixels, times the centre's height (1 for stuff).

    Args:
        logits: float [C, H, W] of the semantic head.
        instance: int64 [H, W], number of the instance at every pixel, 0 for none; only counts where the class is a thing.
        score: float [K] of the instances 1 to K.
        things: classes that have instances.
        stuff_area: pixels below which stuff is removed.
    """
    classes = len(logits)
    probability = logits.float().softmax(0)
    semantic = logits.argmax(0)
    every = torch.arange(classes, device=logits.device)
    thing = _isin(every, things)
    instance = instance * thing[semantic]

    slots = len(score) + 1
    votes = torch.bincount((instance * classes + semantic).flatten(), minlength=slots * classes).view(slots, classes)[1:]
    stuff = (torch.bincount(semantic.flatten(), minlength=classes) >= max(stuff_area, 1)) & ~thing
    number = torch.where(stuff, stuff.cumsum(0) + len(score), 0)
    map = instance + number[semantic]
    category = torch.cat([votes.argmax(1), every[stuff]])
    objectness = torch.cat([score.float(), score.new_ones(int(stuff.sum()), dtype=torch.float32)])

    sure = probability.gather(0, F.pad(category, (1, 0))[map][None])
    total = torch.zeros(len(category) + 1, device=logits.device).scatter_add_(0, map.flatten(), sure.flatten())
    area = torch.bincount(map.flatten(), minlength=len(category) + 1)
    return Segments.of(map, category, score=objectness * (total / area.clamp_min(1))[1:]).compact()
