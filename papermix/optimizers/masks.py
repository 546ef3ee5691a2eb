"""Learned masks beside the weights: one optimizer to the outside, plain SGD for the masks within."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import SGD, Optimizer


class WithMasks(Optimizer):
    """Steps the weights with one optimizer and learned masks with SGD; parameter groups and state are those of both.

    How sparse a mask becomes depends on the size of its steps, so a mask learned by gradient descent keeps SGD whatever the
    weights are trained with (Savarese et al. 2020, Continuous Sparsification).

    Args:
        masks: steps the masks.
        weights: steps the weights; None when they are frozen.
    """

    def __init__(self, masks: SGD, weights: Optimizer | None = None):
        self.parts: list[Optimizer] = [masks] if weights is None else [weights, masks]
        # the dictionaries of the groups are shared: a schedule that sets a rate here sets it there
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._join()

    def _join(self) -> None:
        """One state and one list of groups, of which each part sees its own."""
        for part in self.parts[1:]:
            self.parts[0].state.update(part.state)
            part.state = self.parts[0].state
        self.state = self.parts[0].state
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of both; returns what ``closure`` does."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for part in self.parts:
            part.step()
        return result

    def state_dict(self) -> dict[str, Any]:
        """The states of both, under ``parts``."""
        return {"parts": [_own(part) for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._join()


def _own(part: Optimizer) -> dict[str, Any]:
    """A part's state without that of the other, with which it shares the dictionary."""
    mine = {id(p) for group in part.param_groups for p in group["params"]}
    shared = part.state
    part.state = type(shared)(dict, {p: state for p, state in shared.items() if id(p) in mine})
    try:
        return part.state_dict()
    finally:
        part.state = shared


def with_masks(make: Callable[[list[dict[str, Any]]], Optimizer], groups: list[dict[str, Any]]) -> Optimizer:
    """``make(groups)``, but groups with the key ``sgd`` (see ``param_groups``) are stepped by SGD with these settings."""
    own = [{k: v for k, v in group.items() if k != "sgd"} | group["sgd"] for group in groups if "sgd" in group]
    if not own:
        return make(groups)
    weights = [group for group in groups if "sgd" not in group]
    return WithMasks(SGD(own, lr=0.0, foreach=True), make(weights) if weights else None)
