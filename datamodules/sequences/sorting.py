"""Priority sort (Graves et al. 2014; Huynh, Maire & Walter 2020): vectors of bits with priorities come in, the first ones by priority
are to go out in that order."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.loaders import Batch
from datamodules.sequences.base import Drawn, DrawnData, Source, at
from papermix.errors import UserError


class Bits(Drawn):
    """Vectors of random bits with priorities uniform in [-1, 1).

    Args:
        items, top, bits: how many vectors come in, how many are to go out, and of how many bits.
        others: see :class:`datamodules.sequences.base.Drawn`.
    """

    def __init__(self, *, items: int, top: int, bits: int, **others: Any):
        super().__init__(length=items + top, **others)
        self.items, self.top, self.bits = items, top, bits

    def draw(self, random: np.random.Generator, count: int) -> Batch:
        """See :class:`datamodules.sequences.base.Drawn`."""
        bits = random.integers(0, 2, (count, self.items, self.bits)).astype(np.float32)
        priority = random.uniform(-1, 1, (count, self.items))
        frames = np.zeros((count, self.length, self.bits + 1), np.float32)
        frames[:, : self.items, :-1], frames[:, : self.items, -1] = bits, priority
        target = np.zeros((count, self.length, self.bits), np.float32)
        order = np.argsort(-priority, 1, kind="stable")[:, : self.top]
        target[:, self.items :] = np.take_along_axis(bits, order[..., None], 1)
        return {"frames": torch.from_numpy(frames), "target": torch.from_numpy(target)}

    def segment(self, held: Batch, steps: Tensor) -> Batch:
        """`frames` [rows, T, bits + 1], the priority last, zero while the answer is due; `target` float32 [rows, T, bits]."""
        return {"frames": at(held["frames"], steps), "target": at(held["target"], steps), "asked": steps >= self.items}


class SortData(DrawnData):
    """Vectors to be sorted; the batch is that of :meth:`Bits.segment`.

    Args:
        items: vectors that come in.
        top: how many are to go out, the highest priority first.
        bits: of a vector.
        others: see :class:`datamodules.sequences.base.DrawnData`.

    Raises:
        UserError: values out of range.
    """

    def __init__(self, *, items: int = 20, top: int = 16, bits: int = 8, **others: Any):
        super().__init__(**others)
        if bits < 1 or not 1 <= top <= items:
            raise UserError(f"dataset.top={top} must lie between 1 and dataset.items={items}, dataset.bits={bits} be at least 1")
        self.check_shapes(in_shape=(bits + 1,), query_shape=None, out_shape=(bits,))
        self.facts = {"items": items, "top": top, "bits": bits}

    def source(self, split: str, key: tuple[int | str, ...], count: int, endless: bool) -> Source:
        return Bits(**self.facts, key=key, count=count, endless=endless)
