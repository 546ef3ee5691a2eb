"""Training a network that starts narrow and is widened on the way: growing with variance transfer and rate adaptation."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from logging import getLogger
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer
from torch.utils._pytree import tree_flatten
from torch.utils.hooks import RemovableHandle

from papermix.errors import UserError, nearest
from papermix.metrics.count import flops
from papermix.sparsity.widening import Axis, Blocks, copies, lengths, rates, twins, widen, widths
from papermix.surgery.channels import Group, Slot, channel_groups, describe
from papermix.surgery.narrow import speed_up

log = getLogger(__name__)

MULTIPLIER = "growth_multiplier"
NEW = ("twins", "copies", "random")


@dataclass
class Grown:
    """A tensor of the network that grows.

    Attributes:
        module: name of the module that holds it; ``attribute``: its name there.
        axes: its growing dimensions.
        full: what it was in the stock network before training, on the CPU; new entries come from here.
        inputs: number of inputs of each output at every stage (1 where there is no growing input dimension).
        power: how the old entries shrink when the inputs grow: 1/2 in hidden layers, 1 in an output layer, 0: not at all.
        norm: name of the batch norm that cancels this, or "".
    """

    module: str
    attribute: str
    axes: list[Axis]
    full: Tensor
    inputs: list[int]
    power: float = 0.0
    norm: str = ""

    @property
    def name(self) -> str:
        return f"{self.module}.{self.attribute}".removeprefix(".")

    def fresh(self, stage: int) -> Tensor:
        """New entries for all that exists at ``stage``, with the variance of a new network of that width, on the CPU."""
        value = self.full
        for axis in self.axes:
            value = value.index_select(axis.dim, axis.alive(stage))
        seed = (self.inputs[-1] / self.inputs[0]) ** 0.5
        return value * seed * (self.inputs[0] / self.inputs[stage]) ** max(self.power, 0.5)

    def shape(self, stage: int) -> list[int]:
        """Sizes at a stage."""
        sizes = list(self.full.shape)
        for axis in self.axes:
            sizes[axis.dim] = axis.size(stage)
        return sizes


class Growing:
    """Starts a network at a fraction of its widths and widens it in stages until it is the stock network again.

    Yuan, Savarese & Maire, "Accelerated Training via Incrementally Growing Neural Networks using Variance Transfer and Learning
    Rate Adaptation", NeurIPS 2023 (arXiv 2306.12700). All channels that belong together (:func:`channel_groups`) grow at once,
    so any network whose channels can be followed will do. Channels whose number is given from outside, or that a layer norm or
    a softmax runs over, have their full number from the beginning.

    - *Twins*: new channels come in pairs with the same random incoming weights and opposite random outgoing ones, so that the
      network computes what it did before. (``copies``: Net2WiderNet, Chen et al. 2016. ``random``: no preservation.)
    - *Variance transfer*: when a layer's inputs grow from n to n', its old weights are multiplied by ``sqrt(n / n')`` (an output
      layer's by ``n / n'``) and new ones drawn with the variance of a new network of the new width. A batch norm behind the
      layer cancels the factor (its running statistics follow). Where there is none, the layer's input is multiplied by the
      inverse factor from then on; :meth:`finish` multiplies the weight by it. Recurrent and attention weights keep their
      old entries as they are.
    - *Rate adaptation*: the step of a weight's entries that were born at stage i is multiplied by ``|W_i| / |W_0|``, Frobenius
      norms of the blocks of entries born together, for any optimizer: it acts on the change that a step has made.

    A loop of one's own::

        growing.attach(model, example)                 # before the optimizer is made
        growing.watch(optimizer)
        for steps in growing.lengths(total_epochs):    # epochs of each stage
            ... train ...
            growing.grow([optimizer])                  # (not after the last stage)
        growing.finish()

    The whole state is in the model's ``state_dict``: loading one brings the model to the stage it was saved at, which must
    happen before the optimizer is made, since parameters of other sizes are other objects.

    Args:
        stages: number N of widths; 1: no growth.
        start: the first width as a share of the last.
        width_rate: increment of the widths between stages, as a share, the last one taking what is left; None: the one that leads
            geometrically from the first width to the last (about 0.19 for nine stages from a quarter; the paper has 0.2).
        epoch_rate: increment of the lengths of the stages; the sum is the usual length of training.
        new: ``twins``, ``copies`` or ``random``.
        variance_transfer: rescale old weights.
        rate_adaptation: scale the steps of younger weights.
        optimizer_state: ``keep``: old entries keep theirs and new ones start at zero; ``reset``: all start anew.
        noise: standard deviation of the noise on new entries of copies, as a share of their weight's own.
        include: patterns of channel groups' names (their first layer's), of which one must match.
        exclude: patterns of names of channel groups that are not grown.
        seed: draws what is copied, and its noise.

    Raises:
        UserError: a value that cannot be.
    """

    # what drives it in Lightning's trainer
    driver = "callbacks.growth.GrowthDriver"

    def __init__(
        self,
        stages: int = 9,
        start: float = 0.25,
        width_rate: float | None = None,
        epoch_rate: float = 0.2,
        new: str = "twins",
        variance_transfer: bool = True,
        rate_adaptation: bool = True,
        optimizer_state: str = "keep",
        noise: float = 0.0,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        seed: int = 0,
    ):
        if stages < 1:
            raise UserError(f"sparsity.stages={stages} must be at least 1.")
        if not 0 < start <= 1:
            raise UserError(f"sparsity.start={start} must lie in (0, 1]: it is the first width as a share of the last.")
        if (width_rate or 0) < 0 or epoch_rate <= -1:
            raise UserError(f"sparsity needs width_rate >= 0 and epoch_rate > -1, not {width_rate} and {epoch_rate}.")
        if new not in NEW:
            raise UserError(f"sparsity.new={new!r} is not known{nearest(str(new), NEW)}: use {', '.join(NEW)}.")
        if optimizer_state not in ("keep", "reset"):
            raise UserError(f"sparsity.optimizer_state={optimizer_state!r} must be keep or reset.")
        if noise < 0 or (noise and new != "copies"):
            raise UserError(f"sparsity.noise={noise} must not be negative, and is for sparsity.new=copies.")
        if new == "copies" and variance_transfer:
            raise UserError(
                "sparsity.variance_transfer has no meaning with new=copies, which keep the variance they have: set it to false."
            )
        self.stages, self.start, self.width_rate, self.epoch_rate = stages, start, width_rate, epoch_rate
        self.new, self.variance_transfer, self.rate_adaptation = new, variance_transfer, rate_adaptation
        self.optimizer_state, self.noise, self.seed = optimizer_state, noise, seed
        self.include, self.exclude = list(include), list(exclude)
        self.stage = stages - 1
        self.model: nn.Module
        self.groups: list[Group] = []
        self.widths: dict[str, list[int]] = {}
        self.left: dict[str, str] = {}
        self.flops: list[int] = []
        self.tensors: dict[tuple[str, str], Grown] = {}
        self._multiplied: dict[str, Any] = {}
        self._fast: list[RemovableHandle] = []
        self._blocks: dict[tuple[str, str], Blocks] = {}

    # ---- before training ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def attach(self, model: nn.Module, example: Any) -> None:
        """Shrink ``model``, in place, to its first width.

        Args:
            model: the stock network, initialised.
            example: a batch for ``model(example)``, of which the first example is used.

        Raises:
            UserError: attached already, or nothing that can grow; it says why.
        """
        if self.groups:
            raise UserError(f"this {type(self).__name__} is attached to a model already: make one for each model.")
        example = example[:1]
        self.model, self.example = model, example
        for group in channel_groups(model, example):
            if why := self._refusal(group):
                self.left[group.name] = why
            else:
                self.groups.append(group)
                self.widths[group.name] = widths(group.size, self.stages, self.start, self.width_rate)
        if not self.groups:
            reasons = "; ".join(f"{name}: {why}" for name, why in list(self.left.items())[:6])
            raise UserError(f"nothing in this {type(model).__name__} can grow ({reasons}).")
        self._collect()
        if self.variance_transfer:
            self._find_factors(example)
        for stage in range(self.stages):
            self._resize(stage)
            self.flops.append(flops(model, example))
        self._resize(0)
        for name in self._inputs_scaled():
            self._multiply(name)
        model.register_load_state_dict_pre_hook(self._before_load)
        self._fast = speed_up(model)

    def _refusal(self, group: Group) -> str:
        """Why a group keeps its full number of channels, or ""."""
        if group.fixed or group.mixed:
            return group.fixed or group.mixed
        if not any(fnmatchcase(group.name, pattern) for pattern in self.include):
            return "no pattern of sparsity.include has it"
        if any(fnmatchcase(group.name, pattern) for pattern in self.exclude):
            return "it is in sparsity.exclude"
        if {*group.producers, *group.norms} & {*group.consumers}:
            return "a tied weight has it as inputs and as outputs"
        if any("parametrizations" in slot.module for slot in group.slots):
            return "its weights are parametrized"
        return "" if group.size > 1 else "it is a single channel"

    def _collect(self) -> None:
        """List the tensors that grow, with their births."""
        places: dict[tuple[str, str], dict[int, list[tuple[int, bool, Slot]]]] = {}
        for number, group in enumerate(self.groups):
            for entering, slots in ((False, [*group.producers, *group.norms]), (True, group.consumers)):
                for slot in dict.fromkeys(slots):
                    places.setdefault((slot.module, slot.attribute), {}).setdefault(slot.dim, []).append((number, entering, slot))
        for (path, attribute), dims in places.items():
            tensor = getattr(self.model.get_submodule(path), attribute)
            axes = [self._axis(dim, tensor.shape[dim], parts) for dim, parts in sorted(dims.items())]
            columns = [axis for axis in axes if axis.inputs]
            inputs = [columns[0].size(stage) if columns else 1 for stage in range(self.stages)]
            full = tensor.detach().cpu().clone()
            if columns and not full.any():
                # twins with zero outgoing weights would stay equal for ever
                full.normal_(std=inputs[-1] ** -0.5, generator=torch.Generator().manual_seed(self.seed))
            self.tensors[path, attribute] = Grown(path, attribute, axes, full, inputs)

    def _axis(self, dim: int, size: int, parts: list[tuple[int, bool, Slot]]) -> Axis:
        """A dimension of a tensor in which these groups (number, as inputs or not, where) lie."""
        birth = torch.zeros(size, dtype=torch.int64)
        channel = torch.full((size, 3), -1)
        for order, (number, _, slot) in enumerate(parts):
            group = self.groups[number]
            channels = torch.arange(group.size).repeat_interleave(slot.repeat)
            at = slice(slot.offset, slot.offset + len(channels))
            birth[at] = torch.searchsorted(torch.tensor(self.widths[group.name]), channels, right=True)
            # a group that lies there twice has other positions the second time
            inside = order * size + torch.arange(slot.repeat).repeat(group.size)
            channel[at] = torch.stack([torch.full_like(channels, number), channels, inside], 1)
        return Axis(dim, parts[0][1], birth, channel)

    @torch.no_grad()
    def _find_factors(self, example: Any) -> None:
        """Which weights are rescaled, by what power, and what undoes it."""
        model = copy.deepcopy(self.model).eval()
        names = {module: name for name, module in model.named_modules()}
        holders: dict[int, int] = {}
        for module in names:
            for p in module.parameters(recurse=False):
                # a branch that starts at zero must not hide what its weights do
                if p.ndim <= 1 and not p.any():
                    p.fill_(1.0)
                holders[id(p)] = holders.get(id(p), 0) + 1
        made: dict[str, list[Tensor]] = {}
        norms: dict[int, str] = {}

        def see(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(module, _BatchNorm) and module.track_running_stats:
                norms[id(args[0])] = names[module]
            elif args and isinstance(args[0], Tensor):
                made.setdefault(names[module], []).append(output)

        handles = [m.register_forward_hook(see) for m in names if isinstance(m, nn.Linear | _ConvNd | _BatchNorm)]
        result = tree_flatten(model(example))[0]
        for handle in handles:
            handle.remove()
        normed = []
        for grown in self.tensors.values():
            module = model.get_submodule(grown.module)
            outputs = made.get(grown.module, [])
            changes = grown.inputs[0] != grown.inputs[-1]
            if not (changes and outputs and grown.attribute == "weight" and holders[id(module.weight)] == 1):
                continue
            is_last = any(output is out for output in outputs for out in result)
            grown.power = 1.0 if is_last else 0.5
            grown.norm = norms.get(id(outputs[0]), "") if len(outputs) == 1 else ""
            if grown.norm:
                normed.append(grown)
        if not self._cancels(model, normed, example, result):
            for grown in normed:
                if not self._cancels(model, [grown], example, result):
                    grown.norm = ""

    def _cancels(self, model: nn.Module, normed: list[Grown], example: Any, expected: list[Any]) -> bool:
        """Whether halving these weights changes nothing but their norms' statistics."""
        tensors = [t for g in normed for m in (g.module, g.norm) for t in _tensors(model.get_submodule(m))]
        before = [t.clone() for t in tensors]
        for grown in normed:
            _rescale_normed(model.get_submodule(grown.module), model.get_submodule(grown.norm), 0.5)
        found = tree_flatten(model(example))[0]
        for tensor, value in zip(tensors, before):
            tensor.copy_(value)
        pairs = [(a, b) for a, b in zip(expected, found) if isinstance(a, Tensor) and a.is_floating_point()]
        return all(float((a - b).abs().max()) <= 1e-3 * float(a.abs().max()) for a, b in pairs)

    def _inputs_scaled(self) -> list[str]:
        """Layers whose input is multiplied, since nothing behind them cancels their factor."""
        return [grown.module for grown in self.tensors.values() if grown.power and not grown.norm]

    def _multiply(self, name: str, value: float = 1.0) -> None:
        module = self.model.get_submodule(name)
        tensor = torch.tensor(value, device=module.weight.device, dtype=module.weight.dtype)  # type: ignore[arg-type, union-attr]
        if name not in self._multiplied:
            module.register_buffer(MULTIPLIER, tensor)
            self._multiplied[name] = module.register_forward_pre_hook(_multiply_input)
        else:
            setattr(module, MULTIPLIER, tensor)

    def _unmultiply(self, name: str) -> None:
        self._multiplied.pop(name).remove()
        delattr(self.model.get_submodule(name), MULTIPLIER)

    # ---- changing the sizes --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _resize(self, stage: int) -> dict[nn.Parameter, nn.Parameter]:
        """Give all tensors the sizes of a stage, with new values."""
        return self._replace(stage, {key: grown.fresh(stage) for key, grown in self.tensors.items()})

    def _replace(self, stage: int, values: dict[tuple[str, str], Tensor]) -> dict[nn.Parameter, nn.Parameter]:
        """Put tensors of another stage in place and bring the layers' numbers into line; returns new parameters by old ones."""
        modules = dict(self.model.named_modules())
        replaced: dict[nn.Parameter, nn.Parameter] = {}
        for (path, attribute), value in values.items():
            old = getattr(modules[path], attribute)
            value = value.to(old)
            if old.ndim == 4 and old.is_contiguous(memory_format=torch.channels_last) and not old.is_contiguous():
                value = value.contiguous(memory_format=torch.channels_last)
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(value, old.requires_grad)
                new.__dict__.update(old.__dict__)
                replaced[old] = new
            else:
                modules[path]._buffers[attribute] = value
        counts = {(s.module, s.attribute): 0 for g in self.groups for s in g.counts}
        for group in self.groups:
            for slot in group.counts:
                counts[slot.module, slot.attribute] += self._width(group, stage) - self._width(group, self.stage)
        for (path, attribute), more in counts.items():
            setattr(modules[path], attribute, getattr(modules[path], attribute) + more)
        self.stage = stage
        changed = {modules[path] for path, _ in values}
        for module in modules.values():
            for attribute, p in module._parameters.items():
                if p in replaced:
                    module._parameters[attribute] = replaced[p]
                    changed.add(module)
        for module in changed:
            if isinstance(module, nn.RNNBase):
                module._init_flat_weights()
            describe(module)
        head = getattr(self.model, "get_classifier", lambda: None)()
        if isinstance(head, nn.Linear) and head in changed and hasattr(self.model, "num_features"):
            self.model.num_features = head.in_features  # type: ignore[assignment]
        self._blocks.clear()
        return replaced

    def _width(self, group: Group, stage: int) -> int:
        return self.widths[group.name][stage]

    @torch.no_grad()
    def grow(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """Go to the next stage: widen all tensors, and the state of the optimizers that train them. Gradients are dropped.

        Raises:
            UserError: the network has its full width already.
        """
        stage = self.stage + 1
        if stage >= self.stages:
            raise UserError("the network has its full width: it grows stages - 1 times.")
        generator = torch.Generator().manual_seed(self.seed + stage)
        share = self.new == "copies"
        origin = None
        if self.new != "random":
            all_widths = [self.widths[group.name] for group in self.groups]
            origin = [copies(w, stage, generator) if share else twins(w, stage) for w in all_widths]
        values = {}
        for key, grown in self.tensors.items():
            module = self.model.get_submodule(grown.module)
            if grown.power:
                self._rescale(grown, module, (grown.inputs[stage - 1] / grown.inputs[stage]) ** grown.power)
            old = getattr(module, grown.attribute).detach()
            new = widen(old, grown.fresh(stage).to(old), grown.axes, stage, origin, share)
            if self.noise and new.is_floating_point() and grown.full.ndim > 1:
                noise = torch.randn(new.shape, generator=generator).to(new) * (self.noise * old.std())
                new = new + widen(torch.zeros_like(old), noise, grown.axes, stage)
            values[key] = new
        axes = {getattr(self.model.get_submodule(m), a): grown.axes for (m, a), grown in self.tensors.items()}
        replaced = self._replace(stage, values)
        for optimizer in optimizers:
            self._move(optimizer, replaced, axes)
        for p in self.model.parameters():
            p.grad = None

    def _rescale(self, grown: Grown, module: nn.Module, factor: float) -> None:
        """Multiply a layer's weight, and undo the effect behind or before it."""
        if grown.norm:
            _rescale_normed(module, self.model.get_submodule(grown.norm), factor)
        elif grown.module in self._multiplied:
            module.weight.mul_(factor)  # type: ignore[operator, union-attr]
            getattr(module, MULTIPLIER).div_(factor)

    def _move(self, optimizer: Optimizer, replaced: dict[nn.Parameter, nn.Parameter], axes: dict[Tensor, list[Axis]]) -> None:
        """Hand an optimizer the new parameters, and the old ones' state, widened with zeros."""
        for group in optimizer.param_groups:
            group["params"] = [replaced.get(p, p) for p in group["params"]]
        for old, new in replaced.items():
            state = optimizer.state.pop(old, None)
            if state is None or self.optimizer_state == "reset":
                continue
            tensors = [v for v in state.values() if isinstance(v, Tensor) and v.numel() != 1]
            if any(v.shape != old.shape for v in tensors):
                log.warning("The state of %s is of another shape than its parameters and starts anew", type(optimizer).__name__)
                continue
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == old.shape:
                    zeros = torch.zeros_like(new, dtype=value.dtype)
                    state[key] = widen(value, zeros, axes[old], self.stage)
            optimizer.state[new] = state
        if self.optimizer_state == "reset":
            optimizer.state.clear()

    @torch.no_grad()
    def finish(self) -> None:
        """Training is over: the factors on the layers' inputs go into their weights; what is left is the stock network."""
        for name in list(self._multiplied):
            module = self.model.get_submodule(name)
            module.weight.mul_(getattr(module, MULTIPLIER))  # type: ignore[operator, union-attr]
            self._unmultiply(name)
        for handle in self._fast:
            handle.remove()
        self._fast.clear()

    def _before_load(self, model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Bring the model to the stage of a ``state_dict`` that is about to be loaded."""
        shapes = {key: list(state[prefix + g.name].shape) for key, g in self.tensors.items() if prefix + g.name in state}
        fits = [t for t in range(self.stages) if all(self.tensors[key].shape(t) == shape for key, shape in shapes.items())]
        if not shapes or not fits:
            return  # torch says which sizes differ
        if fits[0] != self.stage:
            self._resize(fits[0])
        for name in self._inputs_scaled():
            if f"{prefix}{name}.{MULTIPLIER}" in state:
                self._multiply(name)
            elif name in self._multiplied:
                self._unmultiply(name)

    # ---- during training ----------------------------------------------------------------------------------------------------

    def lengths(self, total: int) -> list[int]:
        """Epochs (or steps) of each stage, adding up to ``total``; some are 0 when there are fewer than stages."""
        return lengths(total, self.stages, self.epoch_rate)

    def watch(self, optimizer: Optimizer) -> None:
        """Adapt the rates of an optimizer: from now on, its steps move each block of a weight by its own factor."""
        if not self.rate_adaptation:
            return
        before: list[tuple[tuple[str, str], Tensor, Tensor]] = []

        def remember(*_: Any) -> None:
            before.clear()
            trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
            before.extend((key, p, p.detach().clone()) for key, p in self._adapted() if id(p) in trained)

        @torch.no_grad()
        def adapt(*_: Any) -> None:
            factors = rates([self.blocks(key) for key, *_ in before], [old for *_, old in before]) if before else []
            for (_, p, old), factor in zip(before, factors):
                torch.lerp(old, p, factor, out=p)
            before.clear()

        optimizer.register_step_pre_hook(remember)
        optimizer.register_step_post_hook(adapt)

    def producers(self) -> Iterator[Tensor]:
        """The weights and biases that make growing channels."""
        for grown in self.tensors.values():
            if any(not axis.inputs for axis in grown.axes):
                yield getattr(self.model.get_submodule(grown.module), grown.attribute)

    def _adapted(self) -> Iterator[tuple[tuple[str, str], nn.Parameter]]:
        """The trained weights that have entries of several stages."""
        for key, grown in self.tensors.items() if self.stage else ():
            if grown.full.ndim > 1 and len(grown.axes) <= 2:
                p = getattr(self.model.get_submodule(grown.module), grown.attribute)
                if isinstance(p, nn.Parameter) and p.requires_grad:
                    yield key, p

    def blocks(self, key: tuple[str, str]) -> Blocks:
        """The blocks of a weight (module, attribute) at the present stage."""
        if key not in self._blocks:
            grown = self.tensors[key]
            device = getattr(self.model.get_submodule(grown.module), grown.attribute).device
            self._blocks[key] = Blocks(grown.axes, self.stage, grown.full.ndim, device)
        return self._blocks[key]


def _multiply_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0] * getattr(module, MULTIPLIER), *args[1:])


def _tensors(module: nn.Module) -> list[Tensor]:
    return [t for t in [*module._parameters.values(), *module._buffers.values()] if t is not None]


@torch.no_grad()
def _rescale_normed(module: Any, norm: Any, factor: float) -> None:
    """Multiply a layer and the statistics of the batch norm behind it; what it computes in eval mode stays."""
    module.weight.mul_(factor)
    if module.bias is not None:
        module.bias.mul_(factor)
    norm.running_mean.mul_(factor)
    # the norm's eps is part of the variance that it divides by
    norm.running_var.add_(norm.eps).mul_(factor**2).sub_(norm.eps).clamp_(min=0)
