"""Shared layers in a run: how alike they have become, as numbers and a picture, what folding costs, and a reward for likeness."""

import copy
from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from callbacks.base import Callback, log_picture
from papermix.errors import UserError
from papermix.models.sharing import above, banks, fold, recurrence, similarities

log = getLogger(__name__)


def _check_shared(pl_module: Any, name: str) -> None:
    if not banks(pl_module.model):
        raise UserError(
            f"callbacks={name}: this {type(pl_module.model).__name__} has no shared layers; "
            "set model.templates, or choose model=swrn or model=shared."
        )


class LayerSimilarity(Callback):
    """Publishes ``similarity/mean`` and ``similarity/alike`` after each validation; draws ``similarity.png`` after training.

    ``alike`` is the share of the pairs of different layers of a bank whose similarity (``papermix.models.sharing.similarity``) is
    above ``threshold``, ``mean`` the mean similarity of all pairs.

    Args:
        threshold: when two layers count as the same, in (0, 1).
        fold: after the test, test a copy with such layers folded (:func:`papermix.models.sharing.fold`) and publish its metrics
            as ``folded/...``, its number of parameters as ``folded/parameters`` and of loops as ``folded/loops``.
    """

    def __init__(self, threshold: float = 0.9, fold: bool = False) -> None:
        if not 0 < threshold < 1:
            raise UserError(f"callbacks.layer_similarity.threshold={threshold} must lie between 0 and 1.")
        self.threshold, self.fold = threshold, fold

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a model without shared layers."""
        _check_shared(pl_module, "layer_similarity")

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Publish the numbers."""
        if not trainer.sanity_checking:
            self._publish(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Publish the last numbers and draw."""
        matrices = self._publish(pl_module)
        if trainer.is_global_zero:
            names = {bank.name: list(layers) for bank, layers in banks(pl_module.model).items()}
            path = Path(trainer.default_root_dir) / "similarity.png"
            draw(matrices, names, path)
            log_picture(trainer, "similarity", path)

    @torch.no_grad()
    def _publish(self, pl_module: Any) -> dict[str, Tensor]:
        matrices = {name: s.cpu() for name, s in similarities(pl_module.model).items()}
        pairs = torch.cat([s[tuple(torch.triu_indices(len(s), len(s), 1))] for s in matrices.values()])
        alike = above(list(matrices.values()), self.threshold)
        pl_module.publish({"similarity/mean": float(pairs.mean()), "similarity/alike": alike})
        return matrices

    @torch.no_grad()
    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Fold a copy and test it."""
        if not self.fold:
            return
        whole, data = pl_module.model, trainer.datamodule  # type: ignore[attr-defined]
        folded = copy.deepcopy(whole)
        done = fold(folded, self.threshold)
        metrics = pl_module.task.metrics().to(pl_module.device)
        pl_module.model = folded
        try:
            limit = trainer.num_test_batches[0]
            for number, batch in enumerate(data.test_dataloader()):
                if number >= limit:
                    break
                batch = {name: values.to(pl_module.device) for name, values in batch.items()}
                with trainer.precision_plugin.forward_context():
                    output = pl_module.predict(batch, "test")
                pl_module.task.update(metrics, output, batch)
        finally:
            pl_module.model = whole
        numbers = {f"folded/{name}": float(value) for name, value in metrics.compute().items()}
        pl_module.publish({**numbers, "folded/parameters": float(done.after), "folded/loops": float(len(done.loops))})
        log.info("Folding makes %d groups of layers one and %d loops: %s", len(done.clusters), len(done.loops), done)


class Recurrence(Callback):
    """Adds the gradient of ``-weight * sum_ij S[i, j]`` before each optimizer step, so that shared layers become alike.

    Args:
        weight: lambda_R of the paper, at least 0.
    """

    def __init__(self, weight: float = 0.01) -> None:
        if not weight >= 0:
            raise UserError(f"callbacks.recurrence.weight={weight} must be at least 0.")
        self.weight = weight

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a model without shared layers."""
        _check_shared(pl_module, "recurrence")

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        """Add the gradient, once for each step of the optimizer that has the coefficients."""
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        layers = [layer for found in banks(pl_module.model).values() for layer in found.values()]
        if any(id(layer.coefficients) in stepped for layer in layers):
            with torch.enable_grad():
                (-self.weight * recurrence(pl_module.model)).backward()


def draw(matrices: Mapping[str, Tensor], names: Mapping[str, list[str]], path: Path) -> None:
    """Write the similarity matrix of each bank as a heat map, with the values where there is room.

    Args:
        matrices: name of a bank -> [layers, layers], in 0 to 1.
        names: name of a bank -> names of its layers.
        path: a .png file; its folder is made.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(4, len(matrices))
    rows = -(-len(matrices) // columns)
    figure = Figure(figsize=(0.7 + 3.9 * columns, 3.9 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(matrices) :]:
        axis.axis("off")
    image: Any = None
    for axis, (name, matrix) in zip(axes, matrices.items()):
        image = axis.imshow(matrix.numpy(), vmin=0, vmax=1, cmap="viridis")
        count = len(matrix)
        prefix = f"{name.split(' ')[0]}."
        labels = [layer.removeprefix(prefix) if prefix != "network." else layer for layer in names[name]]
        step = -(-count // 24)
        axis.set_yticks(range(0, count, step), labels[::step], fontsize=7)
        axis.set_xticks(range(0, count, step), labels[::step], fontsize=7, rotation=90)
        axis.set_title(f"{name}: {count} layers", fontsize=10, loc="left")
        if count <= 12:
            for i in range(count):
                for j in range(count):
                    value = float(matrix[i, j])
                    axis.text(
                        j,
                        i,
                        f"{value:.2f}".lstrip("0"),
                        ha="center",
                        va="center",
                        fontsize=6.5,
                        color="black" if value > 0.6 else "white",
                    )
    figure.colorbar(image, ax=list(axes), shrink=0.8, label="similarity of kernels")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
