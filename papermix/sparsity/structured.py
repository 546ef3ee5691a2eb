"""Structured Continuous Sparsification: growing and pruning channels and blocks in one run (Yuan, Savarese & Maire 2021)."""

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from logging import getLogger
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from papermix.errors import UserError, nearest
from papermix.sparsity.base import Sparsity
from papermix.sparsity.compact import STRUCTURE, Gate, Structure, shrink
from papermix.sparsity.scope import Weight
from papermix.surgery.blocks import residual_blocks
from papermix.surgery.channels import Group, channel_groups

log = getLogger(__name__)

BUDGETS = ("params", "flops")


class Structured(Sparsity):
    """Learn how many channels and which residual blocks a network has, from a small seed to a budget.

    Yuan, Savarese & Maire, "Growing Efficient Deep Networks by Structured Continuous Sparsification", ICLR 2021
    (arXiv 2007.15353). Every group of coupled channels has logits s and temperatures beta, one per channel, every residual
    block one; training minimises over weights and logits

        E_q [ L(f(x; q * sigmoid(beta s) * w)) ] + lambda * sum sigmoid(beta s),      q ~ Bernoulli(sigmoid(beta s)).

    - *Structure*: q is drawn for an interval of some epochs, and the sub-network of its channels and blocks is what is computed
      in it: tensors are cut to the channels in use, so that training costs what a network of that size costs. The rest keeps
      weights and optimizer state as they are (see :meth:`watch`) and inherits them when it is drawn again.
    - *Gate*: sigmoid(beta s) multiplies a channel where it is read, behind norm and activation; a block's multiplies the last
      layer of its branch. Logits of what is not in use get the penalty's gradient alone.
    - *Budget*: lambda = penalty * clip((u - target) / target, -1, 1), where u is the cost of the sub-network as a share of the
      whole: below the target the penalty is a reward, and gates open.
    - *Temperature*: beta starts at 1; in each interval in which an item is in use its own is multiplied by
      ``temperature ** (1 / (intervals - 1))``, so that what is new stays undecided.
    - In the last part of training (``fix``) nothing is drawn: q = 1[s > 0], and the budget counts what will stay.

    At least one channel of each group is always in use. At the end m = 1[s > 0] replaces the gates, without fine-tuning;
    :meth:`finalize` takes the rest out of the network.

    A loop of one's own::

        sparsity.attach(model, example)          # before the optimizer is made
        sparsity.watch(optimizer)
        sparsity.steps_per_epoch = len(loader)
        for step in range(total):
            sparsity.update(step, total)
            ... forward, backward ...
            sparsity.penalty_backward()
            optimizer.step()
        sparsity.harden()
        small = sparsity.finalize(model)

    Args:
        target: cost of the final network as a share of the whole network's, in (0, 1).
        budget: what is counted: ``params`` (entries of the weights) or ``flops`` (of the forward pass of an example).
        penalty: weight of the sum (not the mean) of the gates.
        temperature: beta of an item that was in use in every interval, at the end.
        interval: epochs between draws.
        fix: share of training after which nothing is drawn any more.
        seed_channels: channels of each group that are in use at first; null: all.
        seed_blocks: share of the residual blocks that are in use at first.
        open, closed: logits, at first, of what is in use and of what is not.
        blocks: gate residual blocks, besides channels.
        streams: gate channels that several layers add into, too (residual streams).
        compact: compute with cut tensors; false: with masked ones of full size (the same outputs, nothing saved).
        lr: learning rate of the logits under plain SGD, moved by the schedule of the weights; null: the weights' optimizer.
        momentum: of that SGD.
        include, exclude: patterns of channel groups' names (their first layer's) and of blocks' names.
        seed: draws q, together with the interval's number.

    Raises:
        UserError: a value that cannot be.
    """

    # what drives it in Lightning's trainer
    driver = "callbacks.structured.StructuredDriver"

    def __init__(
        self,
        target: float = 0.25,
        budget: str = "params",
        penalty: float = 0.01,
        temperature: float = 100.0,
        interval: float = 1.0,
        fix: float = 0.8,
        seed_channels: int | None = 4,
        seed_blocks: float = 1.0,
        open: float = 0.1,
        closed: float = -0.02,
        blocks: bool = True,
        streams: bool = False,
        compact: bool = True,
        lr: float | None = 0.1,
        momentum: float = 0.9,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        seed: int = 0,
    ):
        super().__init__(include=include, exclude=exclude)
        if not 0 < target < 1:
            raise UserError(f"sparsity.target={target} must lie between 0 and 1: it is a share of the whole network's cost.")
        if budget not in BUDGETS:
            raise UserError(
                f"sparsity.budget={budget!r} is not known{nearest(str(budget), BUDGETS)}: use {' or '.join(BUDGETS)}."
            )
        if penalty <= 0 or temperature < 1 or interval <= 0:
            raise UserError(
                f"sparsity needs penalty > 0, temperature >= 1 and interval > 0, not {penalty}, {temperature} and {interval}."
            )
        if not 0 <= fix <= 1 or not 0 <= seed_blocks <= 1:
            raise UserError(f"sparsity.fix={fix} and seed_blocks={seed_blocks} are shares and must lie in [0, 1].")
        if seed_channels is not None and seed_channels < 1:
            raise UserError(f"sparsity.seed_channels={seed_channels} must be at least 1, or null for all.")
        if not closed <= 0 < open:
            raise UserError(f"sparsity needs closed <= 0 < open, not {closed} and {open}: the sign of a logit decides.")
        if lr is not None and lr <= 0:
            raise UserError(f"sparsity.lr={lr} must be above 0, or null for the optimizer of the weights.")
        self.target, self.budget, self.penalty, self.temperature = target, budget, penalty, temperature
        self.interval, self.fix, self.seed_channels, self.seed_blocks = interval, fix, seed_channels, seed_blocks
        self.open, self.closed, self.blocks, self.streams, self.compact = open, closed, blocks, streams, compact
        self.sgd = None if lr is None else {"lr": lr, "momentum": momentum, "nesterov": False}
        self.seed = seed
        self.structure: Structure
        self.groups: list[Group] = []
        self.total_steps = 0
        self.steps_per_epoch = 0
        self._optimizers: list[Optimizer] = []
        self._frozen: list[tuple[list[Tensor], list[Tensor], list[Tensor]]] = []
        self._known: list[Tensor] = []
        self._first = True

    # ---- attaching ----------------------------------------------------------------------------------------------------------

    def attach(self, model: nn.Module, example: Any = None) -> None:
        """Gate the channels and blocks of ``model``, in place, and go to the seed network.

        Args:
            model: the network, parametrized or not.
            example: an input (a tensor, or a tuple of arguments), with which operations are followed and counted; two
                examples of a batch are enough.

        Raises:
            UserError: attached already, no example, nothing to gate, or a network that cannot be computed in cut form.
        """
        if self.parts:
            raise UserError("this Structured is attached to a model already: make one for each model.")
        if example is None:
            raise UserError("structured sparsity follows a network's channels through an input: attach(model, example).")
        self.groups = channel_groups(model, example)
        names = [g.name for g in self.groups if not (g.fixed or g.mixed)]
        found = residual_blocks(model, example) if self.blocks else []
        for pattern in [*self.include, *self.exclude]:
            if pattern != "*" and not any(fnmatchcase(name, pattern) for name in [*names, *(b.name for b in found)]):
                raise UserError(f"sparsity pattern '{pattern}' matches no channel group or block{nearest(pattern, names)}.")
        gated = [g for g in self.groups if self._can_gate(g) and self._chosen(g.name)]
        found = [b for b in found if self._chosen(b.name)]
        if not gated and not found:
            reasons = {g.fixed or g.mixed or "several layers add into it (see sparsity.streams)" for g in self.groups}
            raise UserError(
                f"structured sparsity can gate no channels of this {type(model).__name__}: {'; '.join(sorted(reasons))}."
            )
        first = math.ceil(self.seed_blocks * len(found))
        like = next(model.parameters())
        gates = {g.name: self._gate(g.size, self.seed_channels, like) for g in gated}
        layers = {b.name: self._gate(1, int(i < first), like) for i, b in enumerate(found)}
        self.structure = Structure(model, self.groups, gates, found, layers, example, self.compact)
        model.add_module(STRUCTURE, self.structure)
        self.parts = {**gates, **{f"{name} (block)": gate for name, gate in layers.items()}}
        self.weights = {
            name: Weight(name, cost.tensor, [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])])
            for name, cost in self.structure.costs.items()
        }
        if self.compact:
            self.structure.check(model, example)
        self._set_lambda()

    def _can_gate(self, group: Group) -> bool:
        can = not group.fixed and not group.mixed and group.producers and group.consumers and group.size > 1
        return bool(can) and (self.streams or not group.summed)

    def _chosen(self, name: str) -> bool:
        return any(fnmatchcase(name, p) for p in self.include) and not any(fnmatchcase(name, p) for p in self.exclude)

    def _gate(self, size: int, seeds: int | None, like: Tensor) -> Gate:
        seeds = size if seeds is None else min(seeds, size)
        s = torch.full((size,), float(self.closed))
        s[:seeds] = self.open
        return Gate(s.to(like.device), self.sgd)

    # ---- during training ----------------------------------------------------------------------------------------------------

    def watch(self, optimizer: Optimizer) -> None:
        """What is not in use keeps its weights and its state in this optimizer: they are put back after each step.

        To be called again when the optimizer's state, or the model's, was loaded.
        """
        if not any(optimizer is watched for watched in self._optimizers):
            self._optimizers.append(optimizer)
            optimizer.register_step_post_hook(lambda *_: self._restore())
        self._remember()

    @torch.no_grad()
    def _remember(self) -> None:
        """Note what the entries not in use are."""
        self._frozen = []
        masks = self.structure.in_use()
        if masks:
            self._frozen.append(_frozen(list(masks), list(masks.values())))
        found = self._states(masks)
        if found:
            self._frozen.append(_frozen([value for value, _ in found], [mask for _, mask in found]))
        self._known = [value for value, _ in found]
        self._first = True

    def _states(self, masks: dict[nn.Parameter, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The optimizers' tensors for entries of these parameters, with the parameters' masks."""
        return [
            (value, mask)
            for optimizer in self._optimizers
            for p, mask in masks.items()
            for value in optimizer.state.get(p, {}).values()
            if isinstance(value, Tensor) and value.shape == p.shape
        ]

    @torch.no_grad()
    def _restore(self) -> None:
        for tensors, masks, kept in self._frozen:
            torch._foreach_mul_(tensors, masks)
            torch._foreach_add_(tensors, kept)
        if self._first:
            # what the optimizer has made in this step for entries that are not in use starts at zero
            known = {id(value) for value in self._known}
            for value, mask in self._states(self.structure.in_use()):
                if id(value) not in known:
                    value.mul_(mask)
            self._remember()
            self._first = False

    def length(self) -> int:
        """Optimizer steps of an interval."""
        if self.steps_per_epoch < 1:
            raise UserError("structured sparsity counts in epochs: set its steps_per_epoch before the first update.")
        return max(1, round(self.interval * self.steps_per_epoch))

    @torch.no_grad()
    def update(self, step: int, total_steps: int) -> bool:
        self.total_steps = total_steps
        structure, length = self.structure, self.length()
        number = step // length
        if number == structure.number:
            return False
        structure.pay(number * length)
        factor = self.temperature ** (1 / max(1, -(-total_steps // length) - 1))
        for gate in structure.used_gates():
            gate.heat(factor ** (number - structure.number))
        structure.number = number
        if number * length >= self.fix * total_steps:
            structure.decide()
        else:
            structure.draw(self.seed, number)
        self._set_lambda()
        if self._optimizers:
            self._remember()
        return True

    def _set_lambda(self) -> None:
        over = (self.structure.cost(self.budget) - self.target) / self.target
        self.structure.set_lambda(self.penalty * min(1.0, max(-1.0, over)))

    @torch.no_grad()
    def penalty_backward(self) -> None:
        """Add the gradient of ``lambda * sum sigmoid(beta s)`` to the logits'."""
        weight = self.structure.weight
        if not weight:
            return
        for gate in self.parts.values():
            soft = torch.sigmoid(gate.beta * gate.logits)
            slope = weight * gate.beta * soft * (1 - soft)
            gate.logits.grad = slope if gate.logits.grad is None else gate.logits.grad.add_(slope)

    @torch.no_grad()
    def harden(self) -> bool:
        if self.structure.is_hard:
            return False
        self.structure.pay(self.total_steps)
        before = [gate.active.clone() for gate in self.parts.values()]
        self.structure.decide()
        self.structure.fix()
        return any(not torch.equal(a, gate.active) for a, gate in zip(before, self.parts.values()))

    def finalize(self, model: nn.Module) -> nn.Module:
        """Take what is not in use out of ``model`` (the attached one or a copy), in place; see :func:`shrink`."""
        return shrink(model)

    # ---- numbers ------------------------------------------------------------------------------------------------------------

    def densities(self) -> dict[str, float]:
        """Share of each weight that is in use."""
        return {name: cost.used() / cost.total for name, cost in self.structure.costs.items()}

    def density(self) -> float:
        """Share of all weights that is in use: of convolutions, linear and recurrent layers and embeddings, without biases."""
        if not self.parts:
            raise UserError("Structured has no density yet: attach it to a model first.")
        return self.structure.cost("params")

    def training_cost(self) -> float:
        """Mean FLOPs of the training steps so far as a share of the whole network's."""
        return self.structure.mean_cost()

    def widths(self) -> dict[str, int]:
        """Channels in use of each gated group, 0 where the block that makes them is off; of each gated block 1 or 0."""
        return self.structure.widths()

    def sizes(self) -> dict[str, int]:
        """The largest values of :meth:`widths`."""
        return self.structure.sizes()

    def numbers(self) -> dict[str, float]:
        """Costs as shares of the whole network's, lambda, and the mean temperature."""
        beta = torch.cat([gate.beta for gate in self.parts.values()])
        return {
            "flops": self.structure.cost("flops"),
            "decided_density": self.structure.decided_cost("params"),
            "lambda": self.structure.weight,
            "temperature": float(beta.mean()),
        }


def _frozen(tensors: list[Tensor], masks: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    detached = [t.detach() for t in tensors]
    masks = [mask.to(t.dtype) for t, mask in zip(detached, masks)]
    return detached, masks, [t * (1 - mask) for t, mask in zip(detached, masks)]
