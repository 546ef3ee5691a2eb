"""Learning-rate schedules, moved once per optimizer step, all with linear warm-up.

Each schedule is a factor on the learning rate that each parameter group had when the schedule was made. With ``N`` optimizer
steps in all and ``w`` steps of warm-up, step ``k = 0 .. N-1`` uses ``factor(k)``; after the last step the factor is exactly
``factor(N)``, the schedule's end, and stays there. Warm-up is ``(k + 1) / (w + 1)`` for ``k < w``: never 0, full from ``w`` on.

A length (``warmup``, ``milestones``) is a fraction of training (``0.05``) or says its unit: ``'5 epochs'``, ``'500 steps'``.
"""

import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from papermix.errors import UserError

Length = float | str


class Schedule(LRScheduler):
    """Learning rate of every group = its base rate x ``factor(steps done)``; ``step()`` after each optimizer step.

    The state is the number of steps done and the base rates, so that a restored schedule goes on exactly.
    """

    needs_metric = False

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]):
        self.factor = factor
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        factor = self.factor(self.last_epoch)
        return [base * factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if len(state_dict["base_lrs"]) != len(self.base_lrs):
            raise UserError(
                f"the saved schedule has {len(state_dict['base_lrs'])} parameter groups and this one {len(self.base_lrs)}:"
                " resume with the configuration that was saved."
            )
        self.last_epoch, self.base_lrs = state_dict["steps"], list(state_dict["base_lrs"])
        self._step_count = self.last_epoch + 1
        self._apply()

    def _apply(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


class Plateau(Schedule):
    """Warm-up by step; from then on the rate is multiplied by ``decay`` when the monitored value stops improving.

    ``step()`` after each optimizer step, ``step(value)`` after each validation.
    """

    needs_metric = True

    def __init__(
        self, optimizer: Optimizer, warmup: int, mode: str, decay: float, patience: int, threshold: float, minimum: float
    ):
        self.warmup, self.mode, self.decay, self.patience = warmup, mode, decay, patience
        self.threshold, self.minimum = threshold, minimum
        self.level, self.best, self.waited = 1.0, -math.inf if mode == "max" else math.inf, 0
        super().__init__(optimizer, lambda k: _warm(k, warmup) * self.level)

    def step(self, metric: float | torch.Tensor | None = None) -> None:  # type: ignore[override]
        if metric is None:
            super().step()
            return
        value = float(metric)
        gain = value - self.best if self.mode == "max" else self.best - value
        if gain > self.threshold:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.waited > self.patience:
            self.level, self.waited = max(self.level * self.decay, self.minimum), 0
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"level": self.level, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.level, self.best, self.waited = (state_dict[key] for key in ("level", "best", "waited"))
        super().load_state_dict(state_dict)


def constant(optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup: Length = 0) -> Schedule:
    """The base rate throughout, after warm-up."""
    w = _warmup(warmup, total_steps, steps_per_epoch)
    return Schedule(optimizer, lambda k: _warm(k, w))


def multistep(
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    milestones: Sequence[Length] = (0.5, 0.75),
    gamma: float = 0.1,
    warmup: Length = 0,
) -> Schedule:
    """The rate is multiplied by ``gamma`` at each milestone; milestones count from the start of training, warm-up included."""
    w = _warmup(warmup, total_steps, steps_per_epoch)
    steps = [length("scheduler milestones", m, total_steps, steps_per_epoch) for m in milestones]
    if not steps or any(a >= b for a, b in pairwise(steps)):
        raise UserError(f"scheduler milestones {list(milestones)} must be a rising list: here they are steps {steps}.")
    if steps[0] <= 0 or steps[-1] >= total_steps:
        raise UserError(
            f"scheduler milestones {list(milestones)} must lie inside training: here they are steps {steps} of {total_steps}."
        )
    return Schedule(optimizer, lambda k: _warm(k, w) * gamma ** sum(k >= step for step in steps))


def cosine(optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup: Length = 0, final: float = 0.0) -> Schedule:
    """Half a cosine from the base rate to ``final`` times it (SGDR, Loshchilov & Hutter 2017, eq. 5, one cycle)."""
    return _decay(optimizer, total_steps, steps_per_epoch, warmup, final, lambda t: 0.5 * (1 + math.cos(math.pi * t)))


def linear(
    optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup: Length = 0, final: float = 0.0, end: Length = 1.0
) -> Schedule:
    """A straight line from the base rate to ``final`` times it, reached at ``end`` and kept from there."""
    return _decay(optimizer, total_steps, steps_per_epoch, warmup, final, lambda t: 1 - t, end)


def polynomial(
    optimizer: Optimizer, total_steps: int, steps_per_epoch: int, warmup: Length = 0, final: float = 0.0, power: float = 0.9
) -> Schedule:
    """``(1 - t) ** power`` from the base rate to ``final`` times it (0.9: DeepLab, Chen et al. 2017)."""
    if power <= 0:
        raise UserError(f"scheduler power={power} must be positive.")
    return _decay(optimizer, total_steps, steps_per_epoch, warmup, final, lambda t: (1 - t) ** power)


def one_cycle(
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    warmup: Length = 0.3,
    initial: float = 0.04,
    final: float = 0.000004,
) -> Schedule:
    """Half a cosine up from ``initial`` x the base rate, half a cosine down to ``final`` x (1cycle, Smith & Topin 2018).

    The base rate is the peak, reached after ``warmup``. Momentum is left alone.
    """
    w = _warmup(warmup, total_steps, steps_per_epoch)
    _check_factor("initial", initial)
    _check_factor("final", final)

    def factor(k: int) -> float:
        rising = k < w
        t = k / w if rising else min(1.0, (k - w) / (total_steps - w))
        low = initial if rising else final
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * (1 - t if rising else t)))

    return Schedule(optimizer, factor)


def plateau(
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    warmup: Length = 0,
    mode: str = "max",
    decay: float = 0.1,
    patience: int = 5,
    threshold: float = 0.0001,
    final: float = 0.0,
) -> Plateau:
    """Multiply the rate by ``decay`` after more than ``patience`` validations without a gain above ``threshold``."""
    if mode not in ("min", "max"):
        raise UserError(f"scheduler mode='{mode}' must be 'min' or 'max': the direction in which the monitored value improves.")
    if not 0 < decay < 1 or patience < 0:
        raise UserError(f"scheduler decay={decay} must lie in (0, 1) and patience={patience} must not be negative.")
    _check_factor("final", final)
    return Plateau(optimizer, _warmup(warmup, total_steps, steps_per_epoch), mode, decay, patience, threshold, final)


def round_of(step: int, total_steps: int, rounds: int) -> int:
    """Which of ``rounds`` equal rounds, 0-based, step ``step`` is in; round r starts at step ``r * total_steps // rounds``.

    From ``total_steps`` on it is the last one.
    """
    return min(rounds - 1, ((step + 1) * rounds - 1) // total_steps)


def restarting(make: Callable[..., Schedule], rounds: int) -> Callable[..., Schedule]:
    """``make`` (any function of this module) with its whole schedule in each of ``rounds`` equal rounds of training.

    Raises:
        UserError: the schedule waits for a plateau, so it has no length to repeat.
    """

    def scheduler(optimizer: Optimizer, total_steps: int, steps_per_epoch: int) -> Schedule:
        each = -(-total_steps // rounds) if isinstance(total_steps, int) else total_steps
        schedule = make(optimizer, total_steps=each, steps_per_epoch=steps_per_epoch)
        if schedule.needs_metric:
            raise UserError(f"a schedule that waits for a plateau cannot restart in {rounds} rounds: choose another scheduler=NAME.")
        once = schedule.factor
        schedule.factor = lambda k: once(k - round_of(k, total_steps, rounds) * total_steps // rounds)
        return schedule

    return scheduler


def _decay(
    optimizer: Optimizer,
    total: int,
    per_epoch: int,
    warmup: Length,
    final: float,
    shape: Callable[[float], float],
    end: Length = 1.0,
) -> Schedule:
    """Warm-up, then ``shape`` (1 at t=0, 0 at t=1) until ``end``, from where it stays at ``final``."""
    w = _warmup(warmup, total, per_epoch)
    _check_factor("final", final)
    e = length("scheduler end", end, total, per_epoch)
    if e <= w:
        raise UserError(f"scheduler end={end} is step {e}, but warm-up alone takes {w}: make it later.")

    def factor(k: int) -> float:
        return _warm(k, w) if k < w else final + (1 - final) * shape(min(1.0, (k - w) / (e - w)))

    return Schedule(optimizer, factor)


def _warm(k: int, w: int) -> float:
    return min(1.0, (k + 1) / (w + 1))


def _check_factor(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UserError(f"scheduler {name}={value} must lie in [0, 1]: it is a factor on the base learning rate.")


def _warmup(value: Length, total: int, per_epoch: int) -> int:
    if not (isinstance(total, int) and total >= 1):
        raise UserError("the schedule must know how long training is: set trainer.max_epochs or trainer.max_steps.")
    w = length("scheduler warmup", value, total, per_epoch)
    if w >= total:
        raise UserError(f"scheduler warmup={value} is {w} steps, but training has only {total}: make it shorter.")
    return w


def length(name: str, value: Length, total: int, per_epoch: int) -> int:
    """Optimizer steps in ``value``: a fraction of ``total``, or '<number> epochs' / '<number> steps'; ``name`` is for errors."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return round(value * total)
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+) ?(step|epoch)s?", value.strip()) if isinstance(value, str) else None
    if match is None:
        raise UserError(
            f"{name}: '{value}' is neither a fraction of training (0 to 1) nor a length like '5 epochs' or '500 steps'."
        )
    return round(float(match[1]) * (per_epoch if match[2] == "epoch" else 1))
