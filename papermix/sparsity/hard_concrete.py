"""L0 regularisation by hard concrete gates (Louizos, Welling & Kingma 2018, arXiv:1712.01312)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.sharding import full
from papermix.sparsity.base import Sparsity
from papermix.sparsity.mask import Parametrization
from papermix.sparsity.scope import Weight

# section 4.1 of the paper: temperature, and the interval to which the concrete distribution is stretched
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1


def gate(log_alpha: Tensor) -> Tensor:
    """The gate without noise (eq. 13), in [0, 1]."""
    return (torch.sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """P(gate != 0) (eq. 12)."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


class Gate(Parametrization):
    """``weight * z``, z hard concrete (eq. 10 and 11): drawn anew in each forward of training, without noise otherwise."""

    hard: Tensor

    def __init__(self, weight: Tensor, keep: float, sgd: dict[str, Any] | None):
        super().__init__()
        mean = math.log(keep) - math.log(1 - keep)
        self.log_alpha = nn.Parameter(torch.empty_like(weight.detach()).normal_(mean, 0.01))
        self.log_alpha.is_mask = True  # type: ignore[attr-defined]
        if sgd:
            self.log_alpha.sgd = sgd  # type: ignore[attr-defined]
        self.register_buffer("hard", torch.zeros((), dtype=torch.bool, device=weight.device))
        self.fixed = False

    def forward(self, weight: Tensor) -> Tensor:
        if self.fixed or not self.training:
            return weight * gate(self.log_alpha)
        u = torch.empty_like(self.log_alpha).uniform_(1e-6, 1 - 1e-6)
        z = torch.sigmoid((u.logit_() + self.log_alpha) / BETA)
        return weight * (z * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    @torch.no_grad()
    def kept(self) -> Tensor:
        return full((gate(self.log_alpha) != 0).sum())

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.fixed = bool(self.hard)


class HardConcrete(Sparsity):
    """Minimise ``E L(w * z) + penalty * sum P(z != 0)`` over w and the gates' ``log_alpha`` (eq. 9), one gate a weight.

    Gates are drawn in training and take their most likely form in evaluation and at the end. The density that comes out
    depends on the penalty, the length of training and the gates' learning rate; at the start no gate is closed, since
    training moves all of them from the same value.

    Args:
        penalty: weight of the sum (not the mean) of the probabilities; the paper divides its lambda by the training examples.
        keep: initial probability of the sigmoid, 1 - dropout rate, in (0, 1).
        lr: learning rate of the gates under plain SGD, moved by the schedule of the weights; null: the optimizer of the weights.
        momentum: Nesterov momentum of that SGD.
        types, include, exclude: which weights, see :class:`Sparsity`.
    """

    def __init__(
        self, penalty: float = 1e-3, keep: float = 0.5, lr: float | None = 10.0, momentum: float = 0.9, **scope: Any
    ):
        super().__init__(**scope)
        if not 0 < keep < 1:
            raise UserError(f"sparsity.keep={keep} must lie between 0 and 1.")
        if penalty < 0:
            raise UserError(f"sparsity.penalty={penalty} must not be negative.")
        self.penalty, self.keep = penalty, keep
        self.sgd = None if lr is None else {"lr": lr, "momentum": momentum, "nesterov": momentum > 0}

    def make(self, weight: Weight) -> Gate:
        return Gate(weight.tensor, self.keep, self.sgd)

    def update(self, step: int, total_steps: int) -> bool:
        """Nothing moves by schedule; True at a hundred points of training, where the density is worth another look."""
        return 100 * step // total_steps != 100 * (step - 1) // total_steps

    @torch.no_grad()
    def penalty_backward(self) -> None:
        """Add ``penalty * p (1 - p)``, p = P(z != 0), to the gradient of log_alpha."""
        for part in self.parts.values():
            p = open_probability(part.log_alpha)
            slope = self.penalty * p * (1 - p)
            part.log_alpha.grad = slope if part.log_alpha.grad is None else part.log_alpha.grad.add_(slope)

    def harden(self) -> bool:
        """No more noise; the density is that of the gates in evaluation."""
        for part in self.parts.values():
            part.hard.fill_(True)
            part.fixed = True
        return False
