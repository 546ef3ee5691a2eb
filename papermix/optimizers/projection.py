"""Gradients of several losses made orthogonal: Orthogonalized SGD (Wan et al. 2020, arXiv 2008.06635), and PCGrad.

    gradients = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses]
    for p, parts in zip(parameters, zip(*orthogonalize(gradients))):
        p.grad = sum(parts)
"""

from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor

from papermix.errors import UserError, nearest

Gradients = Sequence[Sequence[Tensor | None]]
Scope = Literal["global", "tensor"] | Sequence[Hashable]
Priority = Literal["earliest", "latest"] | Sequence[int]
Normalise = Literal["none", "first", "mean"]
# a projected gradient shorter than this part of what it was is rounding noise: the gradient lay in the span of those before it
NOISE = 1e-6


class Blocks:
    """Which entries of a flat gradient are projected together.

    Args:
        sizes: entries of each tensor, in the order in which they lie in the flat vector.
        scope: ``global``: all as one vector; ``tensor``: each tensor by itself; or a label for each tensor (its layer's name):
            tensors of one label together.

    Raises:
        UserError: an unknown scope, or labels that are not one for each tensor.
    """

    def __init__(self, sizes: Sequence[int], scope: Scope = "global"):
        self.sizes = list(sizes)
        if isinstance(scope, str):
            if scope not in ("global", "tensor"):
                hint = nearest(scope, ("global", "tensor"))
                raise UserError(f"scope={scope!r} is not known{hint}: use global, tensor, or labels.")
            labels: list[Hashable] = [0] * len(self.sizes) if scope == "global" else list(range(len(self.sizes)))
        else:
            labels = list(scope)
        if len(labels) != len(self.sizes):
            raise UserError(f"scope has {len(labels)} labels for {len(self.sizes)} tensors: give one for each tensor.")
        numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
        self.group = torch.tensor([numbers[label] for label in labels], dtype=torch.long)
        self.count = len(numbers)
        self._where: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner product of two flat vectors within each block: ``[P], [P] -> [count]``."""
        product = a * b
        if self.count <= 1:
            return product.sum()[None]
        members, _ = self._on(a.device)
        # sums of products, tensor by tensor: pairwise summation inside each, and the same order on every device
        return (members.to(a.dtype) * torch.stack([part.sum() for part in product.split(self.sizes)])).sum(1)

    def spread(self, factors: Tensor) -> Tensor:
        """One factor for each block -> something to multiply a flat vector with."""
        if self.count <= 1:
            return factors
        _, block = self._on(factors.device)
        return factors[block]

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Membership ``[count, tensors]`` and the block of each entry ``[P]`` on a device."""
        if device not in self._where:
            group = self.group.to(device)
            members = (torch.arange(self.count, device=device)[:, None] == group).float()
            block = group.repeat_interleave(torch.tensor(self.sizes, device=device), output_size=sum(self.sizes))
            self._where[device] = members, block
        return self._where[device]


def orthogonalize(
    gradients: Gradients, scope: Scope = "global", priority: Priority = "earliest", normalise: Normalise = "none"
) -> list[list[Tensor]]:
    """Gradients without what they share with those of higher priority (modified Gram-Schmidt).

    In the order of priority, h_1 = g_1 and h_k = g_k - sum over j < k of <g_k, h_j> / <h_j, h_j> h_j. To first order a step along
    h_k leaves every loss of higher priority as it is. Computed in float32 (float64 where a gradient is).

    Args:
        gradients: ``gradients[k][i]`` is that of loss k for tensor i, None where the loss does not reach it (that is zero).
        scope: what counts as one vector: ``global`` all tensors, ``tensor`` each one, or a label for each tensor.
        priority: ``earliest`` loss first, ``latest`` first, or the losses' numbers (from 0) in order. The first is not changed.
        normalise: bring every g_k to the Euclidean norm of the ``first`` in priority, or of their ``mean``, before projecting.

    Returns:
        One list for each loss, in the order given, with a tensor of the given shape and type for each tensor that any loss
        reaches (and an empty one for others).

    Raises:
        UserError: no or unlike gradients, complex or sparse ones, and unknown values.
    """
    rows, like = pack(gradients)
    orthogonalize_rows_(rows, Blocks([_numel(t) for t in like], scope), priority, normalise)
    return unpack(rows, like)


def pcgrad(gradients: Gradients, scope: Scope = "global", generator: torch.Generator | None = None) -> list[list[Tensor]]:
    """Gradients without their conflicts (PCGrad, Yu et al. 2020, algorithm 1): symmetric, and only where they oppose.

    Each g_i loses its component along every other g_j, in random order, whose inner product with it is then negative.

    Args:
        gradients, scope: see :func:`orthogonalize`.
        generator: draws the orders, on the CPU.
    """
    rows, like = pack(gradients)
    pcgrad_rows_(rows, Blocks([_numel(t) for t in like], scope), generator)
    return unpack(rows, like)


def orthogonalize_rows_(rows: Tensor, blocks: Blocks, priority: Priority = "earliest", normalise: Normalise = "none") -> Tensor:
    """:func:`orthogonalize` in place on flat gradients ``[losses, P]``."""
    order = check_priority(priority, len(rows))
    _normalise_(rows, order, normalise)
    squares: list[Tensor] = []
    for place, k in enumerate(order):
        h = rows[k]
        if place:
            before = blocks.dot(h, h)
            for j, square in zip(order[:place], squares):
                share = torch.where(square > 0, blocks.dot(h, rows[j]) / square, 0.0)
                h.sub_(rows[j] * blocks.spread(share))
            after = blocks.dot(h, h)
            noise = after <= NOISE**2 * before
            h.mul_(blocks.spread((~noise).to(h.dtype)))
            squares.append(torch.where(noise, 0.0, after))
        else:
            squares.append(blocks.dot(h, h))
    return rows


def pcgrad_rows_(rows: Tensor, blocks: Blocks, generator: torch.Generator | None = None) -> Tensor:
    """:func:`pcgrad` in place on flat gradients ``[losses, P]``."""
    own = rows.clone()
    squares = [blocks.dot(g, g) for g in own]
    for i, h in enumerate(rows):
        for j in torch.randperm(len(rows), generator=generator).tolist():
            if j != i:
                share = torch.where(squares[j] > 0, blocks.dot(h, own[j]).clamp(max=0) / squares[j], 0.0)
                h.sub_(own[j] * blocks.spread(share))
    return rows


def _normalise_(rows: Tensor, order: Sequence[int], normalise: str) -> None:
    if normalise not in ("none", "first", "mean"):
        hint = nearest(normalise, ("none", "first", "mean"))
        raise UserError(f"normalise={normalise!r} is not known{hint}: use none, first or mean.")
    if normalise != "none":
        norms = rows.norm(dim=1)
        target = norms[order[0]] if normalise == "first" else norms.mean()
        rows.mul_(torch.where(norms > 0, target / norms, 0.0)[:, None])


def check_priority(priority: Priority, count: int) -> list[int]:
    """The numbers of ``count`` losses in the order of priority. Raises UserError for what is no order of them."""
    if isinstance(priority, str):
        if priority not in ("earliest", "latest"):
            hint = nearest(priority, ("earliest", "latest"))
            raise UserError(f"priority={priority!r} is not known{hint}: use earliest, latest, or a list of numbers.")
        return list(range(count)) if priority == "earliest" else list(range(count))[::-1]
    if sorted(priority) != list(range(count)):
        raise UserError(f"priority={list(priority)} is no order of {count} losses: name each of 0 to {count - 1} once.")
    return list(priority)


def pack(gradients: Gradients) -> tuple[Tensor, list[Tensor | None]]:
    """Gradients of several losses as rows ``[losses, P]``, and one gradient of each tensor (None where there is none)."""
    if not gradients or any(len(g) != len(gradients[0]) for g in gradients):
        raise UserError("gradients must hold one list for each loss, all with one entry for each tensor.")
    like = [next((t for t in column if t is not None), None) for column in zip(*gradients)]
    known = [t for t in like if t is not None]
    if not known:
        raise UserError("there is no gradient: no loss reaches any tensor.")
    check_plain(known)
    rows = known[0].new_zeros(len(gradients), sum(map(_numel, like)), dtype=sums_in(known))
    for row, own in zip(rows, gradients):
        for place, gradient in zip(row.split([_numel(t) for t in like]), own):
            if gradient is not None:
                place.copy_(gradient.flatten())
    return rows, like


def unpack(rows: Tensor, like: Sequence[Tensor | None]) -> list[list[Tensor]]:
    """The inverse of :func:`pack`."""
    sizes = [_numel(t) for t in like]
    return [[part if t is None else part.view(t.shape).to(t.dtype) for part, t in zip(row.split(sizes), like)] for row in rows]


def sums_in(tensors: Sequence[Tensor]) -> torch.dtype:
    """float32, or float64 where there is any: half precision overflows in sums over millions of entries."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def check_plain(tensors: Sequence[Tensor]) -> None:
    """Raise UserError for complex or sparse tensors."""
    for t in tensors:
        if t.is_complex() or t.layout != torch.strided:
            kind = "complex" if t.is_complex() else "sparse"
            raise UserError(f"a {kind} gradient cannot be projected: use dense real parameters.")


def weighted_sum(rows: Tensor, weights: Sequence[float] | Tensor) -> Tensor:
    """Sum of weight times row, ``[losses, P] -> [P]``, term by term in the order of the rows."""
    total = rows[0] * weights[0]
    for row, weight in zip(rows[1:], weights[1:]):
        total += row * weight
    return total


def _numel(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel()
