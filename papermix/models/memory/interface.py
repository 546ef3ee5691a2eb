"""What all networks with a memory share: frames and queries in, answers and a state out."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from papermix.errors import UserError
from papermix.models.image_model import check_positive

State = tuple[Any, ...]  # nested tuples of tensors, each batch first


class MemoryModel(nn.Module):
    """Base of networks ``(frames, state, query, asked) -> (output, state)``; a subclass computes in ``remember``.

    Args:
        in_shape: [C, H, W] or [D] of a frame.
        query_shape: the same of a query; None: there are no queries, the answers are read from the frames' own steps.
        out_shape: the same of an answer.

    Attributes:
        cells: numbers that the memory holds for one sequence, apart from what is derived from them.
    """

    stateful = True
    cells: int

    def __init__(self, in_shape: Sequence[int], query_shape: Sequence[int] | None, out_shape: Sequence[int]):
        super().__init__()
        for name, shape in (("in_shape", in_shape), ("query_shape", query_shape), ("out_shape", out_shape)):
            if shape is not None and len(shape) not in (1, 3):
                raise UserError(f"{name}={list(shape)} is not possible: give [channels, height, width] or [length].")
            check_positive(**{f"{name}[{i}]": size for i, size in enumerate(shape or ())})
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.query_shape = None if query_shape is None else tuple(query_shape)

    def forward(
        self, frames: Tensor, state: State | None = None, query: Tensor | None = None, asked: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Answers after each of T frames, and the state after the last.

        Args:
            frames: float [B, T, *in_shape].
            state: what the last call returned for these B sequences; None: all start from zeros.
            query: float [B, T, *query_shape], asked right after the frame of its step; None: zeros.
            asked: bool [B, T], the steps whose answers matter (None: all): networks that read apart from writing leave out the
                others, whose answers are zeros then.

        Returns:
            Answers [B, T, *out_shape], and the state: nested tuples of tensors with the batch in front.

        Raises:
            UserError: shapes that do not fit, or a query to a network that takes none.
        """
        self._fits("frames", frames, self.in_shape)
        if self.query_shape is None:
            if query is not None:
                raise UserError(f"this {type(self).__name__} takes no queries: set model.query_shape.")
        elif query is None:
            query = frames.new_zeros(*frames.shape[:2], *self.query_shape)
        else:
            self._fits("query", query, self.query_shape)
            if query.shape[:2] != frames.shape[:2]:
                raise UserError(
                    f"queries {_size(query.shape[:2])} do not go with frames {_size(frames.shape[:2])}: one for each frame."
                )
        for tensor in tree_leaves(state)[:1]:
            if isinstance(tensor, Tensor) and len(tensor) != len(frames):
                raise UserError(f"a state of {len(tensor)} sequences cannot go on with {len(frames)}: keep the batch size.")
        return self.remember(frames, state, query, asked)

    def remember(self, frames: Tensor, state: State | None, query: Tensor | None, asked: Tensor | None) -> tuple[Tensor, State]:
        """What ``forward`` returns, for checked arguments; ``query`` is given exactly if the network has a ``query_shape``."""
        raise NotImplementedError

    def reset(self, state: State, fresh: Tensor) -> State | None:
        """``state`` with the sequences zeroed where ``fresh`` (bool [B]) is true; None if all of another number start.

        Raises:
            UserError: the number of sequences changed while some were to go on.
        """
        size = len(tree_leaves(state)[0])
        if size != len(fresh):
            if bool(fresh.all()):
                return None
            raise UserError(f"a state of {size} sequences cannot go on with {len(fresh)}: keep the batch size.")
        return tree_map(lambda x: x.masked_fill(fresh.view(-1, *[1] * (x.ndim - 1)), 0), state)

    def _fits(self, name: str, x: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(x.shape[2:]) != shape or not x.shape[0] or not x.shape[1]:
            raise UserError(
                f"{name} of size {_size(x.shape)} do not fit {type(self).__name__}: give [B, T, {', '.join(map(str, shape))}]."
            )


def joined(frames: Tensor, query: Tensor | None) -> Tensor:
    """Frames and queries as vectors side by side, [B, T, D]."""
    flat = frames.flatten(2)
    return flat if query is None else torch.cat([flat, query.flatten(2).to(flat.dtype)], 2)


def length(*shapes: Sequence[int] | None) -> int:
    """Numbers in one tensor of each of these shapes together."""
    return sum(math.prod(shape) for shape in shapes if shape is not None)


def _size(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
