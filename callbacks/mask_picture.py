"""A picture of what a sparsity has kept: density over training, density of each layer, the masks of the first layer."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from callbacks.base import Callback, log_picture
from callbacks.curves import Series, read
from papermix.errors import UserError
from papermix.sharding import whole
from papermix.sparsity.mask import Parametrization
from papermix.sparsity.scope import weights


class MaskPicture(Callback):
    """Writes ``pictures/masks.png`` at the end of training; nothing where no weight is sparse. The first process draws.

    Each tile is what one output of the first layer sees of its input: white where the weight is zero, red and blue where it is
    positive and negative. The last tile counts how many outputs see each input.

    Args:
        count: tiles.
    """

    def __init__(self, count: int = 24) -> None:
        if count < 1:
            raise UserError(f"callbacks.mask_picture.count={count} must be at least 1.")
        self.count = count

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw."""
        with whole(pl_module):
            layers = sparse_weights(pl_module.model)
        if not layers or not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "pictures" / "masks.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        files = [Path(logger.path) for logger in trainer.loggers if getattr(logger, "path", None) is not None]  # type: ignore[attr-defined]
        series = read(files[0]) if files and files[0].exists() else {}
        data = getattr(trainer, "datamodule", None)
        draw(layers, series, path, getattr(data, "in_chans", None), self.count)
        log_picture(trainer, "masks", path)


@torch.no_grad()
def sparse_weights(model: nn.Module) -> dict[str, Tensor]:
    """Name -> values, as the forward pass sees them, of all weights that carry a sparsity; on the CPU."""
    found = {}
    for weight in weights(model):
        module, attribute = weight.places[0]
        if not parametrize.is_parametrized(module, attribute):
            continue
        if any(isinstance(part, Parametrization) for part in module.parametrizations[attribute]):  # type: ignore[index]
            found[weight.name] = getattr(module, attribute).float().cpu()
    return found


def tiles(weight: Tensor, in_chans: int | None) -> Tensor | None:
    """A weight [O, ...] as one picture for each output, [O, H, W]: the channels of a kernel side by side, or the pixels of an image.

    None where inputs are no image.
    """
    if weight.ndim == 4:
        return weight.permute(0, 2, 1, 3).flatten(2)
    if weight.ndim != 2 or not in_chans or weight.shape[1] % in_chans:
        return None
    side = round((weight.shape[1] // in_chans) ** 0.5)
    if side * side * in_chans != weight.shape[1]:
        return None
    return weight.view(-1, in_chans, side, side).permute(0, 2, 1, 3).flatten(2)


def draw(layers: dict[str, Tensor], series: Series, path: str | Path, in_chans: int | None = None, count: int = 24) -> None:
    """Write the picture of sparse weights (name -> values) and of the density and accuracy in a run's numbers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    name, first = next(iter(layers.items()))
    pictures = tiles(first, in_chans)
    figure = Figure(figsize=(11, 6.2 if pictures is not None else 3.1), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(2 if pictures is not None else 1, 1, squeeze=False).flatten()
    curve, bars = parts[0].subplots(1, 2)
    _curve(curve, series)
    _bars(bars, layers)
    if pictures is not None:
        lower = parts[1]
        seen = (pictures != 0).flatten(1).any(1)
        # those that see most, in their own order
        order = (pictures != 0).flatten(1).sum(1).sort(descending=True, stable=True).indices[:count].sort().values
        lower.suptitle(f"{name}: {int(seen.sum())} of {len(seen)} outputs see an input; right: how many outputs see each", fontsize=9)
        _grid(lower, pictures, order)
    figure.savefig(path)


def _curve(axis: Any, series: Series) -> None:
    """Density over steps, and the validation's accuracy where there is one."""
    soft = "sparsity/soft_density" in series
    hard = ("weights that a hard mask keeps", "#e08a95") if soft else ("density", "#c0182b")
    shown = {"sparsity/density": hard, "sparsity/soft_density": ("mean of the soft masks", "#c0182b")}
    last = max((steps[-1] for steps, _ in series.values()), default=0)
    for key, (label, colour) in shown.items():
        if key in series:
            steps, values = series[key]
            # it holds until the end
            axis.plot([*steps, last], [*values, values[-1]], color=colour, linewidth=1.4, label=f"{label} {values[-1]:.3g}")
    values = [v for key in shown for v in series.get(key, ([], []))[1] if v > 0]
    if values:
        axis.set_yscale("log")
        axis.set_ylim(min(values) / 1.5, 1.5)
    handles, labels = axis.get_legend_handles_labels()
    if "val/accuracy" in series:
        right = axis.twinx()
        steps, accuracy = series["val/accuracy"]
        right.plot(steps, accuracy, color="#0b6fb8", linewidth=1.2, label=f"val accuracy {accuracy[-1]:.4g}")
        right.set_ylim(0, 1.02)
        right.tick_params(labelsize=8)
        right.set_ylabel("accuracy", fontsize=8)
        extra = right.get_legend_handles_labels()
        handles, labels = handles + extra[0], labels + extra[1]
    axis.set_xlabel("optimizer steps", fontsize=8)
    axis.set_ylabel("density", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25, linewidth=0.6)
    if handles:
        axis.legend(handles, labels, fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _bars(axis: Any, layers: dict[str, Tensor]) -> None:
    """Density of each layer."""
    shares = {name: int(w.count_nonzero()) / w.numel() for name, w in layers.items()}
    places = range(len(shares))
    axis.barh(places, list(shares.values()), color="#6f7d8c")
    few = len(shares) <= 24
    if few:
        for place, (name, share) in zip(places, shares.items()):
            left = int(layers[name].count_nonzero())
            axis.text(share, place, f" {share:.2%}, {left:,} of {layers[name].numel():,}", va="center", fontsize=7)
    axis.set_yticks(list(places) if few else [], list(shares) if few else [], fontsize=7)
    axis.set_xlim(0, 1.35 * max(max(shares.values()), 1e-6))
    axis.invert_yaxis()
    axis.set_title("density of each layer", fontsize=9, loc="left")
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _grid(figure: Any, pictures: Tensor, order: Tensor) -> None:
    """Signed weights of the chosen outputs, and how many outputs see each input."""
    columns = min(12, len(order))
    rows = -(-len(order) // columns)
    left, right = figure.subfigures(1, 2, width_ratios=(columns, max(2, rows)))
    axes = left.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set(color="#b8b8b8", linewidth=0.6)
    for axis in axes[len(order) :]:
        axis.axis("off")
    # the sign alone: what is kept shall be seen, however small
    for axis, index in zip(axes, order.tolist()):
        axis.imshow(pictures[index].sign().numpy(), cmap="RdBu_r", vmin=-1.2, vmax=1.2, interpolation="nearest")
    axis = right.subplots()
    shown = axis.imshow((pictures != 0).sum(0).numpy(), cmap="Greys", vmin=0, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    bar = right.colorbar(shown, ax=axis, shrink=0.8)
    bar.ax.tick_params(labelsize=7)
