"""Which channel dimensions of a network belong together, found by watching one forward pass; keeping only some channels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from papermix.errors import UserError, nearest
from papermix.surgery.labels import Axis, Tracer
from papermix.surgery.watch import answer, unchanged


@dataclass(frozen=True)
class Slot:
    """A place where a group's channels lie: along ``dim`` of ``module.attribute``, from ``offset``, ``repeat`` entries each.

    ``module`` is a name of ``model.named_modules()``; entry ``offset + c * repeat + r`` belongs to channel c, 0 <= r < repeat.
    """

    module: str
    attribute: str
    dim: int
    offset: int
    repeat: int


@dataclass
class Group:
    """Channels that can only come or go together, in every place that holds them.

    Attributes:
        name: of the first layer that makes them; with ``[a:b]`` where they are a part of its channels, and ``.in`` where no
            layer makes them.
        size: number of channels C.
        producers: output dimensions of convolutions, linear and recurrent layers and embeddings, biases included. A recurrent
            layer has one slot per gate.
        norms: what acts on every channel by itself: vectors and running statistics of norms, layer scales, depthwise filters.
        consumers: input dimensions of convolutions, linear and recurrent layers.
        counts: integers of modules that say how many there are (``new_chans`` of a module that pads channels with zeros).
        fixed: why their number cannot change ("" when it can).
        mixed: why taking channels away changes the others even when those taken are zero ("" when it does not): a mean over
            channels, as in layer norm.
        summed: whether the channels are sums of several layers' outputs, as those of a residual stream.
    """

    name: str
    size: int
    producers: list[Slot] = field(default_factory=list)
    norms: list[Slot] = field(default_factory=list)
    consumers: list[Slot] = field(default_factory=list)
    counts: list[Slot] = field(default_factory=list)
    fixed: str = ""
    mixed: str = ""
    summed: bool = False

    @property
    def slots(self) -> list[Slot]:
        """All places, each once."""
        return list(dict.fromkeys([*self.producers, *self.norms, *self.consumers, *self.counts]))


def channel_groups(model: nn.Module, example: Any) -> list[Group]:
    """The groups of coupled channels of ``model``, in the order in which the forward pass meets them.

    The network is run once, in eval mode, on ``example`` (a tensor, or a tuple of arguments), and every operation tells how the
    channels of its operands relate: sums couple, concatenations stack, convolutions turn one group into another. Nothing of the
    network is changed; parametrized weights are found under their own names (``conv.parametrizations.weight`` ``original``),
    tied ones under their first.

    An operation that is not known makes the channels that enter it ``fixed``. What cannot be seen: a number of channels
    that the network's own code has written down (``x.view(-1, 512)``).
    """
    tracer = Tracer(model)
    with unchanged(model), tracer.hooks(), tracer:
        output = answer(model, example)
    tracer.leave(output)
    return _groups(tracer)


def _groups(tracer: Tracer) -> list[Group]:
    """Runs of channels that lie side by side wherever they are."""
    tagged = np.zeros(len(tracer.parent), dtype=bool)
    for axis in tracer.owner:
        if axis.roles:
            tagged[tracer.find(axis.ids)] = True
    fixed = _by_root(tracer, tracer.fixed)
    mixed = _by_root(tracer, tracer.mixed)
    summed = set(tracer.find(np.array(sorted(tracer.summed), dtype=np.int64)).tolist())
    # where each channel lies: (axis, its how manieth run, entries in it)
    places: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    runs: dict[tuple[int, int], int] = {}
    starts: dict[tuple[int, int], int] = {}
    for index, axis in enumerate(tracer.owner):
        roots = tracer.find(axis.ids)
        if not len(roots) or not tagged[roots].any():
            continue
        cuts = np.flatnonzero(np.diff(roots)) + 1
        begin = np.concatenate([[0], cuts])
        lengths = np.diff(np.concatenate([begin, [len(roots)]]))
        for run, (b, length) in enumerate(zip(begin.tolist(), lengths.tolist())):
            root = int(roots[b])
            places[root].append((index, run, length))
            runs[index, run] = root
            starts[index, run] = b
    groups: list[Group] = []
    done: set[int] = set()
    for root in places:
        index, run, _ = places[root][0]
        if root in done or not tagged[root]:
            continue
        # back to the first channel of the run, then on to the last
        chain = [root]
        done.add(root)
        for step in (-1, 1):
            at = root
            while True:
                a, r, _ = places[at][0]
                near = runs.get((a, r + step))
                if near is None or near in done or not tagged[near]:
                    break
                if places[near] != [(i, k + step, length) for i, k, length in places[at]]:
                    break
                if fixed.get(near) != fixed.get(at) or mixed.get(near) != mixed.get(at):
                    break
                chain.insert(0, near) if step < 0 else chain.append(near)
                done.add(near)
                at = near
        group = _group(tracer, chain[0], len(chain), places, starts, fixed, mixed)
        group.summed = chain[0] in summed
        if any(group.name == other.name for other in groups):  # a tied weight, whose two dimensions are both outputs
            group.name += f".{len(groups)}"
        groups.append(group)
    return groups


def _group(
    tracer: Tracer,
    first: int,
    size: int,
    places: Mapping[int, list[tuple[int, int, int]]],
    starts: Mapping[tuple[int, int], int],
    fixed: Mapping[int, str],
    mixed: Mapping[int, str],
) -> Group:
    group = Group("", size, fixed=fixed.get(first, ""), mixed=mixed.get(first, ""))
    lists = {"producer": group.producers, "norm": group.norms, "consumer": group.consumers, "count": group.counts}
    for index, run, length in places[first]:
        axis = tracer.owner[index]
        slot = Slot(axis.module, axis.attribute, axis.dim, starts[index, run], length)
        for role in sorted(axis.roles or _role_beside(tracer, axis)):
            lists[role].append(slot)
    main = group.producers or group.norms or group.consumers
    slot = main[0]
    part = next(len(a.ids) for a in tracer.owner if (a.module, a.attribute, a.dim) == (slot.module, slot.attribute, slot.dim))
    group.name = _owner(slot.module) or slot.attribute
    if not group.producers and not group.norms:
        group.name += ".in"
    gates = sum((s.module, s.attribute, s.dim) == (slot.module, slot.attribute, slot.dim) for s in main)
    if size * slot.repeat * gates < part:
        group.name += f"[{slot.offset}:{slot.offset + size * slot.repeat}]"
    return group


def _role_beside(tracer: Tracer, axis: Axis) -> set[str]:
    """Role of an axis that no layer names: a mask has that of its weight, anything else acts channel by channel."""
    owner, bias = _owner(axis.module), axis.attribute == "bias"
    for other in tracer.owner:
        alike = other.ndim == axis.ndim > 1 and other.dim == axis.dim
        if _owner(other.module) == owner and (alike or bias) and other.roles & {"producer", "consumer"}:
            return {"producer"} if bias else other.roles
    return {"norm"}


def _by_root(tracer: Tracer, reasons: Mapping[int, str]) -> dict[int, str]:
    found: dict[int, str] = {}
    for i, why in reasons.items():
        found.setdefault(int(tracer.find(np.array([i]))[0]), why)
    return found


def _owner(module: str) -> str:
    """The layer that a parametrization belongs to."""
    return ("." + module).partition(".parametrizations")[0][1:]


# ---- keeping some channels --------------------------------------------------------------------------------------------------


@torch.no_grad()
def take(model: nn.Module, keep: Mapping[str, Tensor | Sequence[int]], groups: Sequence[Group]) -> None:
    """Keep only some channels of the named groups, in place: parameters keep their identity (and lose their gradients).

    Args:
        model: the network of ``groups``, or a copy of it.
        keep: group name -> the channels that stay, at least one, in the order in which they shall stand.
        groups: ``channel_groups(model, example)``; they describe the network before, not after.

    Raises:
        UserError: no such group, a fixed one, or channels that it does not have.
    """
    by_name = {group.name: group for group in groups}
    cuts: dict[tuple[str, str, int], list[tuple[Slot, Tensor, int]]] = defaultdict(list)
    for name, chosen in keep.items():
        if name not in by_name:
            raise UserError(
                f"there is no channel group '{name}'{nearest(name, by_name)}: there are {', '.join(list(by_name)[:12])}."
            )
        group = by_name[name]
        index = torch.as_tensor(chosen, dtype=torch.int64).cpu()
        if group.fixed:
            raise UserError(f"the channels of '{name}' cannot change their number: {group.fixed}.")
        if not len(index) or int(index.min()) < 0 or int(index.max()) >= group.size or len(index.unique()) < len(index):
            raise UserError(f"'{name}' has the channels 0 to {group.size - 1}: keep at least one, and each once.")
        for slot in group.slots:
            cuts[slot.module, slot.attribute, slot.dim].append((slot, index, group.size))
    modules = dict(model.named_modules())
    touched: dict[nn.Module, None] = {}
    for (name, attribute, dim), pieces in cuts.items():
        module = modules[name]
        value = getattr(module, attribute)
        if isinstance(value, int):  # a number of channels; its axis is as long as it says
            setattr(module, attribute, value + sum(len(index) - size for _, index, size in pieces))
            continue
        _cut(value, dim, entries(value.shape[dim], pieces).to(value.device))
        touched[module] = None
    tied = {id(p) for module in touched for p in module.parameters(recurse=False)}
    for name, module in modules.items():
        if module in touched or any(id(p) in tied for p in module.parameters(recurse=False)):
            describe(modules[_owner(name)])
    head = getattr(model, "get_classifier", lambda: None)()
    if isinstance(head, nn.Linear) and hasattr(model, "num_features") and head in touched:
        model.num_features = head.in_features  # type: ignore[assignment]


def entries(length: int, pieces: Sequence[tuple[Slot, Tensor, int]]) -> Tensor:
    """Positions of a dimension that stay: ``pieces`` are (slot, channels kept, channels before); the rest stays. int64."""
    parts, at = [], 0
    for slot, index, size in sorted(pieces, key=lambda piece: piece[0].offset):
        parts.append(torch.arange(at, slot.offset))
        parts.append((slot.offset + index[:, None] * slot.repeat + torch.arange(slot.repeat)).flatten())
        at = slot.offset + size * slot.repeat
    return torch.cat([*parts, torch.arange(at, length)])


def _cut(tensor: Tensor, dim: int, index: Tensor) -> None:
    part = tensor.index_select(dim, index)
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        part = part.contiguous(memory_format=torch.channels_last)
    tensor.data = part
    tensor.grad = None


def describe(module: nn.Module) -> None:
    """Bring the numbers that a layer keeps beside its tensors into line with them."""
    if isinstance(module, _ConvNd):
        depthwise = module.groups == module.in_channels == module.out_channels > 1
        a, b = module.weight.shape[:2]
        module.out_channels, module.in_channels = (b, a) if module.transposed else (a, b)
        if depthwise:
            module.groups = module.out_channels = module.in_channels = a
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _BatchNorm | nn.InstanceNorm2d):
        vector = module.weight if module.weight is not None else module.running_mean
        if vector is not None:
            module.num_features = len(vector)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = len(module.weight) if module.num_groups == module.num_channels else module.num_groups
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.RNNBase):
        (_, module.hidden_size), (_, module.input_size) = module.weight_hh_l0.shape, module.weight_ih_l0.shape  # type: ignore[misc]
        module.flatten_parameters()
