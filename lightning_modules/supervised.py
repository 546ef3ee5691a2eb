"""Plain supervised training: minimise the task's loss. Also with a state that is carried over the chunks of streams and episodes."""

from typing import Any

import torch
from torch import Tensor

from lightning_modules.method import Method


def detach(state: Any) -> Any:
    """The same nested tuple of tensors, cut off from the graph (truncated back-propagation through time)."""
    if isinstance(state, Tensor):
        return state.detach()
    return tuple(detach(s) for s in state)


class Supervised(Method):
    """Minimise ``task.loss`` on every batch.

    A model with ``stateful = True`` takes ``(tokens, state)`` and returns ``(logits, state)``: its state is carried from one
    chunk of a stream to the next, cut off from the graph, and zeroed where ``batch["fresh"]`` says that a stream starts. What a
    batch has of ``query`` and ``asked`` (the steps that have a loss) the model gets too.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._carried: dict[str, Any] = {}

    def predict(self, batch: dict[str, Tensor], split: str) -> Any:
        """The model's output for a batch; moves the carried state of that split on."""
        x = batch[self.task.input]
        if not getattr(self.model, "stateful", False):
            return self.model(x)
        state = self._carried.get(split)
        if state is not None:
            state = self.model.reset(state, batch["fresh"])
        output, state = self.model(x, state, **{name: batch[name] for name in ("query", "asked") if name in batch})
        self._carried[split] = detach(state)
        return output

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch."""
        loss = self.task.loss(self.predict(batch, "train"), batch)
        self.record(loss=loss)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Evaluation starts from an empty state."""
        self._carried.pop("val", None)

    def on_test_epoch_start(self) -> None:
        """Evaluation starts from an empty state."""
        self._carried.pop("test", None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state that training carries, every process its own."""
        super().on_save_checkpoint(checkpoint)
        if "train" in self._carried:
            mine = self._carried["train"]
            if self.trainer.world_size > 1:
                states: list[Any] = [None] * self.trainer.world_size
                torch.distributed.all_gather_object(states, mine)
            else:
                states = [mine]
            checkpoint["papermix_carried"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the carried state of this process."""
        super().on_load_checkpoint(checkpoint)
        states = checkpoint.get("papermix_carried")
        if states is not None and len(states) == self.trainer.world_size:
            self._carried["train"] = _to(states[self.trainer.global_rank], self.trainer.strategy.root_device)


def _to(state: Any, device: torch.device) -> Any:
    return state.to(device) if isinstance(state, Tensor) else tuple(_to(s, device) for s in state)
