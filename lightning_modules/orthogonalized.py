"""Orthogonalized SGD (Wan et al. 2020, arXiv 2008.06635): gradients of later exits never oppose those of earlier ones."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_modules.multi_exit import MultiExit
from papermix.errors import UserError, nearest
from papermix.optimizers.groups import plain_name
from papermix.optimizers.projection import (
    Blocks,
    Normalise,
    Priority,
    check_plain,
    check_priority,
    orthogonalize_rows_,
    pcgrad_rows_,
    sums_in,
    weighted_sum,
)

SCOPES = ("global", "tensor", "layer")
RULES = ("orthogonalize", "pcgrad")


class Orthogonalized(MultiExit):
    """One backward pass for each exit's loss; the gradients are made orthogonal in the order of priority, and summed.

    The sum, with the exits' weights, becomes the gradient with which any optimizer steps: momentum, weight decay, clipping and a
    sparsity's penalty come after the projection. Over several batches of one step (``trainer.accumulate_grad_batches``) and over
    several processes each loss's gradient is averaged first, then projected. Each gradient is held once more in float32: so many
    times the trainable parameters as there are exits.

    Args:
        weights: of the projected gradients in the sum; see :class:`MultiExit`.
        scope: what is one vector when gradients are projected: ``global`` all parameters, ``layer`` those of each layer,
            ``tensor`` each tensor by itself.
        priority: ``earliest`` exit first, ``latest`` first, or the exits' numbers (from 1) in order; the first is never changed.
        normalise: bring each exit's gradient to the norm of the ``first`` in priority or of their ``mean`` before; or ``none``.
        rule: ``orthogonalize``, or ``pcgrad`` for comparison: symmetric, only where gradients oppose each other (Yu et al. 2020).

    Raises:
        UserError: unknown values, or a priority that is no order of the exits.
    """

    def __init__(
        self,
        *args: Any,
        scope: Literal["global", "layer", "tensor"] = "global",
        priority: Literal["earliest", "latest"] | list[int] = "earliest",
        normalise: Normalise = "none",
        rule: Literal["orthogonalize", "pcgrad"] = "orthogonalize",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        known = {"scope": (scope, SCOPES), "normalise": (normalise, ("none", "first", "mean")), "rule": (rule, RULES)}
        for name, (value, names) in known.items():
            if value not in names:
                raise UserError(f"method.{name}={value} must be {', '.join(names)}{nearest(value, names)}.")
        if not isinstance(priority, str) and sorted(priority) != list(range(1, self.exits + 1)):
            raise UserError(f"method.priority={list(priority)} is no order of the exits: name each of 1 to {self.exits} once.")
        self.priority: Priority = priority if isinstance(priority, str) else [k - 1 for k in priority]
        check_priority(self.priority, self.exits)
        self.scope, self.normalise, self.rule = scope, normalise, rule
        self._losses: list[Tensor] = []
        self._total = torch.empty(0)
        self._parameters_seen: list[nn.Parameter] = []
        self._blocks = Blocks([])
        self._rows = torch.empty(0)
        self._reached: list[bool] = []

    def total(self, losses: list[Tensor]) -> Tensor:
        """The weighted sum of the losses; its parts are kept for the backward pass."""
        self._losses, self._total = losses, super().total(losses)
        return self._total

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add each exit's gradient to its own sum; with the last batch of a step, project them and put their sum in place.

        Args:
            loss: the weighted sum, as Lightning has scaled it for accumulation and mixed precision.
        """
        if self._total.grad_fn is None:
            raise UserError("method=orthogonalized: no exit's loss depends on a trainable parameter: unfreeze some.")
        parameters = self._trained()
        # whatever the sum was scaled with, each loss is
        (scale,) = torch.autograd.grad(loss, self._total, retain_graph=True)
        last = len(self._losses) - 1
        for k, one in enumerate(self._losses):
            found = torch.autograd.grad(one, parameters, scale.to(one.dtype), retain_graph=k < last, allow_unused=True)
            self._add(k, found, parameters)
        self._losses, self._total = [], torch.empty(0)
        if self.trainer.fit_loop._should_accumulate():
            return
        self._put_in_place(parameters)

    def _trained(self) -> list[nn.Parameter]:
        """What the optimizer steps on; where that has changed since, the room for the gradients is made anew."""
        groups = [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        parameters = [p for group in groups for p in group["params"] if p.requires_grad]
        seen = self._parameters_seen
        if len(seen) != len(parameters) or any(a is not b for a, b in zip(seen, parameters)) or self._rows.device != self.device:
            check_plain(parameters)
            names = {id(p): plain_name(name).rpartition(".")[0] for name, p in self.named_parameters()}
            sizes = [p.numel() for p in parameters]
            self._blocks = Blocks(sizes, [names[id(p)] for p in parameters] if self.scope == "layer" else self.scope)
            self._rows = torch.zeros(self.exits, sum(sizes), device=self.device, dtype=sums_in(parameters))
            self._reached = []
            self._parameters_seen = parameters
        return parameters

    def _add(self, k: int, found: Any, parameters: list[nn.Parameter]) -> None:
        """Add a gradient to those of exit ``k`` in this step."""
        if not self._reached:
            self._rows.zero_()
            self._reached = [False] * len(parameters)
        places, gradients = [], []
        for i, (place, gradient) in enumerate(zip(self._rows[k].split(self._blocks.sizes), found)):
            if gradient is not None:
                check_plain([gradient])
                self._reached[i] = True
                places.append(place.view(gradient.shape))
                gradients.append(gradient.to(place.dtype))
        if places:
            torch._foreach_add_(places, gradients)

    def _put_in_place(self, parameters: list[nn.Parameter]) -> None:
        """Average over processes, project, and give each parameter that a loss reaches its gradient."""
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(self._rows)
            self._rows /= self.trainer.world_size
        if self.rule == "orthogonalize":
            orthogonalize_rows_(self._rows, self._blocks, self.priority, self.normalise)  # type: ignore[arg-type]
        else:
            # the same orders in all processes, and in a run that goes on
            pcgrad_rows_(self._rows, self._blocks, torch.Generator().manual_seed(self.global_step))
        whole = weighted_sum(self._rows, self.exit_weights)
        for p, reached, part in zip(parameters, self._reached, whole.split(self._blocks.sizes)):
            if reached:
                gradient = part.view(p.shape)
                like = p.dtype == gradient.dtype and p.stride() == gradient.stride()
                p.grad = gradient if like else torch.empty_like(p).copy_(gradient)
        self._reached = []
