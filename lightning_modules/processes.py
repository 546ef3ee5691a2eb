"""What methods and tasks need when several processes share a batch."""

from typing import Any

import torch
from torch import Tensor


def mean_over_processes(counts: Tensor) -> Tensor:
    """The mean of ``counts`` over all processes, itself when there is one.

    A loss that is a sum over a process's share divided by this has, once gradients are averaged, the gradient of the joint batch's
    mean, however unevenly what is counted (objects, pixels that are not void) falls to the shares.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        counts = counts.clone()
        torch.distributed.all_reduce(counts)
        counts = counts / torch.distributed.get_world_size()
    return counts


def gather(rows: Tensor, sizes: list[int]) -> Tensor:
    """The rows of all processes one after the other, with gradients: what a process's rows did to any loss comes back to them.

    Gradients are summed over processes; once the parameters' gradients are averaged, losses that are means over a process's share
    of the anchors have together the gradient of the joint batch's mean.

    Args:
        rows: [sizes[rank], ...].
        sizes: rows of each process, see :func:`shares`.
    """
    return rows if len(sizes) == 1 else _Gather.apply(rows, sizes)  # type: ignore[no-untyped-call]


def shares(count: int, world: int, even: bool = True) -> list[int]:
    """How many rows each of ``world`` processes has when this one has ``count``; asks the others only where not ``even``."""
    if even or world == 1:
        return [count] * world
    counts: list[Any] = [None] * world
    torch.distributed.all_gather_object(counts, count)
    return counts


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        rank = torch.distributed.get_rank()
        ctx.start, ctx.count = sum(sizes[:rank]), sizes[rank]
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        gradient = gradient.contiguous().clone()
        torch.distributed.all_reduce(gradient)
        return gradient[ctx.start : ctx.start + ctx.count], None
