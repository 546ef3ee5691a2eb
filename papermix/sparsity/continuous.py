"""Continuous Sparsification: masks learned by gradient descent through an annealed sigmoid (Savarese, Silva & Maire 2020)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.sharding import full, like
from papermix.sparsity.mask import Parametrization
from papermix.sparsity.rounds import Rounds
from papermix.sparsity.scope import Weight


class _Soft(torch.autograd.Function):
    """``w * c sigmoid(beta s)``; keeps two tensors, and its backward is three passes over the weight."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, s: Tensor, beta: Tensor, scale: Tensor) -> Tensor:
        mask = (s * beta).sigmoid_().mul_(scale)
        ctx.save_for_backward(w, mask, beta, scale)
        return w * mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        w, mask, beta, scale = ctx.saved_tensors
        to_w = grads[0] * mask
        # d/ds c sigmoid(beta s) = beta mask (1 - mask / c)
        to_s = torch.addcmul(beta, mask, beta / scale, value=-1) * (to_w * w) if ctx.needs_input_grad[1] else None
        return to_w, to_s, None, None


class _Sampled(torch.autograd.Function):
    """``w * c m`` with m drawn from Bernoulli(sigmoid(s)), whose gradient passes straight through to the probability."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, s: Tensor, scale: Tensor) -> Tensor:
        p = torch.sigmoid(s)
        mask = torch.bernoulli(p).mul_(scale)
        ctx.save_for_backward(w, mask, p, scale)
        return w * mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        w, mask, p, scale = ctx.saved_tensors
        return grads[0] * mask, grads[0] * w * (scale * p * (1 - p)), None


class _Hard(torch.autograd.Function):
    """``w * c 1[s > 0]``; s has the gradient 0 (not none: processes that wait for it would wait for ever)."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, s: Tensor, scale: Tensor) -> Tensor:
        mask = (s > 0) * scale
        ctx.save_for_backward(mask)
        return w * mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (mask,) = ctx.saved_tensors
        return grads[0] * mask, torch.zeros_like(mask), None


class SoftMask(Parametrization):
    """``weight * c sigmoid(beta s)`` while it is learned, ``weight * c 1[s > 0]`` once it is ``hard``.

    With ``c = 1 / sigmoid(s0)`` the weight is unchanged at the start. All state but s is in buffers: ``beta``, ``scale`` (c) and
    ``hard``, mirrored in ``fixed``.

    Args:
        weight: the tensor to be masked; s has its shape and starts at ``initial``.
        initial: s0.
        sample: draw the mask anew in each forward of training instead; evaluation uses the hard one.
        sgd: settings of the SGD that trains s; None: the optimizer of the weights does.
        scale: c; None: 1 / sigmoid(s0).
    """

    beta: Tensor
    scale: Tensor
    hard: Tensor

    def __init__(
        self, weight: Tensor, initial: float, sample: bool = False, sgd: dict[str, Any] | None = None, scale: float | None = None
    ):
        super().__init__()
        weight = weight.detach()
        self.logits = nn.Parameter(torch.full_like(weight, initial))
        self.logits.is_mask = True  # type: ignore[attr-defined]
        if sgd:
            self.logits.sgd = sgd  # type: ignore[attr-defined]
        self.register_buffer("beta", weight.new_ones(()))
        self.register_buffer("scale", weight.new_tensor(1 + math.exp(-initial) if scale is None else scale))
        self.register_buffer("hard", torch.zeros((), dtype=torch.bool, device=weight.device))
        self.sample, self.fixed = sample, False

    def forward(self, weight: Tensor) -> Tensor:
        if self.fixed or (self.sample and not self.training):
            return _Hard.apply(weight, self.logits, self.scale)
        if self.sample:
            return _Sampled.apply(weight, self.logits, self.scale)
        return _Soft.apply(weight, self.logits, self.beta, self.scale)

    def kept(self) -> Tensor:
        return full((self.logits > 0).sum())

    def fix(self) -> None:
        """From now on the mask is hard."""
        self.hard.fill_(True)
        self.fixed = True

    @torch.no_grad()
    def soft(self) -> Tensor:
        """``sigmoid(beta s)``, the probability of a mask that is drawn; sharded if the logits are."""
        return torch.sigmoid(self.logits * self.beta)

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """Put entry ``order[i]`` in place i (int64, a permutation of the flattened weight)."""
        self.logits.copy_(like(full(self.logits).flatten()[order].view(self.logits.shape), self.logits))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.fixed = bool(self.hard)


class ContinuousSparsification(Rounds):
    """Learn which weights to keep: ``min L(w * c sigmoid(beta s)) + penalty * sum(c sigmoid(beta s))`` over w and s, beta rising.

    In each round beta goes from 1 to ``beta`` along a geometric sequence, so that the sigmoid becomes the step 1[s > 0], which is
    the mask. Between rounds ``s <- min(beta s, s0)`` and beta is 1 again: what was removed stays removed, what was kept starts
    anew (Savarese et al. 2020, algorithm 1; the weights are not rewound between rounds). Density counts s > 0: it is 0 right
    after a start with s0 <= 0, when nothing is decided.

    Args:
        initial: s0: lower is sparser. At 0 or above, weights that get no gradient stay undecided or kept.
        beta: temperature at the end of a round.
        penalty: weight of the sum (not the mean) of the masks.
        levels: number of temperatures in a round, evenly spread; null: another one for each step. The paper's: its epochs.
        lr: learning rate of s under plain SGD, moved by the schedule of the weights; null: s is trained by the optimizer of
            the weights, in its group ``masks``.
        momentum: Nesterov momentum of that SGD.
        train_weights: false: all parameters but the masks stay as they were made, a supermask (Zhou et al. 2019).
        rounds, retrain, rewind, shuffle: see :class:`Rounds`.
        types, include, exclude: which weights, see :class:`Sparsity`.
    """

    sample = False

    def __init__(
        self,
        initial: float = -0.1,
        beta: float = 200.0,
        penalty: float = 1e-8,
        levels: int | None = None,
        lr: float | None = 0.1,
        momentum: float = 0.9,
        train_weights: bool = True,
        **options: Any,
    ):
        super().__init__(**options)
        if not math.isfinite(initial):
            raise UserError(f"sparsity.initial={initial} must be finite.")
        if not beta >= 1 or not math.isfinite(beta):
            raise UserError(f"sparsity.beta={beta} must be at least 1: the temperature rises from 1 to it.")
        if penalty < 0:
            raise UserError(f"sparsity.penalty={penalty} must not be negative.")
        if levels is not None and levels < 2:
            raise UserError(f"sparsity.levels={levels} must be at least 2, or null for a temperature at every step.")
        if lr is not None and lr < 0:
            raise UserError(f"sparsity.lr={lr} must not be negative.")
        if not 0 <= momentum < 1:
            raise UserError(f"sparsity.momentum={momentum} must lie in [0, 1).")
        if not train_weights and self.retrain != "none":
            raise UserError("sparsity.train_weights=false leaves nothing to retrain: set sparsity.retrain=none.")
        self.initial, self.beta, self.penalty, self.levels, self.train_weights = initial, beta, penalty, levels, train_weights
        self.sgd = None if lr is None else {"lr": lr, "momentum": momentum, "nesterov": momentum > 0}
        self._beta: float | None = None  # what the parts' beta was last set to

    def make(self, weight: Weight) -> SoftMask:
        return SoftMask(weight.tensor, self.initial, self.sample, self.sgd)

    def attach(self, model: nn.Module) -> None:
        """See :meth:`Sparsity.attach`."""
        super().attach(model)
        if not self.train_weights:
            for p in model.parameters():
                p.requires_grad_(getattr(p, "is_mask", False))

    def temperature(self, step: int, steps: int) -> float:
        """beta at step ``step`` of a round of ``steps``: ``beta_T ** (e / (E - 1))`` at the e-th of E levels."""
        levels = min(self.levels or steps, steps)
        return self.beta ** (step * levels // steps / (levels - 1)) if levels > 1 else self.beta

    def move(self, step: int, steps: int) -> bool:
        if not self.sample:
            beta = self.temperature(step, steps)
            if beta != self._beta:
                for part in self.parts.values():
                    part.beta.fill_(beta)
                self._beta = beta
        # a look at a hundred points of a round, and at its end
        return step == steps - 1 or 100 * step // steps != 100 * (step - 1) // steps

    @torch.no_grad()
    def penalty_backward(self) -> None:
        """Add ``penalty * c * beta * sigmoid * (1 - sigmoid)`` to the gradient of s."""
        if not self.penalty:
            return
        for part in self.parts.values():
            if not part.fixed and part.logits.requires_grad:
                soft = part.soft()
                slope = (soft - soft * soft) * (self.penalty * part.scale * part.beta)
                part.logits.grad = slope if part.logits.grad is None else part.logits.grad.add_(slope)

    @torch.no_grad()
    def between_rounds(self) -> bool:
        for part in self.parts.values():
            part.logits.mul_(self.beta).clamp_(max=self.initial)
        return True

    def finish(self) -> bool:
        for part in self.parts.values():
            part.fix()
        return False

    @torch.no_grad()
    def numbers(self) -> dict[str, float]:
        """Largest distance of a soft mask from its hard one; mean of the soft masks relative to the start's, cut at 1.

        The mean is 1 at the start and the density at the end of a round.
        """
        parts = list(self.parts.values())
        if self.sample or all(part.fixed for part in parts):
            return {}
        masks = [part.soft() for part in parts]
        gap = torch.stack([full((m - (p.logits > 0).float()).abs().amax()) for m, p in zip(masks, parts)]).amax()
        soft = torch.stack([full((m * p.scale).clamp_(max=1).sum()) for m, p in zip(masks, parts)]).sum()
        return {"mask_gap": float(gap), "soft_density": float(soft) / sum(m.numel() for m in masks)}


class StochasticSparsification(ContinuousSparsification):
    """Stochastic Sparsification: m drawn from Bernoulli(sigmoid(s)) at every step, straight-through, no temperature.

    The comparison of Savarese et al. 2020 (over Srinivas et al. 2017 and Zhou et al. 2019); with several rounds it is their
    Iterative Stochastic Sparsification. Between rounds what has s <= 0 is removed for good, the rest starts at s0 again. Masks are
    not scaled (c = 1), and evaluation uses the likelier one.
    """

    sample = True

    def __init__(self, initial: float = 0.0, penalty: float = 1e-8, lr: float | None = 0.1, **options: Any):
        super().__init__(initial=initial, beta=1.0, penalty=penalty, levels=None, lr=lr, **options)

    def make(self, weight: Weight) -> SoftMask:
        return SoftMask(weight.tensor, self.initial, True, self.sgd, scale=1.0)

    @torch.no_grad()
    def between_rounds(self) -> bool:
        for part in self.parts.values():
            # at -1e4 the probability is 0, and no step leads back
            part.logits.copy_(torch.where(part.logits > 0, self.initial, -1e4))
        return True
