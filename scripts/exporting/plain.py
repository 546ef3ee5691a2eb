"""Functions on networks that an exported ``load.py`` takes over word by word: they need torch alone."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


def make_plain(model: nn.Module) -> None:
    """Replace every parametrization by the tensor that it computes in evaluation mode, in place."""
    model.eval()
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name)
            if isinstance(module, nn.RNNBase):
                module._init_flat_weights()


def fit_sizes(model: nn.Module, sizes: dict[str, dict[str, Any]], tensors: dict[str, Tensor]) -> None:
    """Give layers the sizes in ``sizes`` (layer -> attribute -> value), parameters and buffers the shapes of ``tensors``."""
    for name, values in sizes.items():
        vars(model.get_submodule(name)).update({k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    for name, own in [*model.named_parameters(), *model.named_buffers()]:
        if name in tensors and own.shape != tensors[name].shape:
            own.data = torch.empty_like(tensors[name])


def outputs(value: Any) -> dict[str, Tensor]:
    """The tensors of a network's output by name: ``output``, the keys of a dict, ``output0``, ``output1``, ... of several.

    Behind logits, the nested tuples of a carried state are ``state0``, ``state1``, ...
    """
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, Tensor):
        return {"output": value}
    if all(isinstance(v, Tensor) for v in value):
        return {f"output{i}": v for i, v in enumerate(value)}
    first, *state = value
    while any(isinstance(s, tuple | list) for s in state):
        state = [t for s in state for t in (s if isinstance(s, tuple | list) else [s])]
    return {"output": first} | {f"state{i}": s for i, s in enumerate(state)}
