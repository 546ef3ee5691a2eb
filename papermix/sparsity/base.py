"""The contract of every sparsity: parametrizations on chosen weights, moved by a schedule, baked in at the end."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from papermix.errors import UserError
from papermix.sharding import full
from papermix.sparsity.mask import Parametrization, finalize, follow_parametrizations
from papermix.sparsity.scope import Weight, select


class Sparsity:
    """Base of all sparsities: scope, attaching, density, baking. A subclass says what is attached and how it moves.

    A loop of one's own calls ``attach(model)`` before the optimizer is made, ``update(step, total_steps)`` before each step,
    ``penalty_backward()`` between backward and the optimizer's step, ``harden()`` after the last step. Where ``update`` has moved
    ``round`` on, the loop empties the optimizer's state and starts its learning-rate schedule anew. Masks live in the model's
    parametrizations, so in its ``state_dict``; what else a continued run needs is in the sparsity's own. Several can be attached
    to one model: each then sees the weights that those before it leave.

    Args:
        types: kinds of layers: linear, conv, recurrent, attention, embedding, other (weights of any other module).
        include: patterns of weight names, of which one must match (``layer1.*``).
        exclude: patterns of weight names that stay dense.

    Attributes:
        rounds: equal rounds into which training falls.
        round: the one in progress, 0-based.
        steps_per_epoch: optimizer steps, for settings in epochs; 0: not known.
    """

    rounds = 1
    round = 0
    steps_per_epoch = 0

    def __init__(
        self,
        types: Sequence[str] = ("linear", "conv", "recurrent", "attention"),
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
    ):
        self.types, self.include, self.exclude = list(types), list(include), list(exclude)
        self.weights: dict[str, Weight] = {}
        self.parts: dict[str, Any] = {}

    def make(self, weight: Weight) -> Parametrization | None:
        """The parametrization for one weight, or None to leave it dense."""
        raise NotImplementedError

    def update(self, step: int, total_steps: int) -> bool:
        """Move to optimizer step ``step`` (0-based, about to be done) of ``total_steps``; True if a weight's mask changed."""
        raise NotImplementedError

    def penalty_backward(self) -> None:
        """Add the gradient of the sparsity's penalty to the parameters' ``.grad``; nothing unless the sparsity has one."""

    def harden(self) -> bool:
        """Training is over: bring the weights to their final density, however far the schedule; True if one changed."""
        raise NotImplementedError

    def numbers(self) -> dict[str, float]:
        """What is worth watching besides the density, by name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State that is not in the model's."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""

    def attach(self, model: nn.Module) -> None:
        """Parametrize the selected weights of ``model``, in place.

        Raises:
            UserError: attached already, or no weight that it can act on.
        """
        if self.parts:
            raise UserError(f"this {type(self).__name__} is attached to a model already: make one for each model.")
        selected = select(model, self.types, self.include, self.exclude)
        for weight in selected:
            part = self.make(weight)
            if part is not None:
                # a tied weight has one parametrization, registered wherever the weight is used
                for module, attribute in weight.places:
                    parametrize.register_parametrization(module, attribute, part)
                    follow_parametrizations(module)
                self.weights[weight.name], self.parts[weight.name] = weight, part
        if not self.parts:
            names = ", ".join(weight.name for weight in selected[:12])
            raise UserError(f"{type(self).__name__} can act on none of the weights {names}: widen sparsity.types or include.")

    def follow(self) -> None:
        """Let go of the parameters that were there when it was attached: sharding has put others in their places."""
        for weight in self.weights.values():
            module, attribute = weight.places[0]
            if parametrize.is_parametrized(module, attribute):
                chain: Any = module.parametrizations[attribute]  # type: ignore[index]
                weight.tensor = chain.original if chain.is_tensor else weight.tensor

    def value(self, name: str) -> Tensor:
        """The weight as this sparsity's part receives it, that is after the parametrizations registered before it; whole."""
        module, attribute = self.weights[name].places[0]
        chain: Any = module.parametrizations[attribute]  # type: ignore[index]
        tensors = [chain.original] if chain.is_tensor else [getattr(chain, f"original{i}") for i in range(chain.ntensors)]
        tensors = [full(tensor) for tensor in tensors]
        for part in chain:
            if part is self.parts[name]:
                break
            tensors = [part(*tensors)]
        return tensors[0]

    def densities(self) -> dict[str, float]:
        """Share of each attached weight that is not zeroed, a tied weight under its first name."""
        return {name: int(part.kept()) / self.weights[name].numel for name, part in self.parts.items()}

    def density(self) -> float:
        """Share of all attached weights together that is not zeroed."""
        if not self.parts:
            raise UserError(f"{type(self).__name__} has no density yet: attach it to a model first.")
        return sum(int(part.kept()) for part in self.parts.values()) / sum(w.numel for w in self.weights.values())

    def finalize(self, model: nn.Module) -> nn.Module:
        """Bake all sparsity on ``model`` (the attached one or a copy) into plain tensors, see :func:`mask.finalize`."""
        return finalize(model)
