"""Drives a structured sparsity through training, with any method, and draws how the network grew."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from callbacks.base import example, log_picture
from callbacks.sparsity import SparsityDriver
from papermix.errors import UserError
from papermix.sparsity.structured import Structured


class StructuredDriver(SparsityDriver):
    """What :class:`SparsityDriver` does, for channels and blocks.

    Besides: attaches with an example of the training data, lets what is not in use rest in the optimizers, draws ``widths.png``
    beside ``metrics.csv``, and reports ``sparsity/training_cost`` (mean FLOPs of the steps), ``sparsity/final_density`` and
    ``sparsity/final_flops``, as shares of the whole network's.
    """

    sparsity: Structured

    def __init__(self, sparsity: Structured):
        super().__init__(sparsity)
        self.history: list[tuple[int, float, dict[str, int]]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Attach, unless attached already (Lightning sets up for training, validation and testing)."""
        if getattr(pl_module.model, "_compiled_call_impl", None) is not None and self.sparsity.compact:
            raise UserError(
                "a compiled network cannot change its shape with every draw: use sparsity.compact=false or hardware.compile=false."
            )
        if not self.sparsity.parts:
            self.sparsity.attach(pl_module.model, example(trainer, pl_module))  # type: ignore[arg-type]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Learn the length of training, and watch the optimizers."""
        for optimizer in trainer.optimizers:
            self.sparsity.watch(optimizer)
        super().on_train_start(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decide, report and draw."""
        super().on_train_end(trainer, pl_module)
        numbers = {
            "sparsity/training_cost": self.sparsity.training_cost(),
            "sparsity/final_density": self.sparsity.density(),
            "sparsity/final_flops": self.sparsity.structure.cost("flops"),
        }
        if hasattr(pl_module, "publish"):
            pl_module.publish(numbers)  # type: ignore[operator]
        path = next((Path(p) for logger in trainer.loggers if (p := getattr(logger, "path", None)) is not None), None)
        if trainer.is_global_zero and path is not None and self.history:
            picture = path.with_name("widths.png")
            draw(self.history, self.sparsity.sizes(), picture)
            log_picture(trainer, "widths", picture)

    def state_dict(self) -> dict[str, Any]:
        """The widths so far."""
        return {"history": list(self.history), **super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.history = [(step, cost, dict(widths)) for step, cost, widths in state_dict.pop("history")]
        super().load_state_dict(state_dict)

    def _log_density(self, trainer: pl.Trainer) -> None:
        super()._log_density(trainer)
        self.history.append((trainer.global_step, self.sparsity.density(), self.sparsity.widths()))


def draw(history: list[tuple[int, float, dict[str, int]]], sizes: dict[str, int], path: Path) -> None:
    """Write a picture: a row a layer, its width over the steps as a share of the largest, and above them the size of the network."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(sizes)
    steps = [step for step, _, _ in history]
    edges = [*steps, max(steps[-1] + 1, 2 * steps[-1] - steps[max(0, len(steps) - 2)])]
    share = torch.tensor([[widths[name] / sizes[name] for _, _, widths in history] for name in names])
    height = min(14.0, 1.6 + 0.24 * len(names))
    figure = Figure(figsize=(7.5, 1.4 + height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.4, height - 0.6])
    top.stairs([cost for _, cost, _ in history], edges, baseline=None, color="#0b6fb8", linewidth=1.6)
    top.set_ylim(0, None)
    top.set_title(f"weights in use, as a share of all: {history[-1][1]:.3f} at the end", fontsize=10, loc="left")
    mesh = below.pcolormesh(edges, range(len(names) + 1), share.numpy(), cmap="viridis", vmin=0, vmax=1)
    below.invert_yaxis()
    last = history[-1][2]
    below.set_yticks([i + 0.5 for i in range(len(names))], [f"{n}  {last[n]}/{sizes[n]}" for n in names], fontsize=7)
    below.set_title("channels and blocks in use, as a share of each layer's", fontsize=10, loc="left")
    below.set_xlabel("optimizer steps", fontsize=8)
    for axis in (top, below):
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.colorbar(mesh, ax=below, fraction=0.03, pad=0.01).ax.tick_params(labelsize=7)
    figure.savefig(path)
