"""Iterative magnitude pruning: the lottery ticket search of Frankle & Carbin 2019, with rewinding (Frankle et al. 2020)."""

from logging import getLogger
from typing import Any, Literal

import torch

from papermix.errors import UserError
from papermix.sparsity.mask import Mask
from papermix.sparsity.rounds import Rounds
from papermix.sparsity.scope import Weight

log = getLogger(__name__)


class IterativeMagnitude(Rounds):
    """Train, prune a share of the surviving weights by magnitude, rewind, and again; masks only shrink.

    After n rounds ``round(numel * (1 - rate) ** n)`` weights are left (half rounded up, at least 1), over all layers or in each,
    of equal magnitudes the first in order. Another round trains what is left; with ``rounds=1`` this is one-shot pruning with retraining.

    Args:
        rounds: number of prunings; training has one round more.
        rate: share of the surviving weights that each takes.
        retrain: ``rewind`` (the ticket) or ``finetune`` (pruning; nothing is rewound).
        rewind: the point in the first round to which weights are rewound.
        rewind_between: between prunings, too (IMP); false: only the final ticket is rewound (IMP-C).
        scope: ``global``: all weights compete (the papers); ``layer``: every layer has the same density.
        shuffle: see :class:`Rounds`.
        types, include, exclude: which weights, see :class:`Sparsity`.
    """

    def __init__(
        self,
        rounds: int = 10,
        rate: float = 0.2,
        retrain: Literal["none", "rewind", "finetune"] = "rewind",
        rewind_between: bool = True,
        scope: Literal["global", "layer"] = "global",
        **options: Any,
    ):
        super().__init__(rounds=rounds, retrain=retrain, rewind_between=rewind_between and retrain == "rewind", **options)
        if not 0 < rate < 1:
            raise UserError(f"sparsity.rate={rate} must lie between 0 and 1.")
        if retrain == "none":
            raise UserError("sparsity.retrain=none would end with weights that were pruned and not trained: use rewind or finetune.")
        if scope not in ("global", "layer"):
            raise UserError(f"sparsity.scope='{scope}' must be 'global' or 'layer'.")
        self.rate, self.scope = rate, scope

    def make(self, weight: Weight) -> Mask:
        return Mask(weight.tensor)

    def between_rounds(self) -> bool:
        return self._prune(self.round)

    def finish(self) -> bool:
        return self._prune(self.searches)

    @torch.no_grad()
    def _prune(self, n: int) -> bool:
        """Bring the masks to their state after ``n`` prunings."""
        moved = False
        for pool in [list(self.parts)] if self.scope == "global" else [[name] for name in self.parts]:
            scores = {name: self.value(name).abs().masked_fill(~self.parts[name].mask, -1).flatten() for name in pool}
            together = torch.cat([scores[name] for name in pool])
            count = max(1, int(together.numel() * (1 - self.rate) ** n + 0.5))
            keep = torch.zeros_like(together, dtype=torch.bool)
            keep[together.sort(descending=True, stable=True).indices[:count]] = True
            for name, kept in zip(pool, keep.split([len(scores[name]) for name in pool])):
                moved |= self.parts[name].set(kept.view_as(self.parts[name].mask), n)
                if not kept.any():
                    log.warning("Sparsity has masked all of %s: nothing passes it any more", name)
        return moved
