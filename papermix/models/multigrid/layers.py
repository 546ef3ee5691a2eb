"""Layers from pyramids to pyramids: each level reads its own map and those of its two neighbours (Ke, Maire & Yu, CVPR 2017).

A pyramid is a dict, level -> maps [N, C, h, w]; those of level j + 1 are twice as high and wide as those of level j. Numbers of
channels are told in the same way, level -> C.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papermix.errors import UserError

Pyramid = dict[int, Tensor]


def gather(maps: Pyramid, levels: Collection[int]) -> Pyramid:
    """What each of ``levels`` reads: the coarser map (nearest, doubled), the map, the finer map (2x2 max), side by side in C.

    Terms that do not exist are left out, so that pyramids may grow or lose levels from one layer to the next.
    """
    coarser = {j + 1: F.interpolate(x, scale_factor=2.0, mode="nearest") for j, x in maps.items() if j + 1 in levels}
    finer = {j - 1: F.max_pool2d(x, 2) for j, x in maps.items() if j - 1 in levels}
    return {j: torch.cat([terms[j] for terms in (coarser, maps, finer) if j in terms], 1) for j in levels}


def gathered(channels: Mapping[int, int], levels: Collection[int]) -> dict[int, int]:
    """Channels of what :func:`gather` gives.

    Raises:
        UserError: a level that nothing feeds.
    """
    sums = {j: sum(channels.get(i, 0) for i in (j - 1, j, j + 1)) for j in levels}
    for j, total in sums.items():
        if not total:
            raise UserError(f"level {j} reads nothing, as the layer before has the levels {_span(channels)}: add one at a time.")
    return sums


class MultigridConv(nn.Module):
    """A 3x3 convolution with weights of its own on what each level gathers, and what comes after it.

    Args:
        channels: of the incoming pyramid.
        out: channels of the outgoing one, whose levels need not be the same.
        after: makes what follows a convolution from its number of channels, the same kind at all levels.
    """

    def __init__(self, channels: Mapping[int, int], out: Mapping[int, int], after: Callable[[int], nn.Module]):
        super().__init__()
        read = gathered(channels, out)
        self.levels = tuple(out)
        self.conv = nn.ModuleList(nn.Sequential(nn.Conv2d(read[j], out[j], 3, padding=1), after(out[j])) for j in out)

    def forward(self, maps: Pyramid) -> Pyramid:
        read = gather(maps, self.levels)
        return {j: conv(read[j]) for j, conv in zip(self.levels, self.conv)}


class PadChannels(nn.Module):
    """``new_chans`` channels of zeros behind those of [N, C, h, w]."""

    def __init__(self, new_chans: int):
        super().__init__()
        self.new_chans = new_chans

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 0, self.new_chans)) if self.new_chans else x

    def extra_repr(self) -> str:
        return f"new_chans={self.new_chans}"


class Shortcut(nn.Module):
    """A pyramid plus an earlier one, at the levels that both have and where the earlier has no more channels; missing ones are 0.

    Args:
        channels: of the pyramid.
        source: of the earlier one.
    """

    def __init__(self, channels: Mapping[int, int], source: Mapping[int, int]):
        super().__init__()
        self.levels = tuple(j for j in channels if 0 < source.get(j, 0) <= channels[j])
        self.pad = nn.ModuleList(PadChannels(channels[j] - source[j]) for j in self.levels)

    def forward(self, maps: Pyramid, source: Pyramid) -> Pyramid:
        return {**maps, **{j: maps[j] + pad(source[j]) for j, pad in zip(self.levels, self.pad)}}

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


def window(top: int, target: int, count: int) -> range:
    """The ``count`` finest of the levels 0 to ``top`` among which ``target`` is: what is left while a pyramid loses levels."""
    lowest = min(top - count + 1, target)
    return range(lowest, lowest + count)


def input_channels(shape: Sequence[int], base: int, count: int) -> dict[int, int]:
    """Channels of what :func:`input_pyramid` gives, for [C, H, W] or [D]."""
    if len(shape) == 1:
        return {0: -(-shape[0] // base**2)}
    return {j: shape[0] for j in range(count) if j == 0 or base * 2**j <= max(shape[1:])}


def input_pyramid(x: Tensor, base: int, count: int) -> Pyramid:
    """Inputs as a pyramid of at most ``count`` levels, the coarsest, level 0, of ``base`` x ``base`` cells.

    Maps [N, C, H, W] are resized to every level that is no larger than they are (nearest neighbour), and always to level 0.
    Vectors [N, D] are cut into channels of level 0, entry by entry, the last one filled up with zeros.
    """
    if x.ndim == 2:
        return {0: F.pad(x, (0, -x.shape[1] % base**2)).unflatten(1, (-1, base, base))}
    sizes = {j: (base * 2**j,) * 2 for j in input_channels(x.shape[1:], base, count)}
    return {j: x if size == x.shape[2:] else F.interpolate(x, size, mode="nearest") for j, size in sizes.items()}


def _span(levels: Collection[int]) -> str:
    return f"{min(levels)} to {max(levels)}"
