"""Whether a network or a file computes what the trained network computed."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from papermix.errors import UserError
from scripts.exporting.plain import outputs

Outputs = dict[str, Tensor]


def evaluate(model: Any, x: Tensor) -> Outputs:
    """A network's outputs by name, without gradients."""
    with torch.no_grad():
        return {name: value.clone() for name, value in outputs(model(x)).items()}


def difference(found: Outputs, wanted: Outputs) -> tuple[float, float]:
    """Largest difference of two outputs, and the largest magnitude of what was wanted.

    A carried state counts where it has the same shape: a network with fewer units carries less.
    """
    largest, scale = torch.zeros(()), torch.zeros(())
    for name, value in wanted.items():
        if name.startswith("state") and found[name].shape != value.shape:
            continue
        if found[name].shape != value.shape:
            return float("inf"), float(scale)
        # NaN is passed on, and then nothing is equal
        largest = torch.maximum(largest, (found[name].double() - value.double()).abs().max().float())
        scale = torch.maximum(scale, value.abs().max().float())
    return float(largest), float(scale)


class Comparison:
    """Holds the trained network's outputs on some inputs.

    Args:
        model: the trained network, its sparsity still on it.
        inputs: what an input is -> the tensor.

    Attributes:
        wanted: what an input is -> the trained network's outputs.
        lines: a sentence per comparison so far.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Tensor]) -> None:
        self.inputs = dict(inputs)
        self.wanted = {name: evaluate(model, x) for name, x in inputs.items()}
        self.lines: list[str] = []

    def judged(self, prediction: Any) -> list[str]:
        """A note if the run's metrics were computed from something else than the network's outputs on the last input."""
        own = list(self.wanted.values())[-1]
        given = prediction if isinstance(prediction, dict) else {"output": prediction}
        pairs = [(given[n][: len(own[n])], own[n]) for n in own if isinstance(given.get(n), Tensor) and given[n].ndim]
        if pairs and all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs):
            return []
        return ["the run's method computed its predictions by more than the network's output, which alone is exported"]

    def of(self, what: str, compute: Callable[[Tensor], Outputs], bound: float) -> None:
        """Compare on every input and keep a sentence.

        Raises:
            UserError: a difference above ``bound`` (times the outputs' largest magnitude where that is above 1).
        """
        found = {name: difference(compute(x), self.wanted[name]) for name, x in self.inputs.items()}
        for name, (largest, scale) in found.items():
            if not largest <= bound * max(1.0, scale):
                raise UserError(
                    f"{what} differs from the trained network by {largest:.1e} on {name}, which is more than {bound:g} "
                    f"of its largest output, {scale:.3g}: it was not written."
                )
        self.lines.append(
            f"{what} equals the trained network: " + ", ".join(f"{d:.1e} on {name}" for name, (d, _) in found.items())
        )
