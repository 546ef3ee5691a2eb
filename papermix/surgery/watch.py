"""One pass through a network to see how it computes, after which it is as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients and random numbers of its own inside; training flags and generators are put back afterwards."""
    training = {module: module.training for module in model.modules()}
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, flag in training.items():
            module.training = flag


def answer(model: nn.Module, example: Any) -> Any:
    """All that ``model`` says to ``example`` (a tensor, or a tuple of arguments): of all its exits, where it has several."""
    arguments = example if isinstance(example, tuple) else (example,)
    return getattr(model, "forward_exits", model)(*arguments)
