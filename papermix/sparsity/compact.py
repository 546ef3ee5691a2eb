"""Computing with a part of a network's channels and blocks: tensors are cut to what is in use, and really smaller."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_flatten

from papermix.errors import UserError
from papermix.surgery.blocks import Block, Pass, Zero
from papermix.surgery.channels import Group, Slot, take
from papermix.surgery.watch import answer, unchanged

# the name under which a gated network holds its structure
STRUCTURE = "structure"


class Gate(nn.Module):
    """Logits s, temperatures beta and use q of a group's channels, or of one block; all [C].

    ``active`` (bool) is q. Once ``hard``, an open gate is 1.

    Args:
        logits: s at the start; what is above 0 is in use.
        sgd: settings of the SGD that trains s; None: the optimizer of the weights does.
    """

    beta: Tensor
    active: Tensor
    hard: Tensor

    def __init__(self, logits: Tensor, sgd: dict[str, Any] | None = None):
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.logits.is_mask = True  # type: ignore[attr-defined]
        if sgd:
            self.logits.sgd = sgd  # type: ignore[attr-defined]
        self.register_buffer("beta", torch.ones_like(logits))
        self.register_buffer("active", logits > 0)
        self.register_buffer("hard", torch.zeros((), dtype=torch.bool, device=logits.device))
        self.read()

    def read(self) -> None:
        """Mirror the buffers, so that asking costs no wait for the device."""
        self.index = self.active.nonzero()[:, 0]
        self.count = len(self.index)
        self.is_hard = bool(self.hard)

    def value(self) -> Tensor:
        """``sigmoid(beta s)``, or ones, of all channels, in use or not."""
        return torch.ones_like(self.beta) if self.is_hard else torch.sigmoid(self.beta * self.logits)

    def kept(self) -> Tensor:
        """How many are in use."""
        return self.active.sum()

    @torch.no_grad()
    def use(self, active: Tensor, least: int) -> None:
        """Take over q (bool, on any device); at least so many of the largest logits are in use."""
        active = active.to(self.active.device)
        if int(active.sum()) < least:
            active = active.clone()
            active[self.logits.argmax()] = True
        self.active.copy_(active)

    @torch.no_grad()
    def heat(self, factor: float) -> None:
        """Multiply beta of what is in use."""
        self.beta.mul_(torch.where(self.active, factor, 1.0))


@dataclass
class Cut:
    """A tensor of which only a part is used.

    Attributes:
        holder, attribute: where the layer finds it; ``name``: what the layer calls it, parametrized or not.
        pieces: dimension -> (slot, gate, whether the gate multiplies here).
        scale: gate of the block whose branch this tensor scales.
        index: dimension -> entries in use, int64; for those that are cut.
        factors: dimension -> what multiplies it in turn: a gate's piece, or a number of ones.
    """

    holder: nn.Module
    attribute: str
    name: str
    pieces: dict[int, list[tuple[Slot, Gate, bool]]] = field(default_factory=dict)
    scale: Gate | None = None
    index: dict[int, Tensor] = field(default_factory=dict)
    factors: dict[int, list[tuple[Gate, int] | int]] = field(default_factory=dict)

    @property
    def full(self) -> Tensor:
        """The whole tensor."""
        tensors = self.holder._parameters if self.attribute in self.holder._parameters else self.holder._buffers
        return tensors[self.attribute]  # type: ignore[return-value]

    @property
    def is_buffer(self) -> bool:
        return self.attribute in self.holder._buffers

    def refresh(self, compact: bool) -> None:
        """Work out which entries are in use."""
        self.index, self.factors = {}, {}
        for dim, pieces in self.pieces.items():
            mask = self.mask(dim)
            if not mask.all():
                self.index[dim] = mask.nonzero()[:, 0]
            gated = sorted((p for p in pieces if p[2]), key=lambda piece: piece[0].offset)
            if not gated or (compact and all(gate.is_hard for _, gate, _ in gated)):
                continue
            counted = mask if compact else torch.ones_like(mask)
            factors: list[tuple[Gate, int] | int] = []
            at = 0
            for slot, gate, _ in gated:
                factors += [int(counted[at : slot.offset].sum()), (gate, slot.repeat)]
                at = _span(slot, gate).stop
            factors.append(int(counted[at:].sum()))
            self.factors[dim] = [f for f in factors if f]

    def mask(self, dim: int) -> Tensor:
        """Entries of a dimension that are in use, bool."""
        mask = torch.ones(self.full.shape[dim], dtype=torch.bool, device=self.full.device)
        for slot, gate, _ in self.pieces[dim]:
            mask[_span(slot, gate)] = gate.active.repeat_interleave(slot.repeat)
        return mask

    def small(self, compact: bool) -> Tensor:
        """The part in use, or all of it with zeros elsewhere, times the gates. Differentiable."""
        value = self.full
        for dim, index in self.index.items() if compact else ():
            value = value.index_select(dim, index)
        for dim, factors in self.factors.items():
            parts = [self._factor(f, compact) for f in factors]
            factor = parts[0] if len(parts) == 1 else torch.cat(parts)
            value = value * factor.to(value.dtype).view(-1, *[1] * (value.ndim - 1 - dim))
        if self.scale is not None and not (compact and self.scale.is_hard):
            value = value * (self.scale.value() * self.scale.active).to(value.dtype).squeeze()
        return value

    def _factor(self, factor: tuple[Gate, int] | int, compact: bool) -> Tensor:
        if isinstance(factor, int):
            return torch.ones(factor, device=self.full.device)
        gate, repeat = factor
        value = gate.value().index_select(0, gate.index) if compact else gate.value() * gate.active
        return value.repeat_interleave(repeat) if repeat > 1 else value


def _span(slot: Slot, gate: Gate) -> slice:
    return slice(slot.offset, slot.offset + len(gate.active) * slot.repeat)


class Forward:
    """Stands in place of a module's ``forward``: gives it the cut tensors for the time of a call, or leaves the call out.

    Attributes:
        cuts: tensors of the module (or of its parametrizations) that are cut.
        skips: (gate of a block, whether this module's output is the branch's), where the module is one of a branch.
        still: gates of the blocks without which the module's buffers keep their values.
        counts: name of an integer of the module -> pieces of it that are cut.
        numbers: integers of the module while it computes in cut form.
        hidden: gate of a recurrent layer's units.
    """

    def __init__(self, module: nn.Module, structure: Structure):
        self.module, self.structure = module, structure
        self.cuts: list[Cut] = []
        self.skips: list[tuple[Gate, bool]] = []
        self.still: list[Gate] = []
        self.counts: dict[str, list[tuple[Slot, Gate]]] = {}
        self.numbers: dict[str, int] = {}
        self.hidden: Gate | None = None

    def refresh(self) -> None:
        """Bring everything into line with what is in use."""
        compact, module = self.structure.compact, self.module
        for cut in self.cuts:
            cut.refresh(compact)
        self.numbers = {
            name: vars(module)[name] - sum((len(gate.active) - gate.count) * slot.repeat for slot, gate in pieces)
            for name, pieces in self.counts.items()
        }
        sizes = {(cut.name, dim): len(index) for cut in self.cuts for dim, index in cut.index.items()}
        if isinstance(module, _ConvNd) and module.groups > 1 and sizes:
            self.numbers["groups"] = sizes["weight", 0]
        elif isinstance(module, nn.GroupNorm) and sizes:
            self.numbers["num_groups"] = sizes["weight", 0]
        elif isinstance(module, nn.RNNBase):
            found = [cut.pieces[1] for cut in self.cuts if cut.name == "weight_hh_l0" and 1 in cut.pieces]
            self.hidden = found[0][0][1] if found else None
            for name, weight in (("hidden_size", "weight_hh_l0"), ("input_size", "weight_ih_l0")):
                if (weight, 1) in sizes:
                    self.numbers[name] = sizes[weight, 1]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        structure, module = self.structure, self.module
        if structure.stale:
            structure.refresh()
        compact, space = structure.compact, vars(module)
        for gate, last in self.skips:
            if compact and not gate.count:
                return structure.nothing(args[0], gate) if last else args[0]
        forward = type(module).forward
        numbers = {name: space[name] for name in self.numbers} if compact else {}
        held: list[tuple[Cut, Tensor, Tensor]] = []
        try:
            for cut in self.cuts:
                full = cut.full
                small = cut.small(compact)
                if small is full and cut.is_buffer and not compact:
                    small = full.clone()
                # what stands in the instance is found before its parameters and buffers
                vars(cut.holder)[cut.attribute] = small
                held.append((cut, full, small))
            if compact:
                space.update(self.numbers)
            return self._recurrent(forward, args, kwargs) if isinstance(module, nn.RNNBase) else forward(module, *args, **kwargs)
        finally:
            for cut, _, _ in held:
                del vars(cut.holder)[cut.attribute]
            space.update(numbers)
            self._put_back(held)

    @torch.no_grad()
    def _put_back(self, held: list[tuple[Cut, Tensor, Tensor]]) -> None:
        """Running statistics of the channels in use go where they belong; those of others stay."""
        if any(not gate.count for gate in self.still):
            return
        for cut, full, small in held:
            if not cut.is_buffer or small is full or full.ndim > 1:
                continue
            if not cut.index:
                full.copy_(small)
            elif self.structure.compact:
                full.index_copy_(0, cut.index[0], small)
            else:
                full.copy_(torch.where(cut.mask(0), small, full))

    def _recurrent(self, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A recurrent layer reads its weights from a list, and carries a state, which stays one of full width."""
        module: Any = self.module
        space, listed = vars(module), "_flat_weights" in vars(module)
        kept = space.get("_flat_weights")
        if listed:  # else they are parametrized, and read one by one
            space["_flat_weights"] = [getattr(module, name) for name in module._flat_weights_names]
        if self.hidden is not None:
            args = (args[0], *(self._resize(state, into=True) for state in args[1:]))
            kwargs = {k: self._resize(v, into=True) if k == "hx" else v for k, v in kwargs.items()}
        try:
            out, state = forward(module, *args, **kwargs)
        finally:
            if listed:
                space["_flat_weights"] = kept
        return out, state if self.hidden is None else self._resize(state, into=False)

    def _resize(self, state: Any, into: bool) -> Any:
        """A state of all units to one of those in use, or back with zeros for the rest."""
        gate = self.hidden
        if state is None or gate is None:
            return state
        if isinstance(state, tuple):
            return tuple(self._resize(s, into) for s in state)
        if not self.structure.compact:
            return state * gate.active
        if into:
            return state.index_select(-1, gate.index)
        return state.new_zeros(*state.shape[:-1], len(gate.active)).index_copy(-1, gate.index, state)


@dataclass
class Cost:
    """What a weight costs: ``flops`` operations of the forward pass of an example for each entry.

    Attributes:
        pieces: dimension -> (slot, gate) that cut it.
        blocks: gates of the blocks in whose branches it is.
        total: its entries.
    """

    tensor: Tensor
    pieces: dict[int, list[tuple[Slot, Gate]]]
    blocks: list[Gate]
    total: int
    flops: float

    def used(self, decided: bool = False) -> int:
        """Entries in use; with ``decided`` those that logits above 0 would leave."""
        counts = {gate: gate.count for pieces in self.pieces.values() for _, gate in pieces} | {g: g.count for g in self.blocks}
        if decided:
            counts = {gate: int((gate.logits > 0).sum()) for gate in counts}
        if any(not counts[gate] for gate in self.blocks):
            return 0
        used = self.total
        for dim, pieces in self.pieces.items():
            size = self.tensor.shape[dim]
            left = size - sum((len(gate.active) - max(1, counts[gate])) * slot.repeat for slot, gate in pieces)
            used = used // size * left
        return used


class Structure(nn.Module):
    """All gates of a network, and the forwards that obey them; a module of the network, so that it is saved and copied with it.

    Args:
        model: the network, whose modules get their forwards.
        groups: of its channels.
        channels: gates of some groups, by name.
        blocks: its residual blocks that are gated.
        layers: their gates, by name.
        example: an input, to count operations.
        compact: cut tensors, or masks.
    """

    books: Tensor

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        channels: Mapping[str, Gate],
        blocks: Sequence[Block],
        layers: Mapping[str, Gate],
        example: Any,
        compact: bool = True,
    ):
        super().__init__()
        self.groups, self.blocks, self.compact = list(groups), list(blocks), compact
        self.names, self.block_names = list(channels), list(layers)
        self.channels, self.layers = nn.ModuleList(channels.values()), nn.ModuleList(layers.values())
        # number of the interval, lambda, and of the steps before it: the sum of their costs, how many
        self.register_buffer("books", torch.zeros(4, device=next(model.parameters()).device))
        self.number, self.weight, self.paid, self.steps = 0, 0.0, 0.0, 0
        self.stale = True
        modules = dict(model.named_modules())
        self.inside = {  # gates of the blocks in whose branches a module is
            name: [layers[b.name] for b in blocks if any(name == c or name.startswith(f"{c}.") for c in b.branch)]
            for name in modules
        }
        self.branches = [(modules[name], gates) for name, gates in self.inside.items() if gates]
        self.forwards: dict[nn.Module, Forward] = {}
        self._cut(modules, channels)
        self._gate_blocks(modules, layers)
        self.costs = self._costs(modules, example)
        for module, forward in self.forwards.items():
            vars(module)["forward"] = forward
        self.refresh()

    # ---- wiring -------------------------------------------------------------------------------------------------------------

    def _forward(self, module: nn.Module) -> Forward:
        return self.forwards.setdefault(module, Forward(module, self))

    def _cut(self, modules: dict[str, nn.Module], channels: Mapping[str, Gate]) -> None:
        """Every place that holds a gated channel (a tied weight's every place) is cut, and gated where the channel is read."""
        places: dict[int, list[tuple[str, str]]] = {}
        for path, module in modules.items():
            for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None:
                    places.setdefault(id(tensor), []).append((path, attribute))
        cuts: dict[tuple[str, str], Cut] = {}
        for group in self.groups:
            gate = channels.get(group.name)
            if gate is None:
                continue
            for slot in group.counts:
                self._forward(modules[slot.module]).counts.setdefault(slot.attribute, []).append((slot, gate))
            for slot in dict.fromkeys([*group.producers, *group.norms, *group.consumers]):
                tensor = getattr(modules[slot.module], slot.attribute)
                reads = slot in group.consumers
                for path, attribute in places[id(tensor)]:
                    owner, parametrized, rest = path.partition(".parametrizations.")
                    cut = cuts.get((path, attribute))
                    if cut is None:
                        cut = Cut(modules[path], attribute, rest.split(".")[0] if parametrized else attribute)
                        cuts[path, attribute] = cut
                        self._forward(modules[owner]).cuts.append(cut)
                    # of a parametrized weight the tensor underneath carries the gate, not its masks
                    reads &= not parametrized or attribute == "original"
                    cut.pieces.setdefault(slot.dim, []).append((slot, gate, reads))

    def _gate_blocks(self, modules: dict[str, nn.Module], layers: Mapping[str, Gate]) -> None:
        for block in self.blocks:
            gate = layers[block.name]
            for child in block.branch:
                self._forward(modules[child]).skips.append((gate, child == block.branch[-1]))
            last = self._forward(modules[block.last])
            for path, module in modules.items():
                owner, parametrized, rest = path.partition(".parametrizations.")
                if owner == block.last:
                    for attribute, p in module._parameters.items():
                        if p is None:
                            continue
                        name = rest.split(".")[0] if parametrized else attribute
                        if name in ("weight", "bias") and (not parametrized or attribute == "original"):
                            self._cut_of(last, module, attribute, name).scale = gate
                if gate in self.inside[path] and isinstance(module, _BatchNorm):
                    self._forward(module).still.append(gate)
                    for attribute, buffer in module._buffers.items():
                        if buffer is not None:
                            self._cut_of(self._forward(module), module, attribute, attribute)

    def _cut_of(self, forward: Forward, holder: nn.Module, attribute: str, name: str) -> Cut:
        for cut in forward.cuts:
            if cut.holder is holder and cut.attribute == attribute:
                return cut
        forward.cuts.append(Cut(holder, attribute, name))
        return forward.cuts[-1]

    def _costs(self, modules: dict[str, nn.Module], example: Any) -> dict[str, Cost]:
        """Weights of convolutions, linear and recurrent layers and embeddings, tied ones once, by plain name."""
        cuts = {id(cut.full): cut for forward in self.forwards.values() for cut in forward.cuts}
        positions = _positions(modules[""], example)
        costs: dict[str, Cost] = {}
        seen: set[int] = set()
        for path, holder in modules.items():
            owner, parametrized, rest = path.partition(".parametrizations.")
            layer = modules[owner]
            if not isinstance(layer, _ConvNd | nn.Linear | nn.RNNBase | nn.Embedding):
                continue
            for attribute, p in holder._parameters.items():
                if p is None or p.ndim < 2 or id(p) in seen or (parametrized and attribute != "original"):
                    continue
                seen.add(id(p))
                found = cuts[id(p)].pieces if id(p) in cuts else {}
                pieces = {dim: [(slot, gate) for slot, gate, _ in at] for dim, at in found.items()}
                name = rest.split(".")[0] if parametrized else attribute
                costs[f"{owner}.{name}"] = Cost(p, pieces, self.inside[owner], p.numel(), positions.get(layer, 0.0))
        return costs

    def unwire(self) -> None:
        """Give the modules their own forwards back."""
        for module in self.forwards:
            vars(module).pop("forward", None)

    # ---- state --------------------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Read the buffers, after they were loaded or moved or changed."""
        number, self.weight, self.paid, steps = self.books.tolist()
        self.number, self.steps = int(number), int(steps)
        for gate in self._gates():
            gate.read()
        for forward in self.forwards.values():
            forward.refresh()
        self.stale = False

    def _write(self) -> None:
        self.books.copy_(torch.tensor([self.number, self.weight, self.paid, self.steps]))
        self.refresh()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.stale = True

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.stale = True
        return super()._apply(*args, **kwargs)

    def _gates(self) -> Iterator[Gate]:
        yield from self.channels  # type: ignore[misc]
        yield from self.layers  # type: ignore[misc]

    @property
    def is_hard(self) -> bool:
        """Whether gates are open or closed and nothing between."""
        return any(gate.is_hard for gate in self._gates())

    def used_gates(self) -> list[Gate]:
        """Gates of what is computed: not those of channels in a branch that is off."""
        by_name = {group.name: group for group in self.groups}
        used = list(self.layers)
        for name, gate in zip(self.names, self.channels):
            makers = [self.inside[slot.module.partition(".parametrizations")[0]] for slot in by_name[name].producers]
            if any(all(block.count for block in blocks) for blocks in makers):
                used.append(gate)
        return used  # type: ignore[return-value]

    @torch.no_grad()
    def draw(self, seed: int, number: int) -> None:
        """q ~ Bernoulli(sigmoid(beta s)), a function of seed, number and s alone: the same in all processes, and after a stop."""
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
        for gates, least in ((self.channels, 1), (self.layers, 0)):
            for gate in gates:
                chance = torch.sigmoid(gate.beta.double() * gate.logits.double()).cpu()  # type: ignore[operator, union-attr]
                gate.use(torch.rand(len(chance), generator=generator, dtype=torch.float64) < chance, least)  # type: ignore[operator]
        self._write()

    @torch.no_grad()
    def decide(self) -> None:
        """q = 1[s > 0]."""
        for gates, least in ((self.channels, 1), (self.layers, 0)):
            for gate in gates:
                gate.use(gate.logits > 0, least)  # type: ignore[operator]
        self._write()

    @torch.no_grad()
    def fix(self) -> None:
        """Gates of what is in use are multiplied into the tensors and become 1, the tensors' entries for the rest zero."""
        compact, self.compact = self.compact, False
        self.refresh()
        folded = {cut.full: cut.small(False) for forward in self.forwards.values() for cut in forward.cuts if not cut.is_buffer}
        for p, value in folded.items():
            p.copy_(value)
        for p, mask in self.in_use().items():
            p.mul_(mask)
        for gate in self._gates():
            gate.hard.fill_(True)
        self.compact = compact
        self._write()

    def set_lambda(self, weight: float) -> None:
        """The penalty's weight for the present interval."""
        self.weight = weight
        self._write()

    def pay(self, until: int) -> None:
        """Book the operations of the steps up to ``until``."""
        self.paid += self.cost("flops") * max(0, until - self.steps)
        self.steps = max(until, self.steps)
        self._write()

    # ---- numbers ------------------------------------------------------------------------------------------------------------

    def cost(self, budget: str, decided: bool = False) -> float:
        """``params`` or ``flops`` of what is in use, as a share of the whole."""
        if self.stale:
            self.refresh()
        each = [(cost.flops if budget == "flops" else 1.0, cost) for cost in self.costs.values()]
        return sum(w * c.used(decided) for w, c in each) / sum(w * c.total for w, c in each)

    def decided_cost(self, budget: str) -> float:
        """The same for what logits above 0 would leave."""
        return self.cost(budget, decided=True)

    def mean_cost(self) -> float:
        """Mean of the FLOPs booked."""
        return self.paid / self.steps if self.steps else self.cost("flops")

    def widths(self) -> dict[str, int]:
        """Channels of each gated group and blocks that are computed, by name."""
        if self.stale:
            self.refresh()
        used = {id(gate) for gate in self.used_gates()}
        pairs = [*zip(self.names, self.channels), *zip(self.block_names, self.layers)]
        return {name: int(gate.count) if id(gate) in used else 0 for name, gate in pairs}  # type: ignore[arg-type]

    def sizes(self) -> dict[str, int]:
        """All channels of each gated group; 1 for a block."""
        pairs: Any = [*zip(self.names, self.channels), *zip(self.block_names, self.layers)]
        return {name: len(gate.active) for name, gate in pairs}

    @torch.no_grad()
    def in_use(self) -> dict[nn.Parameter, Tensor]:
        """Parameters that are used in part or not at all -> which entries are, bool of their shape."""
        if self.stale:
            self.refresh()
        found: dict[nn.Parameter, Tensor] = {}
        for forward in self.forwards.values():
            for cut in forward.cuts:
                p = cut.full
                if not isinstance(p, nn.Parameter) or not cut.index:
                    continue
                mask = torch.ones_like(p, dtype=torch.bool)
                for dim in cut.index:
                    mask &= cut.mask(dim).view(-1, *[1] * (p.ndim - 1 - dim))
                found[p] = mask
        for module, gates in self.branches:
            if any(not gate.count for gate in gates):
                for p in module.parameters(recurse=False):
                    found[p] = torch.zeros_like(p, dtype=torch.bool)
        return found

    # ---- computing ----------------------------------------------------------------------------------------------------------

    def nothing(self, x: Tensor, gate: Gate) -> Tensor:
        """What the branch of a block that is off adds; processes that wait for its parameters' gradients get zeros."""
        zero = torch.zeros_like(x)
        if torch.is_grad_enabled() and torch.distributed.is_available() and torch.distributed.is_initialized():
            unused = [
                p.flatten()[0] for module, gates in self.branches if gate in gates for p in module.parameters(recurse=False)
            ]
            unused += [gate.logits[0] for gate in self._gates() if gate.logits.requires_grad]
            zero = zero + 0 * torch.stack([p.to(zero.dtype) for p in unused]).sum()
        return zero

    @torch.no_grad()
    def check(self, model: nn.Module, example: Any) -> None:
        """Compare cut and masked execution of a random structure.

        Raises:
            UserError: they differ, or the network cannot be computed in cut form.
        """
        state = {key: value.clone() for key, value in self.state_dict().items()}
        try:
            with unchanged(model):
                for gate in self._gates():
                    gate.logits.fill_(0)
                self.draw(0, 0)
                small = tree_flatten(answer(model, example))[0]
                self.compact = False
                self.refresh()
                masked = tree_flatten(answer(model, example))[0]
            error = max(
                float((a - b).abs().max() / (1e-6 + b.abs().max())) for a, b in zip(small, masked) if isinstance(a, Tensor)
            )
        except (RuntimeError, ValueError, IndexError) as reason:
            line = str(reason).strip().splitlines()[0]
            raise UserError(
                f"this {type(model).__name__} cannot be computed with some of its channels ({line}): "
                "set sparsity.compact=false, or leave layers out with sparsity.exclude."
            ) from reason
        finally:
            self.compact = True
            self.load_state_dict(state)
            self.refresh()
        if not error < 1e-3:
            raise UserError(
                f"this {type(model).__name__} computes something else when its channels are cut (by {error:.1e} of its largest "
                "output): set sparsity.compact=false, or leave layers out with sparsity.exclude."
            )


def _positions(model: nn.Module, example: Any) -> dict[nn.Module, float]:
    """Operations (a multiply-add is two) for each entry of a layer's weights in the forward pass of one example."""
    found: dict[nn.Module, float] = {}

    def count(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        out = output[0] if isinstance(module, nn.RNNBase) else output
        channels = out.shape[1] if isinstance(module, _ConvNd) else out.shape[-1]
        found[module] = found.get(module, 0.0) + 2 * out.numel() / channels / len(out)

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, _ConvNd | nn.Linear | nn.RNNBase)]
    try:
        with unchanged(model):
            answer(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def settle(model: nn.Module) -> Structure:
    """Turn a gated network into a plain one of all its channels, in place: those that are closed are zero. Same outputs.

    Gates that are still soft are decided first. Returns the structure that was.

    Raises:
        UserError: the network carries no structure.
    """
    structure: Any = getattr(model, STRUCTURE, None)
    if not isinstance(structure, Structure):
        raise UserError(f"this {type(model).__name__} carries no structured sparsity, so there is nothing to take out.")
    if structure.stale:
        structure.refresh()
    if not structure.is_hard:
        structure.decide()
        structure.fix()
    structure.unwire()
    delattr(model, STRUCTURE)
    return structure


@torch.no_grad()
def shrink(model: nn.Module) -> nn.Module:
    """Take out of a gated network (or a copy) what its gates leave closed, in place: same outputs, plain modules, fewer channels.

    A block that is off has nothing in place of its branch's modules. See :func:`settle`.
    """
    structure = settle(model)
    gates: Any = structure.channels
    keep = {name: gate.index for name, gate in zip(structure.names, gates) if gate.count < len(gate.active)}
    take(model, keep, structure.groups)
    for block, gate in zip(structure.blocks, structure.layers):
        if not gate.count:
            for child in block.branch:
                model.set_submodule(child, Zero() if child == block.branch[-1] else Pass())
    return model
