"""A memory of keys of earlier batches (He et al. 2020, MoCo, section 3.2)."""

import torch
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.losses.contrastive import EARLIER, NOTHING, Keys, view_keys


class KeyQueue(nn.Module):
    """First in, first out: the newest keys stand in front. All of it are buffers.

    Rows that were never filled are no keys: they stand in no denominator.

    Args:
        size: keys that it holds.
        dim: length of a key.
    """

    embedding: Tensor
    label: Tensor
    filled: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1:
            raise UserError(f"method.queue={size} must hold at least one key.")
        self.size = size
        self.register_buffer("embedding", torch.zeros(size, dim))
        # for measuring alone
        self.register_buffer("label", torch.full((size,), -1))
        self.register_buffer("filled", torch.zeros(size, dtype=torch.bool))

    @torch.no_grad()
    def push(self, embedding: Tensor, label: Tensor | None = None, first_view: int = 0) -> Keys:
        """Put the views [V, B, d] of a batch in front: view v of image i becomes key ``v * B + i``. The oldest keys go.

        Args:
            label: int64 [B]; None: unknown.
            first_view: number of the first of these views.

        Returns:
            All keys, without gradient.

        Raises:
            UserError: more keys at once than there is room for.
        """
        new = view_keys(embedding.to(self.embedding.dtype), first_view)
        count = len(new.image)
        if count > self.size:
            raise UserError(
                f"method.queue={self.size} has no room for the {count} keys of a batch: set method.queue to at least {count}."
            )
        marks = new.image.new_full((count,), -1) if label is None else label.repeat(len(embedding))
        keep = self.size - count
        joined = torch.cat([new.embedding, self.embedding[:keep]])
        old = torch.where(self.filled[:keep], EARLIER, NOTHING)
        self.label.copy_(torch.cat([marks, self.label[:keep]]))
        self.filled.copy_(torch.cat([torch.ones_like(self.filled[:count]), self.filled[:keep]]))
        # in place: what reduces over processes knows the buffers as they are; and a backward pass may still need what is returned
        self.embedding.copy_(joined)
        return Keys(joined, torch.cat([new.image, old]), torch.cat([new.view, old]))
