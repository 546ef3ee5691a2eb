"""Sparsities that take several rounds of training: search a mask, round after round, then retrain what it keeps."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.optimizers.schedules import Length, length, round_of
from papermix.sharding import like
from papermix.sparsity.base import Sparsity
from papermix.sparsity.mask import Parametrization


class Rounds(Sparsity):
    """Base of iterative ticket search (Frankle & Carbin 2019; Savarese et al. 2020): train, make a mask, maybe rewind, again.

    Training falls into equal rounds: ``rounds`` of search, and one more with the final masks fixed where ``retrain`` asks for
    it. Each has an optimizer without memory and the whole learning-rate schedule; a loop of one's own does both where
    ``update`` has moved ``round`` on. A subclass says how the masks move within a round (``move``), what happens between two of
    them (``between_rounds``) and how the final masks are made (``finish``).

    Args:
        rounds: rounds of search.
        retrain: what follows the search, for as long as a round: ``rewind``: the weights go back to where they were at
            ``rewind`` and are trained under the final masks, the lottery ticket; ``finetune``: they are trained on; ``none``.
        rewind: the point in the first round to which weights are rewound, a fraction of the round, or '2 epochs', '500 steps'.
        rewind_between: rewind between the rounds of search, too.
        shuffle: permute the final masks within each layer: the random masks of equal densities that a search must beat.
        types, include, exclude: which weights, see :class:`Sparsity`.

    Attributes:
        snapshot: parameters and buffers of the model at ``rewind``, masks left out; None before, and where nothing is rewound.
    """

    def __init__(
        self,
        rounds: int = 1,
        retrain: Literal["none", "rewind", "finetune"] = "none",
        rewind: Length = 0.0,
        rewind_between: bool = False,
        shuffle: bool = False,
        **scope: Any,
    ):
        super().__init__(**scope)
        if rounds < 1:
            raise UserError(f"sparsity.rounds={rounds} must be at least 1.")
        if retrain not in ("none", "rewind", "finetune"):
            raise UserError(f"sparsity.retrain='{retrain}' must be none, rewind or finetune.")
        if shuffle and retrain == "none":
            raise UserError("sparsity.shuffle=true ruins masks that nothing is trained under: set sparsity.retrain=rewind.")
        self.searches, self.retrain, self.rewind_at, self.shuffle = rounds, retrain, rewind, shuffle
        self.rewind_between = rewind_between
        self.rounds = rounds + (retrain != "none")
        self.rewinds = retrain == "rewind" or rewind_between
        self.snapshot: dict[str, Tensor] | None = None
        self.model: nn.Module | None = None

    def move(self, step: int, steps: int) -> bool:
        """Move to step ``step`` of the ``steps`` of a round of search; True if the density is worth another look."""
        return False

    def between_rounds(self) -> bool:
        """Make the masks with which the search goes on; True if a weight's mask changed."""
        raise NotImplementedError

    def finish(self) -> bool:
        """The search is over: make the final masks; True if a weight's mask changed."""
        raise NotImplementedError

    def attach(self, model: nn.Module) -> None:
        """See :meth:`Sparsity.attach`."""
        super().attach(model)
        self.model = model

    def update(self, step: int, total_steps: int) -> bool:
        """See :meth:`Sparsity.update`; moves ``round`` on at the first step of each."""
        now, moved = round_of(step, total_steps, self.rounds), False
        if self.rewinds and self.snapshot is None and step >= self._rewind_step(total_steps // self.rounds):
            self.snapshot = remember(self.model)  # type: ignore[arg-type]
        while self.round < now:
            self.round += 1
            moved |= self._next_round()
        if self.round < self.searches:
            first, end = (n * total_steps // self.rounds for n in (now, now + 1))
            moved |= self.move(step - first, end - first)
        return moved

    def harden(self) -> bool:
        """See :meth:`Sparsity.harden`: ends the search, unless retraining has."""
        if self.round >= self.searches:
            return False
        self.round = self.searches
        return self.finish()

    def _rewind_step(self, steps: int) -> int:
        if isinstance(self.rewind_at, str) and "epoch" in self.rewind_at and not self.steps_per_epoch:
            raise UserError(f"sparsity.rewind='{self.rewind_at}' needs sparsity.steps_per_epoch: set it, or give a number of steps.")
        step = length("sparsity.rewind", self.rewind_at, steps, self.steps_per_epoch)
        if step >= max(1, steps):
            raise UserError(f"sparsity.rewind={self.rewind_at} is step {step}, but a round has only {steps}: make it smaller.")
        return step

    def _next_round(self) -> bool:
        last = self.round == self.searches
        moved = self.finish() if last else self.between_rounds()
        if last and self.shuffle:
            # all processes draw the same, and nobody else's random numbers are used
            random = torch.Generator().manual_seed(torch.initial_seed())
            for name, part in self.parts.items():
                part.permute(torch.randperm(self.weights[name].numel, generator=random).to(self.weights[name].tensor.device))
        if self.retrain == "rewind" if last else self.rewind_between:
            rewind(self.model, self.snapshot or {})  # type: ignore[arg-type]
        return moved or last

    def state_dict(self) -> dict[str, Any]:
        """The round, and the weights to rewind to."""
        return {"round": self.round, "snapshot": self.snapshot}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.round, self.snapshot = state["round"], state["snapshot"]


@torch.no_grad()
def remember(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers of ``model`` but those of sparsities."""
    masks = tuple(f"{path}." for path, m in model.named_modules(remove_duplicate=False) if isinstance(m, Parametrization))
    return {k: v.clone() for k, v in model.state_dict().items() if not masks or not k.startswith(masks)}


@torch.no_grad()
def rewind(model: nn.Module, snapshot: dict[str, Tensor]) -> None:
    """Bring a model back to what :func:`remember` kept, bit for bit; its masks stay."""
    state = model.state_dict()
    for key, value in snapshot.items():
        state[key].copy_(like(value, state[key]))
