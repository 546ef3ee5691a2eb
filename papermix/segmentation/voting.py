"""Instances by votes: every pixel says in which cell around it its object's centre lies; where votes meet, there is an object.

Wang, Luo, Maire, Shakhnarovich, "Pixel Consensus Voting for Panoptic Segmentation", CVPR 2020, arXiv 2004.01849, section 3.
Coordinates are (y, x) in positions of the map that votes. Objects with the same centre are one; what is farther from its centre
than the grid reaches has no vote.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from papermix.segmentation.segments import Segments
from papermix.segmentation.vote_grid import VoteGrid

CENTERS = ("mass", "box")


class Targets(NamedTuple):
    """What the votes should be, and how much each pixel counts.

    Attributes:
        vote: int64 [B, H, W], the cell of an object's centre, the number of cells (no vote) at stuff, -1 at void, crowds and
            beyond the grid's reach.
        weight: float32 [B, H, W], see :func:`weights`.
    """

    vote: Tensor
    weight: Tensor


def _isin(category: Tensor, classes: Sequence[int]) -> Tensor:
    return torch.isin(category, torch.tensor(list(classes), dtype=category.dtype, device=category.device))


def _numbers(panoptic: Tensor, slots: int) -> Tensor:
    """Segment numbers that no two images of a batch share, int64 [B, H, W]."""
    return panoptic + slots * torch.arange(len(panoptic), device=panoptic.device)[:, None, None]


def weights(panoptic: Tensor, crowd: Tensor, power: float) -> Tensor:
    """1 / (area of a pixel's segment) ** power, float32 [B, H, W]; 0 at void and crowds.

    Args:
        panoptic: int64 [B, H, W], 0 void, s > 0 segment s.
        crowd: bool [B, S].
        power: 0: all pixels count the same; 1: all segments do.
    """
    slots = crowd.shape[1] + 1
    number = _numbers(panoptic, slots)
    area = torch.bincount(number.flatten(), minlength=len(panoptic) * slots)
    known = F.pad(~crowd, (1, 0), value=False).flatten()
    return torch.where(known, area.clamp_min(1).double().pow(-power), 0.0).float()[number]


def targets(
    panoptic: Tensor,
    category: Tensor,
    crowd: Tensor,
    things: Sequence[int],
    grid: VoteGrid,
    power: float = 0.5,
    center: str = "mass",
) -> Targets:
    """True votes and weights of the pixels. The maps are to have the size of the map that votes, after all augmentation.

    Args:
        panoptic: int64 [B, H, W], 0 void, s > 0 segment s.
        category: int64 [B, S], class of segment s at place s - 1, -1 where there is none.
        crowd: bool [B, S].
        things: classes that have instances.
        grid: of the votes.
        power: of the segment's area in a pixel's weight.
        center: ``mass``, the centre of mass, or ``box``, the middle of the bounding box; whole numbers, rounded as in the
            paper's code (down; y + height // 2).
    """
    batch, height, width = panoptic.shape
    device, slots = panoptic.device, category.shape[1] + 1
    number = _numbers(panoptic, slots)
    flat = number.flatten()
    at = torch.stack(torch.meshgrid(*(torch.arange(n, device=device) for n in (height, width)), indexing="ij"))
    every = at.flatten(1).repeat(1, batch)

    def gathered(values: Tensor, how: str, start: int) -> Tensor:
        # whole numbers are exact and do not depend on their order
        empty = torch.full((batch * slots,), start, dtype=torch.int64, device=device)
        return empty.scatter_reduce_(0, flat, values, how)

    if center == "mass":
        area = gathered(torch.ones_like(flat), "sum", 0).clamp_min(1)
        middle = torch.stack([gathered(axis, "sum", 0) // area for axis in every])
    else:
        low = torch.stack([gathered(axis, "amin", max(height, width)) for axis in every])
        high = torch.stack([gathered(axis, "amax", -1) for axis in every])
        middle = low + (high + 1 - low) // 2
    thing = F.pad(_isin(category, things), (1, 0), value=False).flatten()[number]
    known = F.pad(~crowd, (1, 0), value=False).flatten()[number]
    offset = middle.T[number] - at.permute(1, 2, 0)
    vote = torch.where(known, torch.where(thing, grid.of(offset), grid.bins), -1)
    return Targets(vote, weights(panoptic, crowd, power))


def ballots(logits: Tensor, top: int = 1, silent: bool = True) -> tuple[Tensor, Tensor]:
    """What pixels vote for: the parts of their votes, float32 [B, K, H, W], and their first choices, int64 [B, top, H, W].

    Args:
        logits: [B, K + 1, H, W].
        top: number of choices, best first; -1 where having no vote is the most likely.
        silent: such pixels take no part in the vote either.
    """
    probability = logits.float().softmax(1)
    bins = logits.shape[1] - 1
    voting = probability.argmax(1, keepdim=True) < bins
    votes = probability[:, :bins]
    chosen = votes.topk(top, 1).indices if top > 1 else votes.argmax(1, keepdim=True)
    return votes * voting if silent else votes, torch.where(voting, chosen, -1)


def peaks(heat: Tensor, threshold: float) -> Tensor:
    """Where votes meet: bounding boxes of the connected parts of a heat map that reach the threshold.

    Args:
        heat: float [H, W].
        threshold: in votes (of one pixel each). Pixels that touch at a corner are connected.

    Returns:
        int64 [P, 4], first row, first column, last row, last column of each, in reading order of their first pixels.
    """
    from scipy import ndimage

    parts, _ = ndimage.label((heat >= threshold).cpu().numpy(), structure=[[1, 1, 1]] * 3)
    boxes = [(y.start, x.start, y.stop - 1, x.stop - 1) for y, x in ndimage.find_objects(parts)]
    return torch.tensor(boxes, dtype=torch.int64, device=heat.device).view(-1, 4)


def components(semantic: Tensor, things: Sequence[int], least: float = 1) -> tuple[Tensor, Tensor]:
    """The connected parts of every class of things: numbers int64 [H, W], 0 elsewhere, and their classes int64 [P].

    The baseline without votes: touching objects of a class are one.

    Args:
        semantic: int64 [H, W].
        things: classes that have instances.
        least: positions below which a part is none.
    """
    from scipy import ndimage

    classes = semantic.cpu().numpy()
    number = torch.zeros(semantic.shape, dtype=torch.int64)
    category: list[int] = []
    for thing in things:
        parts = torch.from_numpy(ndimage.label(classes == thing, structure=[[1, 1, 1]] * 3)[0]).long()
        large = parts.flatten().bincount() >= least
        large[0] = False
        number += torch.where(large, large.cumsum(0) + len(category), 0)[parts]
        category += [thing] * int(large.sum())
    return number.to(semantic.device), torch.tensor(category, dtype=torch.int64, device=semantic.device)


def claims(choice: Tensor, pixel: Tensor, regions: Tensor, grid: VoteGrid) -> Tensor:
    """Whether a pixel voted for a region, bool [P, N]: its cell covers a position of the region.

    This is the paper's equality convolution, in which the grid turned by half a circle (``grid.query``) is laid over the choices
    at each position of a region and says yes where both are equal. A cell is a square, so that it need not be slid.

    Args:
        choice: int64 [N], cells, -1 for no vote.
        pixel: int64 [N, 2].
        regions: int64 [P, 4] as :func:`peaks` gives them.
        grid: of the votes.
    """
    cell = choice.clamp_min(0)
    aim, reach = pixel + grid.center[cell], grid.reach[cell][:, None]
    low, high = (aim - reach)[None], (aim + reach)[None]
    return ((low <= regions[:, None, 2:]) & (high >= regions[:, None, :2])).all(-1) & (choice >= 0)


def group(
    choices: Tensor, regions: Tensor, probability: Tensor, things: Sequence[int], grid: VoteGrid, chunk: int = 2**20
) -> tuple[Tensor, Tensor]:
    """Give pixels back to the peaks that they voted for.

    A region has the thing's class of the highest mean probability over the pixels that voted for it. A pixel that voted for
    several belongs to the one of its best choice, then of those whose class is the pixel's own, then to the one whose middle is
    the nearest, then to the first.

    Args:
        choices: int64 [top, H, W], as :func:`ballots` gives them for an image.
        regions: int64 [P, 4], see :func:`peaks`.
        probability: float32 [C, H, W] of the classes.
        things: classes that have instances.
        grid: of the votes.
        chunk: so many pairs of a pixel and a region are held in memory at once.

    Returns:
        Number of its region for every pixel, int64 [H, W] from 1 to P, 0 for none; and the regions' classes, int64 [P].
    """
    device = choices.device
    owner = torch.zeros(choices.shape[-2:], dtype=torch.int64, device=device)
    category = torch.zeros(len(regions), dtype=torch.int64, device=device)
    pixel = (choices[0] >= 0).nonzero()
    if not len(pixel) or not len(regions) or not len(things):
        return owner, category
    y, x = pixel.unbind(-1)
    classes = torch.tensor(list(things), device=device)
    sure, own = probability[:, y, x], probability.argmax(0)[y, x]
    nothing = 2**62
    best = torch.full((len(pixel),), nothing, device=device)
    first = best.clone()
    step = max(1, chunk // len(pixel))
    for start in range(0, len(regions), step):
        some = regions[start : start + step]
        # place of the best choice that fits
        rank = torch.full((len(some), len(pixel)), nothing, device=device)
        for place in reversed(range(len(choices))):
            rank[claims(choices[place, y, x], pixel, some, grid)] = place
        claimed = rank < nothing
        # the highest sum has the highest mean; autocast would take sums in half precision
        with torch.autocast(device.type, enabled=False):
            kind = classes[(claimed.float() @ sure[classes].T).argmax(1)]
        category[start : start + step] = kind
        # twice the distance, that middles are whole numbers; below 2^40 for any image
        far = (2 * pixel - (some[:, None, :2] + some[:, None, 2:])).square().sum(-1)
        key = torch.where(claimed, (rank << 50) + ((kind[:, None] != own) * (1 << 45)) + far, nothing)
        least, which = key.min(0)
        first = torch.where(least < best, which + start, first)
        best = torch.minimum(best, least)
    found = best < nothing
    owner[y[found], x[found]] = first[found] + 1
    return owner, category


def fuse(
    instance: Tensor,
    category: Tensor,
    probability: Tensor,
    sure: Tensor,
    things: Sequence[int],
    rows: Tensor,
    columns: Tensor,
    stuff_area: int,
) -> Segments:
    """Instances, and around them stuff where a pixel's class is stuff; all else is void.

    A segment's score is the mean probability of its class over its pixels, for instances times the mean of ``sure``.

    Args:
        instance: int64 [H, W], 1 to P, 0 for none.
        category: int64 [P].
        probability: float32 [C, H, W] of the classes.
        sure: float32 [H, W], how sure a pixel is of its vote.
        things: classes that have instances.
        rows, columns: int64 [H'], int64 [W'], which row and column of these maps each one of the result shows.
        stuff_area: pixels of the result below which stuff is removed.
    """
    classes = torch.arange(len(probability), device=instance.device)
    semantic = probability.argmax(0)
    stuff = ~_isin(classes, things)
    number = torch.where(stuff, stuff.cumsum(0) + len(category), 0)
    map = torch.where(instance > 0, instance, number[semantic])
    kinds = torch.cat([category, classes[stuff]])

    slots = len(kinds) + 1
    right = probability.gather(0, F.pad(kinds, (1, 0))[map][None])[0]
    sums = torch.zeros(2, slots, device=map.device)
    sums.scatter_add_(1, map.flatten().expand(2, -1), torch.stack([right, torch.where(instance > 0, sure, 1.0)]).flatten(1))
    score = (sums / torch.bincount(map.flatten(), minlength=slots).clamp_min(1)).prod(0)[1:]

    map = map[rows[:, None], columns]
    area = torch.bincount(map.flatten(), minlength=slots)
    small = F.pad(stuff[kinds], (1, 0)) & (area < stuff_area)
    return Segments.of(map.masked_fill(small[map], 0), kinds, score=score).compact()
