"""Two processes with half a batch each against one with all of it, without processes: their means are handed in."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_modules import processes


def assert_shared(monkeypatch: pytest.MonkeyPatch, gradients: Callable[[list[int]], dict[str, Tensor]], count: int) -> None:
    """The mean of two processes' gradients is the gradient of the joint batch.

    Args:
        gradients: gradients of a training step on some of two examples, by name, [examples, ...].
        count: how many numbers a step averages over processes; they must differ between the two examples.
    """

    def with_mean(places: list[int], mean: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        monkeypatch.setattr("lightning_modules.tasks.mean_over_processes", mean)
        return gradients(places)

    counts: list[list[Tensor]] = [[], []]
    for i in range(2):
        with_mean([i], lambda number, seen=counts[i]: seen.append(number) or number)
    means = [(a + b) / 2 for a, b in zip(*counts)]
    assert len(means) == count and all(a != b for a, b in zip(*counts))
    joint = with_mean([0, 1], processes.mean_over_processes)
    for i in range(2):
        left = iter(means)
        for name, gradient in with_mean([i], lambda number: next(left)).items():  # noqa: B023
            assert torch.allclose(gradient[0] / 2, joint[name][i], atol=1e-7), name
