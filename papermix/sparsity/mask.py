"""What a sparsity puts on a weight, and how it is baked into a plain tensor."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from papermix.errors import UserError


class Parametrization(nn.Module):
    """Base of what a sparsity puts on one weight: ``forward(weight) -> weight``; all its state is in buffers and parameters."""

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Assigning to a sparse weight assigns to the tensor under it."""
        return weight

    def kept(self) -> Tensor:
        """Number of entries that are not zeroed, a scalar tensor."""
        raise NotImplementedError


class Mask(Parametrization):
    """``weight * mask``, so that a masked weight is zero and gets no gradient.

    Buffers: ``mask`` (bool, of the weight's shape) and ``updates``, the schedule updates done (-1: none), mirrored as the
    Python number ``done`` so that asking costs no wait for the device.
    """

    mask: Tensor
    updates: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool, requires_grad=False))
        self.register_buffer("updates", torch.tensor(-1, device=weight.device))
        self.done = -1

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def kept(self) -> Tensor:
        return self.mask.sum()

    def permute(self, order: Tensor) -> None:
        """Put entry ``order[i]`` in place i (int64, a permutation of the flattened weight)."""
        self.mask.copy_(self.mask.flatten()[order].view_as(self.mask))

    def set(self, mask: Tensor, done: int) -> bool:
        """Take over ``mask`` (bool, the weight's shape) as the result of update ``done``; True if it differs from the last."""
        moved = not torch.equal(mask, self.mask)
        self.mask.copy_(mask)
        self.updates.fill_(done)
        self.done = done
        return moved

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.done = int(self.updates)


def follow_parametrizations(module: nn.Module) -> None:
    """Let a parametrized RNN, LSTM or GRU compute with its parametrized weights, each evaluated once per forward.

    These modules keep a list of their weights' tensors (cuDNN's flat weights), which would still be the tensors underneath.
    The change is made on the class that parametrize injected for this one module and goes away with it.
    """
    cls, plain = type(module), type(module).__bases__[0]
    if not isinstance(module, nn.RNNBase) or "_flat_weights" in vars(cls):
        return

    def flat_weights(rnn: Any) -> list[Tensor]:
        held = rnn.__dict__.get("_held_weights")
        return [getattr(rnn, name) for name in rnn._flat_weights_names] if held is None else held

    def forward(rnn: Any, *args: Any, **kwargs: Any) -> Any:
        rnn.__dict__["_held_weights"] = flat_weights(rnn)
        try:
            return plain.forward(rnn, *args, **kwargs)  # type: ignore[attr-defined]
        finally:
            del rnn.__dict__["_held_weights"]

    def keep(rnn: Any, *_: Any) -> None:
        """Nothing to store or flatten: the weights are computed anew in each forward."""

    members = dict.fromkeys(("_init_flat_weights", "_update_flat_weights", "flatten_parameters"), keep)
    for name, value in {"_flat_weights": property(flat_weights, keep), "forward": forward, **members}.items():
        setattr(cls, name, value)


@torch.no_grad()
def finalize(model: nn.Module) -> nn.Module:
    """Replace every sparsity on ``model`` (the trained one or a copy) by plain tensors, in place: same outputs, plain keys.

    Parametrizations of other origin stay; their ``right_inverse`` receives the sparse weight, so weight norm, say, stays
    weight norm.

    Raises:
        UserError: there is nothing to bake, or another parametrization cannot represent the sparse weight.
    """
    found = [
        (module, attribute, chain)
        for module in list(model.modules())
        if parametrize.is_parametrized(module)
        for attribute, chain in module.parametrizations.items()  # type: ignore[operator, union-attr]
        if any(isinstance(part, Parametrization) for part in chain)
    ]
    if not found:
        raise UserError(f"this {type(model).__name__} carries no sparsity, so there is nothing to bake in.")
    # all values first: tied weights share the tensor that is about to change
    values = [getattr(module, attribute).clone() for module, attribute, _ in found]
    for module in {module for module, _, _ in found}:
        # deep copies share the class that parametrize injected, and baking changes that class
        cls = type(module)
        members = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__")}
        module.__class__ = type(cls.__name__, cls.__bases__, members)
    for (module, attribute, chain), value in zip(found, values):
        if all(isinstance(part, Parametrization) for part in chain):
            parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
            getattr(module, attribute).copy_(value)
        else:
            for index in reversed(range(len(chain))):
                if isinstance(chain[index], Parametrization):
                    del chain[index]
            _assign(module, attribute, value)
        if isinstance(module, nn.RNNBase) and not parametrize.is_parametrized(module):
            module._init_flat_weights()
    return model


def _assign(module: nn.Module, attribute: str, value: Tensor) -> None:
    try:
        setattr(module, attribute, value)
        same = torch.allclose(getattr(module, attribute), value, rtol=1e-5, atol=1e-7)
    except (RuntimeError, NotImplementedError):
        same = False
    if not same:
        parts = ", ".join(type(part).__name__ for part in module.parametrizations[attribute])  # type: ignore[index]
        raise UserError(f"sparse '{attribute}' of {type(module).__name__} cannot be baked in under {parts}: remove those first.")


def plain_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The ``state_dict`` of a sparse model as that of the same model without sparsity, zeroed weights zero.

    A soft mask counts as the hard one that it becomes.

    Raises:
        UserError: a weight is parametrized by something else than masks, so that only its model can compute it.
    """
    from papermix.sparsity.hard_concrete import gate

    plain: dict[str, Tensor] = {}
    for key, value in state.items():
        path, found, rest = ("." + key).rpartition(".parametrizations.")
        if not found:
            plain[key] = value
            continue
        attribute, part = rest.split(".", 1)
        if part == "original":
            chain = key.removesuffix("original")
            for k in sorted(k for k in state if k.startswith(chain)):
                if k.endswith(".mask"):
                    value = value * state[k]
                elif k.endswith(".logits"):
                    value = value * ((state[k] > 0) * state[k.removesuffix("logits") + "scale"])
                elif k.endswith(".log_alpha"):
                    value = value * gate(state[k])
            plain[f"{path}.{attribute}".removeprefix(".")] = value
        elif part.split(".")[-1] not in ("mask", "updates", "logits", "beta", "scale", "hard", "log_alpha"):
            raise UserError(f"'{key}' is no mask, so its weight cannot be read without its model: bake the sparsity in first.")
    return plain
