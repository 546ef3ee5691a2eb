"""Masks that are there from the start and never move: random ones, and those of a network that is sparse already."""

from typing import Any

import torch

from papermix.errors import UserError
from papermix.sparsity.base import Sparsity
from papermix.sparsity.mask import Mask
from papermix.sparsity.scope import Weight


class Fixed(Sparsity):
    """Base of masks that never move."""

    def update(self, step: int, total_steps: int) -> bool:
        """Nothing moves."""
        return False

    def harden(self) -> bool:
        """Nothing moves."""
        return False


class RandomMask(Fixed):
    """Keep a random share of each weight, drawn when it is attached.

    Args:
        density: share kept, ``round(density * numel)`` entries of each weight, at least 1.
        types, include, exclude: which weights, see :class:`Sparsity`.
    """

    def __init__(self, density: float = 0.1, **scope: Any):
        super().__init__(**scope)
        if not 0 < density < 1:
            raise UserError(f"sparsity.density={density} must lie between 0 and 1.")
        self.share = density

    def make(self, weight: Weight) -> Mask:
        # a generator of its own: the same masks in all processes
        random = torch.Generator().manual_seed(torch.initial_seed() + len(self.parts))
        order = torch.randperm(weight.numel, generator=random).to(weight.tensor.device)
        mask = Mask(weight.tensor)
        mask.set((order < max(1, int(self.share * weight.numel + 0.5))).view_as(mask.mask), 0)
        return mask


class Ticket(Fixed):
    """Zeros stay zeros: the mask is what the model's weights have when it is attached, such as those that ``init_from`` loads."""

    def make(self, weight: Weight) -> Mask:
        mask = Mask(weight.tensor)
        mask.set(weight.tensor != 0, 0)
        return mask
