"""Networks with several exits trained on all of them at once: the weighted sum of the exits' losses."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_modules.method import Method
from lightning_modules.processes import mean_over_processes
from papermix.errors import UserError, nearest
from papermix.metrics.exits import exit_flops
from papermix.sharding import whole

WEIGHTS = ("equal", "linear", "adaptive")


class MultiExit(Method):
    """Minimise the weighted sum of the losses of all exits: joint training, the baseline of Orthogonalized SGD.

    ``val/<metric>`` and ``test/<metric>`` are those of the last exit, ``val/<metric>_exit1`` and so on those of the earlier ones.
    The test also gives ``test/flops_exit1``, ...: operations of one example up to each exit, all earlier ones included, and
    ``test/effective_flops_exit1``, ... where weights are zero.

    Args:
        weights: ``equal``: 1 each; ``linear``: 2k / (n + 1) for exit k of n, growing and 1 on average; ``adaptive``: in inverse
            proportion to the running mean of each loss, 1 on average (AdaLoss, Hu et al. 2019); or a number for each exit.

    Raises:
        UserError: a model without exits, or weights that are not one number of at least 0 for each of them.
    """

    def __init__(self, *args: Any, weights: str | Sequence[float] = "equal", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not hasattr(self.model, "forward_exits"):
            name = type(self.model).__name__
            raise UserError(f"{name} has a single output: choose a network with exits, such as model=nested_mlp.")
        self.exits: int = self.model.num_exits
        count = self.exits
        if isinstance(weights, str):
            if weights not in WEIGHTS:
                hint = nearest(weights, WEIGHTS)
                raise UserError(f"method.weights={weights} must be {', '.join(WEIGHTS)} or a list of numbers{hint}.")
            fixed = [2 * k / (count + 1) if weights == "linear" else 1.0 for k in range(1, count + 1)]
        else:
            fixed = [float(w) for w in weights]
            if len(fixed) != count or min(fixed, default=-1) < 0 or not any(fixed):
                given = list(weights)
                raise UserError(f"method.weights={given} must be {count} numbers of at least 0, one for each exit, not all 0.")
        self.register_buffer("exit_weights", torch.tensor(fixed), persistent=False)
        self.exit_weights: Tensor
        self.adaptive = weights == "adaptive"
        if self.adaptive:
            self.register_buffer("loss_means", torch.zeros(count))
            self.loss_means: Tensor
        for split in ("val", "test"):
            for k in range(1, count):
                self.metrics[f"{split}_metrics_exit{k}"] = self.task.metrics()
        self._example: Tensor | None = None

    # ---- training -----------------------------------------------------------------------------------------------------------

    def exit_outputs(self, x: Tensor) -> list[Tensor]:
        """The outputs that are trained, from the cheapest to the last."""
        return self.model.forward_exits(x)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Weighted sum of the losses of all exits."""
        losses = [self.task.loss(output, batch) for output in self.exit_outputs(batch[self.task.input])]
        loss = self.total(losses)
        named = {f"loss_exit{k}": one for k, one in enumerate(losses, 1)}
        self.record(loss=loss, **named)
        return loss

    def total(self, losses: list[Tensor]) -> Tensor:
        """The number to minimise."""
        if self.adaptive:
            self._adapt(torch.stack([loss.detach().float() for loss in losses]))
        return torch.stack(losses).mul(self.exit_weights).sum()

    def _adapt(self, losses: Tensor) -> None:
        """Move the running means (a hundred steps long), and the weights after them."""
        losses = mean_over_processes(losses)
        self.loss_means.copy_(torch.where(self.loss_means > 0, self.loss_means.lerp(losses, 0.01), losses))
        inverse = 1 / self.loss_means.clamp_min(1e-6)
        self.exit_weights.copy_(inverse / inverse.mean())

    # ---- evaluation ---------------------------------------------------------------------------------------------------------

    def _evaluate(self, batch: dict[str, Tensor], split: str) -> Tensor:
        x = batch[self.task.input]
        outputs = self.model.forward_exits(x)
        for name, output in zip(self._metric_names(split), outputs):
            self.task.update(self.metrics[name], output, batch)  # type: ignore[arg-type]
        if split == "test":
            self._example = x[:1]
        return outputs[-1]

    def _report(self, split: str) -> dict[str, Tensor]:
        values: dict[str, float] = {}
        for k, name in enumerate(self._metric_names(split)[:-1], 1):
            metrics: Any = self.metrics[name]
            values |= {f"{split}/{key}_exit{k}": value.item() for key, value in metrics.compute().items()}
            metrics.reset()
        if split == "test":
            values |= self._costs()
        self.publish(values)
        return super()._report(split)

    def _metric_names(self, split: str) -> list[str]:
        return [*(f"{split}_metrics_exit{k}" for k in range(1, self.exits)), f"{split}_metrics"]

    def _costs(self) -> dict[str, float]:
        """Operations up to each exit, of models that can be computed exit by exit."""
        if self._example is None or not hasattr(self.model, "step"):
            return {}
        with whole(self):
            dense = exit_flops(self.model, self._example)
            effective = exit_flops(self.model, self._example, effective=True)
        self._example = None
        costs = {f"test/flops_exit{k}": float(n) for k, n in enumerate(dense, 1)}
        if effective != dense:
            costs |= {f"test/effective_flops_exit{k}": float(n) for k, n in enumerate(effective, 1)}
        return costs
