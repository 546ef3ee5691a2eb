"""Pictures of the false negatives that a contrastive method finds, and how often they are true, over training."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from callbacks.base import Callback, log_picture
from callbacks.picture_base import pixels
from papermix.errors import UserError
from papermix.losses.contrastive import view_keys
from papermix.losses.false_negatives import quality

_NUMBERS = ("fn_precision", "fn_recall", "fn_base_rate")


class FalseNegatives(Callback):
    """Writes ``false_negatives/step_000120.png`` after every ``every``-th validation and ``final.png`` after training.

    Left: images and those of a sample of the training images that the method would cancel for them, best first, framed in green
    when they are of the same class and in red when not. Right: precision and recall in training so far, and the precision of
    guessing. The sample is the first images in the data's own order; their views are the same every time, so that pictures can be
    compared. Loggers that take pictures get them as ``train/false_negatives``. The first process draws.

    Args:
        count: images (rows).
        shown: most false negatives shown for each.
        sample: training images among which is searched.
        every: validations between two pictures.
    """

    def __init__(self, count: int = 8, shown: int = 8, sample: int = 512, every: int = 1) -> None:
        for key, value in (("count", count), ("shown", shown), ("every", every)):
            if value < 1:
                raise UserError(f"callbacks.false_negatives.{key}={value} must be at least 1.")
        if sample < max(2, count):
            raise UserError(f"callbacks.false_negatives.sample={sample} must be at least {max(2, count)}.")
        self.count, self.shown, self.sample, self.every = count, shown, sample, every
        self.history: dict[str, list[tuple[int, float]]] = {name: [] for name in _NUMBERS}
        self._validations = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse methods that search for no false negatives."""
        if not hasattr(pl_module, "search"):
            raise UserError(
                "callbacks=false_negatives needs a method that searches for them: use method=false_negative_cancellation."
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Note the numbers, and draw if it is the turn of this validation."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        for name, line in self.history.items():
            value = pl_module.latest.get(f"train/{name}")
            if value is not None:
                line.append((trainer.global_step, value))
        self._validations += 1
        if (self._validations - 1) % self.every == 0:
            self._write(trainer, pl_module, f"step_{trainer.global_step:06d}.png")

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw the end."""
        self._write(trainer, pl_module, "final.png")

    def state_dict(self) -> dict[str, Any]:
        """The curves so far."""
        return {"history": {name: list(line) for name, line in self.history.items()}, "validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.history = {name: [tuple(point) for point in line] for name, line in state_dict["history"].items()}
        self._validations = state_dict["validations"]

    @torch.no_grad()
    def look(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, Tensor]:
        """The sample's images, labels, and for the first ``count`` what was found: ``best`` int64 [count, shown], -1: no more."""
        images, labels = self._sample(trainer)
        images, labels = images.to(pl_module.device), labels.to(pl_module.device)
        training = pl_module.training
        pl_module.eval()
        try:
            with trainer.precision_plugin.forward_context():
                embedding = pl_module.embed(images, pl_module.made, "picture")
        finally:
            pl_module.train(training)
        # one key an image, so that none is shown twice
        keys = view_keys(embedding[:1])
        place = torch.arange(len(images), device=images.device)
        candidates, same = keys.candidates(place), labels[:, None] == labels
        found = pl_module.search(embedding, keys.embedding, candidates)
        scores = torch.einsum("vbd,kd->bkv", embedding[:, : self.count], keys.embedding)
        scores = scores.amax(2) if pl_module.aggregate == "max" else scores.mean(2)
        scores = scores.masked_fill(~found[: self.count], -torch.inf)
        best, order = scores.topk(min(self.shown, len(images)), dim=1)
        order = order.masked_fill(best == -torch.inf, -1)
        numbers = {name: value.cpu() for name, value in quality(found, same, candidates).items()}
        return {"image": images.float().cpu(), "label": labels.cpu(), "best": order.cpu(), **numbers}

    def _sample(self, trainer: pl.Trainer) -> tuple[Tensor, Tensor]:
        loader: Any = trainer.datamodule.eval_dataloader("train")  # type: ignore[attr-defined]
        images: list[Tensor] = []
        labels: list[Tensor] = []
        for batch in loader:
            images.append(batch["image"])
            labels.append(batch["label"])
            if sum(map(len, labels)) >= self.sample:
                break
        return torch.cat(images)[: self.sample], torch.cat(labels)[: self.sample]

    def _write(self, trainer: pl.Trainer, pl_module: Any, name: str) -> None:
        if not trainer.is_global_zero:
            return
        seen = self.look(trainer, pl_module)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        path = Path(trainer.default_root_dir) / "false_negatives" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(seen, self.history, pixels(seen["image"], getattr(data, "plain", None)), getattr(data, "class_names", None), path)
        log_picture(trainer, "train/false_negatives", path)


def draw(
    seen: dict[str, Tensor],
    history: dict[str, list[tuple[int, float]]],
    images: Tensor,
    names: tuple[str, ...] | None,
    path: str | Path,
) -> None:
    """Write the picture.

    Args:
        seen: ``label`` [B], ``best`` [rows, shown] and the means of :func:`quality`.
        history: name -> (step, value) of the curves.
        images: [B, H, W, 3] in 0 to 1.
        names: of the classes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    labels, best = seen["label"], seen["best"]
    rows, shown = best.shape
    figure = Figure(figsize=(0.95 * (shown + 1) + 4.6, max(0.95 * rows + 0.9, 3.2)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(1, 2, width_ratios=[0.95 * (shown + 1), 4.6])
    left, right = halves
    found, true = float(seen["found"]), float(seen["true"])
    share = f"{true / found:.0%} of them of its class" if found else "none of them known"
    guess = float(seen["all"]) / max(float(seen["candidates"]), 1e-9)
    left.suptitle(f"found among {len(labels)} images: {found:.1f} for each, {share} (guessing: {guess:.0%})", fontsize=9)
    axes = left.subplots(rows, shown + 1, squeeze=False)
    for row in range(rows):
        for column, index in enumerate([row, *best[row].tolist()]):
            axis = axes[row, column]
            axis.set(xticks=[], yticks=[])
            if index < 0:
                axis.axis("off")
                continue
            axis.imshow(images[index].numpy(), interpolation="nearest")
            right_class = bool(labels[index] == labels[row])
            colour = "#1a1a1a" if column == 0 else "#2a8c55" if right_class else "#c0182b"
            for spine in axis.spines.values():
                spine.set(color=colour, linewidth=1 if column == 0 else 2.5)
            if column == 0:
                label = int(labels[row])
                axis.set_ylabel(names[label][:12] if names and label < len(names) else str(label), fontsize=7)
    axis = right.subplots()
    lines = (
        ("fn_precision", "precision", "#0b6fb8"),
        ("fn_recall", "recall", "#c46a12"),
        ("fn_base_rate", "guessing", "#6f7d8c"),
    )
    drawn = False
    for key, name, colour in lines:
        if history[key]:
            steps, values = zip(*history[key])
            axis.plot(steps, values, color=colour, marker="o", markersize=3, linewidth=1.4, label=f"{name} {values[-1]:.2f}")
            drawn = True
    axis.set_ylim(0, 1)
    axis.set_title("false negatives in training", fontsize=9, loc="left")
    axis.set_xlabel("optimizer steps", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if drawn:
        axis.legend(fontsize=8, frameon=False)
    figure.savefig(path)
