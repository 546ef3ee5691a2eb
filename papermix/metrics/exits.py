"""What the exits of a network cost."""

from typing import Any

import torch
from torch import Tensor, nn

from papermix.metrics.count import flops


class FirstExits(nn.Module):
    """The first ``count`` exits of a network that computes them step by step, and nothing of the others.

    Args:
        model: has ``start(x) -> state`` and ``step(state) -> (output, state)``.
        count: number of exits.
    """

    def __init__(self, model: nn.Module, count: int):
        super().__init__()
        self.model: Any = model
        self.count = count

    def forward(self, x: Tensor) -> list[Tensor]:
        """The outputs of these exits."""
        outputs, state = [], self.model.start(x)
        for _ in range(self.count):
            output, state = self.model.step(state)
            outputs.append(output)
        return outputs


def exit_flops(model: Any, example: Tensor, effective: bool = False) -> list[int]:
    """Floating-point operations of one example up to each exit, its own and all earlier classifiers included.

    Args:
        model: a network with ``num_exits``, ``start`` and ``step``, such as :class:`papermix.models.nested.base.ExitModel`.
        example: a batch of its inputs; the first is used.
        effective: count only what non-zero weights need; see :func:`papermix.metrics.count.flops`.
    """
    with torch.inference_mode(False):  # in which a parametrized weight cannot be counted
        one = example[:1].clone()
        return [flops(FirstExits(model, k), one, effective) for k in range(1, model.num_exits + 1)]
