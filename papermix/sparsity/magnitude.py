"""Magnitude pruning: the smallest weights go, at once or along a cubic schedule (Zhu & Gupta 2017, arXiv:1710.01878)."""

import re
from bisect import bisect_right
from collections.abc import Sequence
from logging import getLogger

import torch
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.sparsity.base import Sparsity
from papermix.sparsity.mask import Mask
from papermix.sparsity.scope import Weight

log = getLogger(__name__)


class Magnitude(Sparsity):
    """Keep the largest weights; the rest are masked, and get no gradient.

    The schedule is that of Zhu & Gupta 2017, eq. 1, with density ``d = 1 - s``: at its ``k``-th of ``n`` updates, spread
    evenly from ``start`` to ``end``, ``d_k = d_n + (d_0 - d_n) * (1 - k / n) ** 3``; then the masks stay. One update is one-shot
    pruning at ``end``. With ``end=1`` the last update comes after the last step, when training is over.

    At each update the masks are made anew from the magnitudes. The tensor under a mask keeps its value (only momentum and
    weight decay may still move it), so with ``regrow`` a masked weight returns when survivors have shrunk below it, as in the
    paper's implementation; without, what is masked stays masked.

    Counts are exact: ``round(density * units)``, half rounded up, at least 1, per layer or over all; of equal magnitudes the
    first in order stays. Masks depend on the weights alone, so processes with equal weights have equal masks.

    Args:
        density: share kept at the end.
        initial_density: share kept at ``start``.
        start: fraction of training at which the first update happens.
        end: fraction of training at which the last update happens.
        updates: number n of updates after the first.
        scope: ``layer``: every layer has the target density (the paper); ``global``: all weights compete.
        pattern: ``unstructured``; ``filter``: whole output filters (rows) by their L2 norm, per weight (root mean square), so
            that layers compare, and density counts filters; ``N:M``: at most N of M consecutive inputs of each output and
            kernel position, which fixes density at N/M and leaves layers dense whose inputs are no multiple of M.
        regrow: masked weights may return at a later update.
        types, include, exclude: which weights, see :class:`Sparsity`.
    """

    def __init__(
        self,
        density: float = 0.1,
        initial_density: float = 1.0,
        start: float = 0.0,
        end: float = 0.75,
        updates: int = 30,
        scope: str = "layer",
        pattern: str = "unstructured",
        regrow: bool = True,
        types: Sequence[str] = ("linear", "conv", "recurrent", "attention"),
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
    ):
        super().__init__(types, include, exclude)
        if not 0 < density <= initial_density <= 1:
            raise UserError(f"sparsity needs 0 < density <= initial_density <= 1, not density={density} and {initial_density}.")
        if density == 1:
            raise UserError("sparsity.density=1 prunes nothing: use sparsity=none, or a lower density.")
        if not 0 <= start <= end <= 1:
            raise UserError(f"sparsity needs 0 <= start <= end <= 1, fractions of training, not start={start} and end={end}.")
        if updates < 1:
            raise UserError(f"sparsity.updates={updates} must be at least 1.")
        if scope not in ("layer", "global"):
            raise UserError(f"sparsity.scope='{scope}' must be 'layer' or 'global'.")
        match = re.fullmatch(r"(\d+):(\d+)", str(pattern))
        if match is None and pattern not in ("unstructured", "filter"):
            raise UserError(f"sparsity.pattern='{pattern}' must be 'unstructured', 'filter', or N:M in quotes like '2:4'.")
        self.group = (int(match[1]), int(match[2])) if match else None
        if self.group:
            n, m = self.group
            if not 0 < n < m:
                raise UserError(f"sparsity.pattern='{pattern}' must keep N of M with 0 < N < M.")
            if scope == "global" or density != n / m:
                raise UserError(f"sparsity.pattern='{pattern}' goes with scope=layer and density={n / m}: set those.")
        self.density_at_end, self.density_at_start = density, initial_density
        self.start, self.end, self.n, self.scope, self.pattern, self.regrow = start, end, updates, scope, pattern, regrow

    def make(self, weight: Weight) -> Mask | None:
        inputs = _rows(weight.tensor, weight.places[0][0]).shape[1]
        if self.group and inputs % self.group[1]:
            log.warning("Sparsity %s leaves %s dense: its %d inputs are no multiple", self.pattern, weight.name, inputs)
            return None
        return Mask(weight.tensor)

    def target(self, k: int) -> float:
        """Density after update ``k`` of ``n`` (Zhu & Gupta 2017, eq. 1)."""
        return self.density_at_end + (self.density_at_start - self.density_at_end) * (1 - k / self.n) ** 3

    def update(self, step: int, total_steps: int) -> bool:
        if self._done() >= self.n:
            return False
        points = [round((self.start + (self.end - self.start) * k / self.n) * total_steps) for k in range(self.n + 1)]
        return self._prune(bisect_right(points, step) - 1)

    def harden(self) -> bool:
        return self._prune(self.n)

    def _done(self) -> int:
        return min(mask.done for mask in self.parts.values())

    @torch.no_grad()
    def _prune(self, k: int) -> bool:
        """Bring all masks to update ``k``, unless they are there."""
        if k <= self._done():
            return False
        pools = [[name] for name in self.parts] if self.scope == "layer" else [list(self.parts)]
        moved = False
        for pool in pools:
            scores = {name: self._scores(name) for name in pool}
            together = torch.cat([scores[name] for name in pool], dim=-1)
            count = max(self.group[0] if self.group else 1, int(self.target(k) * together.shape[-1] + 0.5))
            # a stable sort: of equals the first in order stays, on every device
            best = together.sort(dim=-1, descending=True, stable=True).indices[..., :count]
            keep = torch.zeros_like(together, dtype=torch.bool).scatter_(-1, best, True)
            for name, part in zip(pool, keep.split([scores[name].shape[-1] for name in pool], dim=-1)):
                moved |= self.parts[name].set(self._spread(name, part), k)
                if not part.any():
                    log.warning("Sparsity has masked all of %s: nothing passes it any more", name)
        return moved

    def _units(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape, sorted by what competes: [units, members], or [groups, M] for N:M."""
        rows = _rows(tensor, self.weights[name].places[0][0])
        if self.group:
            return rows.movedim(1, -1).reshape(-1, self.group[1])
        return rows.flatten(1) if self.pattern == "filter" else rows.reshape(-1, 1)

    def _scores(self, name: str) -> Tensor:
        """Magnitude of each competitor: [units], or [groups, M]; -1 for what must not return."""
        units = self._units(name, self.value(name))
        score = units.abs() if self.group else units.square().mean(1).sqrt() if self.pattern == "filter" else units[:, 0].abs()
        if not self.regrow:
            kept = self._units(name, self.parts[name].mask)
            score = score.masked_fill(~(kept if self.group else kept.any(1)), -1)
        return score

    def _spread(self, name: str, keep: Tensor) -> Tensor:
        """The mask of the weight's shape in which exactly the competitors of ``keep`` stay."""
        module, shape = self.weights[name].places[0][0], self.parts[name].mask.shape
        rows = _rows(self.parts[name].mask, module)
        if self.group:
            moved = rows.movedim(1, -1)
            return _from_rows(keep.reshape(moved.shape).movedim(-1, 1), module, shape)
        if self.pattern == "filter":
            return _from_rows(keep.view(-1, *[1] * (rows.ndim - 1)).expand(rows.shape), module, shape)
        return _from_rows(keep.reshape(rows.shape), module, shape)


def _rows(tensor: Tensor, module: nn.Module) -> Tensor:
    """A weight as [outputs, inputs, ...]; transposed convolutions store [inputs, outputs / groups, ...]."""
    if not getattr(module, "transposed", False):
        return tensor
    groups: int = module.groups  # type: ignore[assignment]
    split = tensor.reshape(groups, -1, *tensor.shape[1:])
    return split.transpose(1, 2).flatten(0, 1)


def _from_rows(rows: Tensor, module: nn.Module, shape: torch.Size) -> Tensor:
    """The inverse of :func:`_rows`."""
    if not getattr(module, "transposed", False):
        return rows
    groups: int = module.groups  # type: ignore[assignment]
    return rows.reshape(groups, shape[1], shape[0] // groups, *shape[2:]).transpose(1, 2).reshape(shape)
