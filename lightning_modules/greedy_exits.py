"""Networks with several exits trained one after the other, each on top of the frozen ones before it."""

from typing import Any

from torch import Tensor

from lightning_modules.multi_exit import MultiExit
from papermix.errors import UserError


class GreedyExits(MultiExit):
    """Train what one exit adds, with its loss alone; all other parts are frozen and in evaluation mode.

    A run of one stage for each exit, each going on from the one before with ``init_from``, is greedy stage-wise training.

    Args:
        exit: number of the exit to train, from 1.

    Raises:
        UserError: a model that cannot be trained exit by exit, or an exit that it does not have.
    """

    def __init__(self, *args: Any, exit: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not hasattr(self.model, "exit_parts"):
            raise UserError(f"{type(self.model).__name__} does not say which of its parts belong to which exit (exit_parts).")
        if not 1 <= exit <= self.exits:
            raise UserError(f"method.exit={exit} must be from 1 to {self.exits}, the number of the model's exits.")
        self.exit = exit
        self.model.requires_grad_(False)
        for part in self.model.exit_parts(exit):
            part.requires_grad_(True)

    def train(self, mode: bool = True) -> "GreedyExits":
        """Only the parts of this exit are ever in training mode: the batch statistics of the others are frozen, too."""
        super().train(mode)
        self.model.eval()
        for part in self.model.exit_parts(self.exit):
            part.train(mode)
        return self

    def on_train_start(self) -> None:
        """Lightning takes the modes as they are."""
        self.train()

    def exit_outputs(self, x: Tensor) -> list[Tensor]:
        """Outputs up to this exit."""
        outputs, state = [], self.model.start(x)
        for _ in range(self.exit):
            output, state = self.model.step(state)
            outputs.append(output)
        return outputs

    def total(self, losses: list[Tensor]) -> Tensor:
        """The loss of the exit that is trained."""
        return losses[-1]
