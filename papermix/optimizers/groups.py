"""Parameter groups: who gets weight decay, who gets which learning rate."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from papermix.errors import UserError, nearest


def plain_name(name: str) -> str:
    """Name of a parameter as if nothing were parametrized: ``fc.parametrizations.weight.original`` -> ``fc.weight``."""
    parts = name.split(".")
    if "parametrizations" not in parts:
        return name
    at = parts.index("parametrizations")
    rest = parts[at + 1 :]
    return ".".join(parts[:at] + (rest[:-1] if rest[-1].startswith("original") else rest))


def param_groups(
    model: nn.Module,
    decay_norm_and_bias: bool = True,
    layer_decay: float | None = None,
    lr: float | None = None,
    weight_decay_exclude: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Partition the trainable parameters of ``model`` into groups for any ``torch.optim`` optimizer.

    Every trainable parameter is in exactly one group, a shared (tied) one too. Learned masks (parameters with the attribute
    ``is_mask = True``) have groups of their own, without weight decay; what a parameter says of an SGD of its own (a dict in the
    attribute ``sgd``: lr, momentum, nesterov; masks have it, and classifiers that only watch) is the group's key ``sgd``, for
    ``with_masks``. A module's ``no_decay`` names those of its parameters that never get any weight decay. Each group carries a
    ``name``.

    Args:
        model: any module.
        decay_norm_and_bias: give weight decay to biases and normalisation parameters too. With False, everything that has
            at most one dimension, is called ``bias``, or is listed by the model's own ``no_weight_decay()`` gets none.
        layer_decay: the learning rate of a layer is ``lr * layer_decay ** (layers above it)`` (ULMFiT, Howard & Ruder 2018;
            BEiT, Bao et al. 2021): below 1, layers near the input move less. Layers are timm's ``group_matcher`` groups where
            the model has one, else the model's children in order (containers opened, norms joined to the layer before).
        lr: the optimizer's learning rate; needed with ``layer_decay`` only.
        weight_decay_exclude: patterns (``*.pos_embed``) of parameter names that get no weight decay.

    Raises:
        UserError: nothing to train, a pattern that matches nothing, or a ``layer_decay`` that cannot act.
    """
    named = [(plain_name(name), p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise UserError("the model has no trainable parameter: unfreeze some, or leave training out.")
    excluded = _matching([name for name, _ in named], weight_decay_exclude)
    if not decay_norm_and_bias:
        own: set[str] = getattr(model, "no_weight_decay", set)()
        excluded |= {name for name, p in named if p.ndim <= 1 or name.endswith("bias") or name in own}
    # on modules, since a copy of a parameter loses its attributes
    for path, module in model.named_modules():
        excluded |= {f"{path}.{own_name}".lstrip(".") for own_name in getattr(module, "no_decay", ())}
    layers = _layers(model, layer_decay, lr)

    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, p in named:
        sgd: dict[str, Any] = getattr(p, "sgd", {})
        kind = "masks" if getattr(p, "is_mask", False) else "own_sgd" if sgd else "no_decay" if name in excluded else "decay"
        layer = 0 if sgd else layers.get(name, 0)
        key = (layer, kind, *sgd.values())
        if key not in groups:
            own_sgd = {"params": [], "name": kind, "weight_decay": 0.0, "sgd": dict(sgd)}
            groups[key] = own_sgd if sgd else _new_group(kind, layer, layers, layer_decay, lr)
        groups[key]["params"].append(p)
    return [groups[key] for key in sorted(groups)]


def _new_group(kind: str, layer: int, layers: dict[str, int], layer_decay: float | None, lr: float | None) -> dict[str, Any]:
    group: dict[str, Any] = {"params": [], "name": kind}
    if kind != "decay":
        group["weight_decay"] = 0.0
    if layer_decay is not None and lr is not None:
        group["name"] = f"layer_{layer}_{kind}"
        group["lr"] = lr * layer_decay ** (max(layers.values()) - layer)
    return group


def _matching(names: list[str], patterns: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if fnmatchcase(name, pattern)}
        if not hits:
            raise UserError(f"weight_decay_exclude '{pattern}' matches no trainable parameter{nearest(pattern, names)}.")
        found |= hits
    return found


def _layers(model: nn.Module, layer_decay: float | None, lr: float | None) -> dict[str, int]:
    """Layer index of each parameter (plain name), 0 nearest the input; empty without ``layer_decay``."""
    if layer_decay is None:
        return {}
    if not 0 < layer_decay <= 1:
        raise UserError(f"layer_decay={layer_decay} must lie in (0, 1]: it is the factor from a layer to the one below it.")
    if lr is None:
        raise UserError("layer_decay needs the learning rate it scales: set optimizer.lr.")
    if hasattr(model, "group_matcher"):
        from timm.models import group_parameters

        found = group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
        layers = {plain_name(name): index for name, index in found.items()}
    else:
        layers = _layers_by_order(model)
    if len(set(layers.values())) < 2:
        raise UserError(f"layer_decay={layer_decay} has no effect: {type(model).__name__} has a single layer; leave it out.")
    return layers


def _layers_by_order(model: nn.Module) -> dict[str, int]:
    """Children with weights, in order, containers opened; a child with only vectors (a norm) belongs to the layer before it."""
    layers: dict[str, int] = {}
    index = -1

    def walk(path: str, module: nn.Module) -> None:
        nonlocal index
        for name, child in module.named_children():
            if isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict):
                walk(f"{path}{name}.", child)
            elif name != "parametrizations":
                own = list(child.named_parameters())
                index += any(p.ndim > 1 for _, p in own)
                layers.update({plain_name(f"{path}{name}.{own_name}"): max(index, 0) for own_name, _ in own})

    walk("", model)
    # parameters of the model itself (a class token) come in with the input
    return layers | {name: 0 for name, _ in model.named_parameters(recurse=False)}
