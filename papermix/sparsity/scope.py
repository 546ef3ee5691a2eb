"""Which weights of a model a sparsity acts on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from logging import getLogger

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from papermix.errors import UserError, nearest

log = getLogger(__name__)

TYPES: dict[str, tuple[type, ...]] = {
    "linear": (nn.Linear, nn.Bilinear),
    "conv": (_ConvNd,),
    "recurrent": (nn.RNNBase, nn.RNNCellBase),
    "attention": (nn.MultiheadAttention,),
    "embedding": (nn.Embedding, nn.EmbeddingBag),
    "other": (nn.Module,),
}


@dataclass
class Weight:
    """A tensor of two or more dimensions and every place in the model that holds it (several when tied).

    ``name`` is its first name, ``tensor`` the parameter, or what an earlier parametrization makes of several.
    """

    name: str
    tensor: torch.Tensor
    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)

    @property
    def numel(self) -> int:
        return self.tensor.numel()


def weights(model: nn.Module) -> list[Weight]:
    """All weights of ``model`` (biases left out), tied ones once, in the order of its modules; parametrized ones included."""
    found: dict[int, Weight] = {}
    for path, module, attribute, tensor in _tensors(model):
        if tensor.ndim < 2 or attribute.startswith("bias"):
            continue
        name = f"{path}.{attribute}" if path else attribute
        weight = found.setdefault(id(tensor), Weight(name, tensor))
        weight.places.append((module, attribute))
        weight.names.append(name)
        weight.types.append(next(kind for kind, classes in TYPES.items() if isinstance(module, classes)))
    return list(found.values())


def _tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, torch.Tensor]]:
    for path, module in model.named_modules():
        if "parametrizations" in path.split("."):
            continue
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield path, module, attribute, parameter
        if parametrize.is_parametrized(module):
            for attribute, chain in module.parametrizations.items():  # type: ignore[operator, union-attr]
                with torch.no_grad():
                    yield path, module, attribute, chain.original if chain.is_tensor else getattr(module, attribute)


def select(model: nn.Module, types: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> list[Weight]:
    """The weights whose layer is of one of ``types`` and whose name matches a pattern of ``include`` and none of ``exclude``.

    A tied weight is selected only if every place that holds it is.

    Raises:
        UserError: an unknown type, a pattern that matches nothing, or nothing selected; it names what exists.
    """
    for kind in types:
        if kind not in TYPES:
            raise UserError(f"sparsity.types has no '{kind}'{nearest(kind, TYPES)}: choose from {', '.join(TYPES)}.")
    candidates = weights(model)
    names = [name for weight in candidates for name in weight.names]
    for pattern in [*include, *exclude]:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"sparsity pattern '{pattern}' matches no weight{nearest(pattern, names)}: there are {_some(names)}.")

    def chosen(name: str, kind: str) -> bool:
        return kind in types and any(fnmatchcase(name, p) for p in include) and not any(fnmatchcase(name, p) for p in exclude)

    selected, left = [], []
    for weight in candidates:
        hits = [chosen(name, kind) for name, kind in zip(weight.names, weight.types)]
        if all(hits):
            selected.append(weight)
        elif any(hits):
            left.append(" = ".join(f"{name} ({kind})" for name, kind in zip(weight.names, weight.types)))
    if left:
        log.warning("Sparsity leaves tied weights dense unless types and include select all their places: %s", "; ".join(left))
    if not selected:
        there = _some([f"{name} ({kind})" for weight in candidates for name, kind in zip(weight.names, weight.types)])
        raise UserError(f"sparsity selects no weight of {type(model).__name__}: widen types or include; there are {there}.")
    return selected


def _some(names: Sequence[str], most: int = 12) -> str:
    return (", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")) or "none"
