"""The arithmetic of growing a network in width: schedules of widths and epochs, and one tensor from one width to the next.

Yuan, Savarese & Maire, NeurIPS 2023 (arXiv 2306.12700). Positions are those of the full-sized tensor throughout: a position is
there from its *birth* on, the stage (0, 1, ...) of its channel, so that the tensor of a stage is the full one without what is
not yet born.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor


def widths(target: int, stages: int, start: float = 0.25, rate: float | None = None) -> list[int]:
    """Widths of the stages, from about ``start * target`` to ``target``; all increments are even, since channels come in pairs.

    Args:
        target: the last width.
        stages: how many.
        start: the first width as a share of the last.
        rate: each increment is this share of the width, rounded down and at least 2 while anything is left to grow, and the last
            one takes what is left. None: widths lie on the geometric curve from first to last, to the nearest pair, so that wide
            and narrow layers keep their proportion.
    """
    first = target - int(target * (1 - start) / 2 + 1e-9) * 2
    if stages == 1:
        return [target]
    if rate is None:
        ideal = (first * (target / first) ** (t / (stages - 1)) for t in range(stages))
        return [first + 2 * int((width - first) / 2 + 0.5) for width in ideal]
    found = [first]
    for _ in range(stages - 2):
        found.append(min(target, found[-1] + max(2, int(rate * found[-1] / 2 + 1e-9) * 2)))
    return [*found, target]


def lengths(total: int, stages: int, rate: float = 0.2) -> list[int]:
    """Lengths of the stages, each longer than the one before by ``rate``, rounded so that they add up to ``total``."""
    sums = [0.0, *accumulate((1 + rate) ** t for t in range(stages))]
    ends = [int(total * s / sums[-1] + 0.5) for s in sums]
    return [b - a for a, b in pairwise(ends)]


def cost(lengths: Sequence[float], flops: Sequence[float]) -> float:
    """Training cost relative to the full-sized network's: the sum over stages of length x FLOPs / (whole length x last FLOPs)."""
    return sum(t * f for t, f in zip(lengths, flops)) / (sum(lengths) * flops[-1])


@dataclass
class Axis:
    """One growing dimension of a tensor, in positions of the full-sized one.

    Attributes:
        dim: which dimension.
        inputs: its positions are inputs of the layer (columns), not outputs (rows).
        birth: stage at which each position is born, int64 [size].
        channel: where a position stands, int64 [size, 3]: the number of its channel's group (-1: it always exists), the
            channel in that group, and which of the channel's positions it is.
    """

    dim: int
    inputs: bool
    birth: Tensor
    channel: Tensor

    def alive(self, stage: int) -> Tensor:
        """Positions of the full tensor that are there at a stage, int64, rising."""
        return (self.birth <= stage).nonzero().flatten()

    def size(self, stage: int) -> int:
        """Number of positions at a stage."""
        return int((self.birth <= stage).sum())

    def sources(self, stage: int, origin: Sequence[Tensor]) -> Tensor:
        """For each position alive at ``stage``, where its origin stands among these, int64.

        Args:
            stage: the stage.
            origin: for each group, the channel that each channel repeats (itself: none), int64 [channels].
        """
        rows = self.channel[self.alive(stage)].tolist()
        place = {tuple(row): i for i, row in enumerate(rows) if row[0] >= 0}
        return torch.tensor([i if g < 0 else place[g, int(origin[g][c]), j] for i, (g, c, j) in enumerate(rows)])


def twins(widths: Sequence[int], stage: int) -> Tensor:
    """The channel that each channel repeats when those of ``stage`` are twins: the second of a pair repeats the first, int64."""
    origin = torch.arange(widths[stage])
    origin[widths[stage - 1] + 1 :: 2] -= 1
    return origin


def copies(widths: Sequence[int], stage: int, generator: torch.Generator) -> Tensor:
    """The channel that each channel repeats when those of ``stage`` copy random older ones (Net2WiderNet), int64."""
    old, new = widths[stage - 1], widths[stage]
    drawn = [torch.randperm(old, generator=generator) for _ in range(-(-(new - old) // old))]
    return torch.cat([torch.arange(old), *drawn])[:new]


def widen(
    old: Tensor, fresh: Tensor, axes: Sequence[Axis], stage: int, origin: Sequence[Tensor] | None = None, share: bool = False
) -> Tensor:
    """A tensor at ``stage``: ``old`` where it was there before, ``fresh`` elsewhere, then repeated by ``origin``.

    With twins, outputs repeat their origin and inputs repeat it with the opposite sign, so that what the twins send on adds up
    to zero. With copies (``share``), outputs repeat it, and inputs divide its weight equally among itself and its copies.

    Args:
        old: the tensor of the stage before.
        fresh: new values in the sizes of ``stage``.
        axes: the growing dimensions.
        stage: the stage that begins.
        origin: for each group, the channel that each channel repeats; None: new channels are as ``fresh`` has them.
        share: divide, instead of opposite signs.
    """
    new = _put(fresh, old, axes, stage)
    if origin is None:
        return new
    for axis in axes:
        sources = axis.sources(stage, origin)
        itself = torch.arange(len(sources))
        new = new.index_select(axis.dim, sources.to(new.device))
        if axis.inputs:
            weight = 1 / sources.bincount(minlength=len(sources))[sources] if share else 1 - 2.0 * (sources != itself)
            new = new * _along(weight.to(new), axis.dim, new.ndim)
    return new


def _put(new: Tensor, old: Tensor, axes: Sequence[Axis], stage: int) -> Tensor:
    """``new`` with ``old`` at the positions that are older than ``stage``."""
    if not axes:
        return old.clone()
    first, *others = axes
    older = (first.birth[first.alive(stage)] < stage).nonzero().flatten().to(new.device)
    return new.index_copy(first.dim, older, _put(new.index_select(first.dim, older), old, others, stage))


def _along(vector: Tensor, dim: int, ndim: int) -> Tensor:
    """A vector as a tensor of ``ndim`` dimensions that runs along ``dim``."""
    return vector.view([-1 if d == dim else 1 for d in range(ndim)])


class Blocks:
    """A grown weight by birth stage, for the rate adaptation: an entry is as old as the youngest of its row and its column.

    Args:
        axes: the growing dimensions, one (its weight has a single column) or two.
        stage: the present stage.
        ndim: number of dimensions of the weight.
        device: where the weight is.
    """

    def __init__(self, axes: Sequence[Axis], stage: int, ndim: int, device: torch.device):
        axes = sorted(axes, key=lambda axis: axis.dim)
        self.dims = [axis.dim for axis in axes]
        births = [axis.birth[axis.alive(stage)].to(device) for axis in axes]
        self.shape = [1] * ndim
        for dim, birth in zip(self.dims, births):
            self.shape[dim] = len(birth)
        self.rows, self.columns = births if len(births) == 2 else (births[0], births[0].new_zeros(1))
        stages = torch.arange(stage + 1, device=device)
        self.of_rows, self.of_columns = (stages[:, None] == self.rows).float(), (self.columns[:, None] == stages).float()

    def squares(self, weight: Tensor) -> Tensor:
        """Sums of the squared entries by the birth stages of their rows and columns, [stages, stages]."""
        squares = weight.detach().float().square().movedim(self.dims, list(range(len(self.dims))))
        # by rows first: there a large weight is read
        by_row = self.of_rows @ squares.flatten(1)
        return by_row.view(len(by_row), len(self.columns), -1).sum(-1) @ self.of_columns

    def spread(self, table: Tensor) -> Tensor:
        """Entries of a table [stages, stages] of rows and columns for each entry of the weight, broadcastable."""
        return table.index_select(1, self.columns).index_select(0, self.rows).view(self.shape)


def _youngest(stages: int, device: torch.device) -> Tensor:
    """The block of each pair of birth stages, [stages, stages]."""
    grid = torch.arange(stages, device=device)
    return torch.maximum(grid[:, None], grid)


def norms(squares: Tensor) -> Tensor:
    """Frobenius norms of the blocks [weights, stages] from their squares [weights, stages, stages]; 0 where nothing was born."""
    youngest = _youngest(squares.shape[-1], squares.device)
    members = youngest[..., None] == torch.arange(len(youngest), device=squares.device)
    return torch.tensordot(squares, members.float(), 2).sqrt()


def rates(blocks: Sequence[Blocks], weights: Sequence[Tensor]) -> list[Tensor]:
    """What each entry's step is multiplied by: ``|W_i| / |W_0|`` of its block i (1 where either is zero), broadcastable.

    All blocks have the same stage; what is small is computed for all weights at once.
    """
    found = norms(torch.stack([b.squares(w) for b, w in zip(blocks, weights)]))
    first = found[:, :1]
    ratios = torch.where((found > 0) & (first > 0), found / first, 1.0)
    tables = ratios[:, _youngest(found.shape[1], found.device)]
    return [b.spread(table).to(w.dtype) for b, w, table in zip(blocks, weights, tables)]
