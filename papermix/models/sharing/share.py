"""Sharing as a transformation of any network: which layers draw from which bank, and how alike they have become."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papermix.errors import UserError, nearest
from papermix.models.image_model import check_positive
from papermix.models.sharing.bank import Shared, TemplateBank, attach

KINDS: dict[str, tuple[type[nn.Module], ...]] = {"conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d), "linear": (nn.Linear,)}
ROWS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class _Place:
    """A layer that may share, where it stands, and what it must have in common with those that it shares with."""

    name: str
    layer: Any
    signature: tuple[Any, ...]


def share(
    model: nn.Module,
    templates: int | None = 2,
    kinds: Sequence[str] = ("conv",),
    scope: Literal["stage", "network"] = "stage",
    skip_first: bool = True,
    pointwise: bool = False,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    init: Literal["random", "fit"] = "random",
) -> nn.Module:
    """Let layers with weights of one shape draw them from a bank of templates, in place.

    A bank serves the layers of one class, weight shape and number of groups within a stage. A stage is the innermost
    ``Sequential``, ``ModuleList`` or ``ModuleDict`` of which several children hold such a layer (``layer1`` of a ResNet); without
    one it is the whole network. On a wide ResNet this gives the paper's SWRN: a bank a stage, the first block ordinary.

    Args:
        model: any network; norms, biases and all other layers stay as they are.
        templates: k, of each bank, but not more than it has layers; None: as many as layers (no saving, another parametrisation).
        kinds: ``conv``, ``linear``.
        scope: ``stage``, or ``network``: layers of different stages may share.
        skip_first: the first child of each stage, where shapes change, stays ordinary, as in the paper.
        pointwise: let convolutions with a kernel of one position share too.
        include: patterns of layer names, of which one must match (``layer1.*``).
        exclude: patterns of layer names that stay ordinary.
        init: ``random``: templates are normal with the spread of the weights that they replace (He's where the network has it,
            as the paper), coefficients orthogonal. ``fit``: the best approximation of the present weights (a singular value
            decomposition), exact with as many templates as layers: for trained networks.

    Returns:
        ``model``.

    Raises:
        UserError: unknown words, a pattern that matches nothing, a model that shares already, or nothing to share.
    """
    if templates is not None:
        check_positive(templates=templates)
    words = [
        *((kind, tuple(KINDS), "kinds") for kind in kinds),
        (scope, ("stage", "network"), "scope"),
        (init, ("random", "fit"), "init"),
    ]
    for word, known, key in words:
        if word not in known:
            raise UserError(f"sharing has no {key}={word!r}{nearest(str(word), known)}: choose from {', '.join(known)}.")
    if any(isinstance(m, Shared) for m in model.modules()):
        raise UserError(f"this {type(model).__name__} shares already: share a plain network.")
    groups: dict[tuple[Any, ...], list[_Place]] = {}
    places = list(_places(model, kinds, pointwise, include, exclude))
    for place in places:
        stage, child = _stage(model, place, places)
        if not (skip_first and child == 0):
            groups.setdefault((stage if scope == "stage" else "", *place.signature), []).append(place)
    groups = {key: found for key, found in groups.items() if len(found) > 1}
    if not groups:
        shapes = sorted({"x".join(map(str, p.signature[1])) for p in places})
        raise UserError(
            f"no two layers of this {type(model).__name__} can share; there are weights of "
            f"{', '.join(shapes[:8]) or 'no kind asked for'}: widen kinds or include, "
            "or set skip_first=false, pointwise=true or scope=network."
        )
    stages = [key[0] for key in groups]
    for group, found in groups.items():
        shape = found[0].signature[1]
        name = group[0] or "network"
        if stages.count(group[0]) > 1:
            name += " " + "x".join(map(str, shape))
        _join(name, [p.layer for p in found], shape, min(templates or len(found), len(found)), init)
    return model


def _places(
    model: nn.Module, kinds: Sequence[str], pointwise: bool, include: Sequence[str], exclude: Sequence[str]
) -> Iterator[_Place]:
    classes = tuple(cls for kind in kinds for cls in KINDS[kind])
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    layers = {name: m for name, m in model.named_modules() if isinstance(m, classes) and m._parameters.get("weight") is not None}
    for pattern in [*include, *exclude]:
        if layers and not any(fnmatchcase(name, pattern) for name in layers):
            raise UserError(f"sharing pattern '{pattern}' matches no layer{nearest(pattern, layers)}.")
    for name, layer in layers.items():
        weight: Any = layer.weight
        chosen = any(fnmatchcase(name, p) for p in include) and not any(fnmatchcase(name, p) for p in exclude)
        # a tied weight belongs to several layers already
        if chosen and uses[id(weight)] == 1 and (weight.ndim == 2 or pointwise or weight[0, 0].numel() > 1):
            yield _Place(name, layer, (type(layer), tuple(weight.shape), getattr(layer, "groups", 1)))


def _stage(model: nn.Module, place: _Place, places: Sequence[_Place]) -> tuple[str, int | None]:
    """Path of a layer's stage, and in which of its children the layer stands; ("", None) where there is none."""
    alike = [p.name.split(".") for p in places if p.signature == place.signature]
    path = place.name.split(".")
    for depth in reversed(range(len(path))):
        row = model.get_submodule(".".join(path[:depth]))
        if isinstance(row, ROWS) and len({other[depth] for other in alike if other[:depth] == path[:depth]}) > 1:
            return ".".join(path[:depth]), list(row._modules).index(path[depth])
    return "", None


@torch.no_grad()
def _join(name: str, layers: list[Any], shape: tuple[int, ...], count: int, init: str) -> None:
    weights = torch.stack([layer.weight.detach().flatten() for layer in layers])
    # numbers that are not there cannot be measured
    std = None if weights.is_meta else float(weights.float().std())
    with torch.device(weights.device):
        bank = TemplateBank(count, shape, std, name)
    coefficients = None
    if init == "fit" and not weights.is_meta:
        left, scale, right = torch.linalg.svd(weights.double(), full_matrices=False)
        coefficients = left[:, :count]
        bank.stacked().copy_((scale[:count, None] * right[:count]).view(count, *shape))
    attach(bank, layers, coefficients)


def banks(model: nn.Module) -> dict[TemplateBank, dict[str, Shared]]:
    """The banks of a network and the layers that draw from each (name -> layer), in the order of its modules."""
    found: dict[TemplateBank, dict[str, Shared]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Shared):
            found.setdefault(module.bank, {})[name] = module
    return found


def similarity(coefficients: Tensor) -> Tensor:
    """``S[i, j] = |<a_i, a_j>| / (|a_i| |a_j|)`` of the rows of [layers, count]: 1 means the same kernel up to a factor."""
    unit = F.normalize(coefficients.float(), dim=1)
    return (unit @ unit.T).abs()


def similarities(model: nn.Module) -> dict[str, Tensor]:
    """The similarity matrix of every bank, by its name: float32 [layers, layers], with a graph to the coefficients."""
    return {
        bank.name: similarity(torch.stack([m.coefficients for m in layers.values()])) for bank, layers in banks(model).items()
    }


def above(matrices: Sequence[Tensor], threshold: float = 0.9) -> float:
    """Share of the pairs of different layers with a similarity of more than ``threshold``, over all matrices together."""
    pairs = [s[tuple(torch.triu_indices(len(s), len(s), 1))] for s in matrices]
    values = torch.cat(pairs) if pairs else torch.empty(0)
    return float((values > threshold).float().mean()) if len(values) else 0.0


def recurrence(model: nn.Module) -> Tensor:
    """``sum_ij S[i, j]`` over all banks; the paper's regulariser is ``loss - weight * recurrence(model)``."""
    matrices = list(similarities(model).values())
    if not matrices:
        raise UserError(f"this {type(model).__name__} has no shared layers: share(model) first.")
    return torch.stack([s.sum() for s in matrices]).sum()
