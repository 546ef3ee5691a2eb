"""Folding: layers of a trained network that have become the same are made one, and repeated blocks a loop."""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from papermix.errors import UserError
from papermix.models.sharing.bank import Shared, TemplateBank, attach, detach
from papermix.models.sharing.share import banks, similarity


@dataclass
class Folding:
    """What :func:`fold` did.

    Attributes:
        clusters: names of the layers that have one kernel now, cluster by cluster.
        loops: name of each loop -> (blocks in a turn, turns).
        before, after: numbers of parameters.
    """

    clusters: list[list[str]] = field(default_factory=list)
    loops: dict[str, tuple[int, int]] = field(default_factory=dict)
    before: int = 0
    after: int = 0


class Loop(nn.Module):
    """The same kernels again and again: ``for turn in turns: x = body(x)``, where norms and factors are each turn's own.

    Args:
        turns: networks of one structure whose weights of two or more dimensions are the same kernels in all of them.
        names: of the blocks that the turns are made of, by which :func:`materialise` puts them back; None: numbers.

    Raises:
        UserError: fewer than two turns, or turns that differ.
    """

    def __init__(self, turns: Sequence[nn.Module], names: Sequence[str] | None = None):
        super().__init__()
        forms = [_form(turn) for turn in turns]
        if len(turns) < 2 or None in forms or any(form != forms[0] for form in forms):
            raise UserError("a loop needs at least two turns of the same structure with the same kernels.")
        self.names = list(names or map(str, range(len(turns))))
        self.body = turns[0]
        self.keys = {name: name.replace(".", "-") for name, _ in _own(turns[0])}
        decays = [(path, name) for path, part in self.body.named_modules() for name in getattr(part, "no_decay", ())]
        undecayed = tuple(f"{path}-{name}".lstrip("-").replace(".", "-") for path, name in decays)
        self.turns = nn.ModuleList()
        for turn in turns:
            values = nn.Module()
            for name, tensor in _own(turn):
                if isinstance(tensor, nn.Parameter):
                    values.register_parameter(self.keys[name], tensor)
                else:
                    values.register_buffer(self.keys[name], tensor)
            values.no_decay = undecayed  # type: ignore[assignment]
            self.turns.append(values)
        for name in self.keys:  # the body has no values of its own
            _held(self.body, name)[name.rpartition(".")[2]] = None

    def values(self, turn: int) -> dict[str, Tensor]:
        """Name within the body -> tensor of a turn."""
        held = self.turns[turn]
        return {name: getattr(held, key) for name, key in self.keys.items()}

    def forward(self, x: Any) -> Any:
        for turn in range(len(self.turns)):
            x = functional_call(self.body, self.values(turn), (x,))
        return x

    def unrolled(self) -> Iterator[tuple[str, nn.Module]]:
        """The blocks of all turns with their names, each with its own values; they still draw from the same banks."""
        for turn in range(len(self.turns)):
            kept = {id(m.bank): m.bank for m in self.body.modules() if isinstance(m, Shared)}
            body = copy.deepcopy(self.body, kept)
            for name, tensor in self.values(turn).items():
                _held(body, name)[name.rpartition(".")[2]] = tensor
            blocks = [body] if len(self.names) == len(self.turns) else list(body.children())
            yield from zip(self.names[turn * len(blocks) :], blocks)

    def extra_repr(self) -> str:
        return f"turns={len(self.turns)}"


def _held(module: nn.Module, name: str) -> dict[str, Any]:
    """The dict in which a submodule has the parameter or buffer called ``name``."""
    path, _, attribute = name.rpartition(".")
    holder = module.get_submodule(path)
    return holder._parameters if attribute in holder._parameters else holder._buffers


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers outside the banks."""
    for path, part in module.named_modules():
        if not isinstance(part, TemplateBank):
            for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
                if tensor is not None:
                    yield (f"{path}.{name}" if path else name), tensor


def _form(module: nn.Module) -> tuple[Any, ...] | None:
    """What two blocks must have in common to be turns of a loop; None for a block without folded layers or with other weights."""
    own = list(_own(module))
    parts = [(path, part) for path, part in module.named_modules() if not isinstance(part, TemplateBank)]
    kernels = [(path, id(part.bank)) for path, part in parts if isinstance(part, Shared)]
    single = all(part.bank.count == 1 for _, part in parts if isinstance(part, Shared))
    if not kernels or not single or any(tensor.ndim > 1 for _, tensor in own):
        return None
    words = [(path, type(part).__name__, part.extra_repr(), part.training) for path, part in parts]
    return (*words, *kernels, *((name, tuple(t.shape), isinstance(t, nn.Parameter)) for name, t in own))


@torch.no_grad()
def fold(model: nn.Module, threshold: float = 0.9) -> Folding:
    """Make layers one whose similarity is at least ``threshold``, and repeated blocks loops, in place.

    The layers of a cluster (each as similar to every other) get the mean of their coefficient vectors of length 1, signs aligned,
    and keep their own length and sign as a factor: the outputs stay the same where the similarity is 1. The mean's kernel is
    their common weight. Where neighbouring blocks of an ``nn.Sequential`` then have the same kernels, a :class:`Loop` takes their
    place. The remaining layers still draw from their bank, so that a network with more groups of layers than templates grows.

    Args:
        model: a network with shared layers; sparsity on templates is baked into the kernels made here.
        threshold: in (0, 1].

    Returns:
        What was done; compare the metrics before and after to see what it cost.

    Raises:
        UserError: no shared layers, or a threshold out of range.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"fold threshold {threshold} must lie in (0, 1]: 1 folds only layers that are the same.")
    found = banks(model)
    if not found:
        raise UserError(f"this {type(model).__name__} has no shared layers to fold: share(model) before training.")
    done = Folding(before=sum(p.numel() for p in model.parameters()))
    for bank, layers in found.items():
        names = list(layers)
        alphas = torch.stack([layer.coefficients for layer in layers.values()])
        alike = similarity(alphas) >= threshold - 1e-6  # rounding must not part layers that are the same
        clusters: list[list[int]] = []
        for i in range(len(names)):
            home = next((c for c in clusters if bool(alike[i, c].all())), None)
            if home is None:
                clusters.append([i])
            else:
                home.append(i)
        single = [c[0] for c in clusters if len(c) == 1]
        for cluster in clusters:
            if len(cluster) == 1:
                continue
            lengths = alphas[cluster].norm(dim=1)
            units = alphas[cluster] / lengths.clamp_min(torch.finfo(alphas.dtype).tiny)[:, None]
            signs = torch.where(units @ units[lengths.argmax()] < 0, -1.0, 1.0).to(units)
            mean = nn.functional.normalize((signs[:, None] * units).mean(0), dim=0)
            one = TemplateBank(1, bank.shape, 0.0, f"{bank.name} {len(done.clusters)}")
            one.to(bank.templates)
            one.stacked()[0].copy_(bank.mix(mean))
            attach(one, [layers[names[i]] for i in cluster], (signs * lengths)[:, None])
            done.clusters.append([names[i] for i in cluster])
        if single and len(single) < len(names):
            attach(bank, [layers[names[i]] for i in single], alphas[single])
    for path, row in list(model.named_modules()):
        if type(row).forward is nn.Sequential.forward:
            done.loops |= {f"{path}.{name}".lstrip("."): shape for name, shape in _roll(row).items()}
    done.after = sum(p.numel() for p in model.parameters())
    return done


def _roll(row: nn.Module) -> dict[str, tuple[int, int]]:
    """Replace repeated neighbours among the children by loops, the longest first; name -> (blocks in a turn, turns)."""
    children = list(row._modules.items())
    forms = [None if child is None else _form(child) for _, child in children]
    rolled: dict[str, tuple[int, int]] = {}
    kept: list[tuple[str, nn.Module | None]] = []
    at = 0
    while at < len(children):
        best = (0, 0)  # blocks in a turn, turns
        for period in range(1, (len(children) - at) // 2 + 1):
            turns = 1
            first = forms[at : at + period]
            while None not in first and forms[at + turns * period : at + (turns + 1) * period] == first:
                turns += 1
            if turns > 1 and period * turns > best[0] * best[1]:
                best = (period, turns)
        name, child = children[at]
        period, turns = best
        if turns:
            blocks = [m for _, m in children[at : at + period * turns]]
            groups = [blocks[t * period : (t + 1) * period] for t in range(turns)]
            turned = [g[0] if period == 1 else nn.Sequential(*g) for g in groups]  # type: ignore[arg-type]
            child = Loop(turned, [n for n, _ in children[at : at + period * turns]])  # type: ignore[arg-type]
            rolled[name] = best
        kept.append((name, child))
        at += max(period * turns, 1)
    if rolled:
        row._modules = OrderedDict(kept)  # type: ignore[assignment]
    return rolled


@torch.no_grad()
def materialise(model: nn.Module) -> nn.Module:
    """Give every shared layer its kernel as a plain weight and every loop its turns, in place: an ordinary network, same outputs.

    A bank's sparsity, where there is one, is baked in. Weights are computed once instead of at every forward pass; the saving in
    parameters is gone.

    Raises:
        UserError: there is nothing shared.
    """
    for row in list(model.modules()):
        if any(isinstance(child, Loop) for child in row._modules.values()):
            blocks = [c.unrolled() if isinstance(c, Loop) else [(name, c)] for name, c in row._modules.items()]
            row._modules = OrderedDict(chain.from_iterable(blocks))  # type: ignore[arg-type, assignment]
    shared = [m for m in model.modules() if isinstance(m, Shared)]
    if not shared:
        raise UserError(f"this {type(model).__name__} has no shared layers: it is a plain network already.")
    for layer in shared:
        detach(layer)
    return model
