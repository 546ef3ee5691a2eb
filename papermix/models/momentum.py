"""A copy of a network that follows it slowly (He et al. 2020, MoCo, eq. 2)."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from papermix.errors import UserError


def momentum_copy(source: nn.Module) -> nn.Module:
    """A copy without gradients, for :func:`momentum_update`."""
    return copy.deepcopy(source).requires_grad_(False)


def momentum_update(target: nn.Module, source: nn.Module, decay: float) -> None:
    """target <- decay * target + (1 - decay) * source for every parameter that ``target`` has.

    Weights that are parametrized since ``target`` was copied (a sparsity's masks) count as what they are now. Buffers are the
    target's own: its batch statistics come from its own passes.

    Raises:
        UserError: a parameter that has another shape now, or half precision, in which such small steps are lost.
    """
    with torch.no_grad():
        targets, sources = zip(*_pairs(target, source))
        torch._foreach_lerp_(list(targets), [s.to(t.dtype) for s, t in zip(sources, targets)], 1 - decay)


def momentum_restart(target: nn.Module, source: nn.Module) -> None:
    """Make ``target`` what ``source`` is, buffers included."""
    with torch.no_grad():
        for mine, its in _pairs(target, source):
            mine.copy_(its)
        present = dict(source.named_buffers())
        for name, buffer in target.named_buffers():
            if name in present:
                buffer.copy_(present[name])


def _pairs(target: nn.Module, source: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    for name, parameter in target.named_parameters():
        path, _, attribute = name.rpartition(".")
        value = getattr(source.get_submodule(path), attribute)
        if value.shape != parameter.shape:
            raise UserError(
                f"a momentum encoder cannot follow a network that changes its shape ({name}): use a sparsity that masks."
            )
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise UserError("a momentum encoder's steps are lost in half precision: use hardware.precision=bf16-mixed.")
        yield parameter, value
