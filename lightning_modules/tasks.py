"""Tasks: the loss and the metrics of a kind of data. A dataset option names its task; methods and models stay free of it."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.processes import mean_over_processes
from papermix.errors import UserError


class MeanLoss(Metric):
    """Mean of a loss over all its elements (examples or tokens), with an optional change of unit.

    Args:
        unit: ``nats`` (as it is), ``bits`` (divided by ln 2) or ``perplexity`` (its exponential).
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, unit: str = "nats") -> None:
        super().__init__()
        self.unit = unit
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, loss: Tensor) -> None:
        """Add per-element losses of any shape."""
        self.total += loss.detach().sum(dtype=torch.float64)
        self.count += loss.numel()

    def compute(self) -> Tensor:
        """The mean so far, in the unit chosen."""
        mean = self.total / self.count
        return {"nats": mean, "bits": mean / math.log(2), "perplexity": mean.exp()}[self.unit]


class Task(nn.Module):
    """Loss and metrics of a kind of data.

    Attributes:
        input: the batch entry that a model takes.
        target: the batch entry that holds the truth.
        monitor: the validation metric by which models are compared, and ``mode``: its better direction, ``max`` or ``min``.
    """

    input = "image"
    target = "label"
    monitor = "val/loss"
    mode = "min"

    def loss(self, output: Any, batch: dict[str, Tensor], reduction: str = "mean") -> Tensor:
        """Loss of a model's output; with ``reduction="none"`` one number for each element."""
        raise TypeError(f"{type(self).__name__} defines no loss")

    def mean(self, loss: Tensor, count: Tensor) -> Tensor:
        """Sum of ``loss`` over ``count``, which in training is the mean count of all processes."""
        number = mean_over_processes(count.float()) if self.training else count
        return loss.sum() / number.clamp_min(1e-6)

    def metrics(self) -> MetricCollection:
        """Fresh metrics; their names stand after ``val/`` and ``test/``."""
        raise TypeError(f"{type(self).__name__} defines no metrics")

    def update(self, metrics: MetricCollection, output: Any, batch: dict[str, Tensor]) -> None:
        """Add a batch to the metrics."""
        raise TypeError(f"{type(self).__name__} defines no update")


class Classification(Task):
    """One of ``num_classes`` labels for each example: cross-entropy, accuracy (and top-5 beyond ten classes).

    Batches hold ``label`` int64 [B], or ``label_soft`` float [B, num_classes] where labels are mixed.

    Args:
        num_classes: number of classes, labels run from 0.
        label_smoothing: probability mass spread evenly over all classes, in [0, 1).
    """

    monitor = "val/accuracy"
    mode = "max"

    def __init__(self, num_classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"dataset.task.label_smoothing={label_smoothing} must lie in [0, 1).")
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing

    def loss(self, output: Tensor, batch: dict[str, Tensor], reduction: str = "mean") -> Tensor:
        """Cross-entropy of logits [B, num_classes], in nats."""
        if output.shape[-1] != self.num_classes:
            raise UserError(f"the model gives {output.shape[-1]} outputs for {self.num_classes} classes: set model.num_classes=${{dataset.num_classes}}.")
        target = batch.get("label_soft", batch["label"]) if self.training else batch["label"]
        return F.cross_entropy(output, target, reduction=reduction, label_smoothing=self.label_smoothing if self.training else 0.0)

    def metrics(self) -> MetricCollection:
        """``accuracy``, ``loss``, and ``accuracy_top5`` beyond ten classes."""

        def accuracy(top_k: int) -> Metric:
            return MulticlassAccuracy(self.num_classes, average="micro", top_k=top_k, validate_args=False)

        metrics: dict[str, Metric | MetricCollection] = {"accuracy": accuracy(1), "loss": MeanLoss()}
        if self.num_classes > 10:
            metrics["accuracy_top5"] = accuracy(5)
        return MetricCollection(metrics, compute_groups=False)

    def update(self, metrics: MetricCollection, output: Tensor, batch: dict[str, Tensor]) -> None:
        """Add logits [B, num_classes] and labels [B]."""
        for name, metric in metrics.items():
            if name == "loss":
                metric.update(self.loss(output, batch, reduction="none"))
            else:
                metric.update(output, batch["label"])


class LanguageModelling(Task):
    """The next token of every position: cross-entropy, bits per character or perplexity per word.

    Batches hold ``tokens`` and ``target``, int64 [B, T], the latter -100 where a sequence is padded; outputs are logits [B, T, vocab_size].

    Args:
        vocab_size: number of tokens.
        unit: ``char`` reports bits per character, ``word`` reports perplexity.
    """

    input = "tokens"
    target = "target"
    mode = "min"

    def __init__(self, vocab_size: int, unit: str = "char") -> None:
        super().__init__()
        if unit not in ("char", "word"):
            raise UserError(f"dataset.task.unit={unit!r} must be char or word.")
        self.vocab_size = vocab_size
        self.unit = unit
        self.monitor = "val/bits_per_character" if unit == "char" else "val/perplexity"

    def loss(self, output: Tensor, batch: dict[str, Tensor], reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats per token that is not padding (below 0); ``reduction="none"`` gives [B, T], 0 at padding."""
        target = batch["target"]
        loss = F.cross_entropy(output.flatten(0, 1), target.flatten(), reduction="none")  # -100 is left out
        return loss.view(target.shape) if reduction == "none" else self.mean(loss, (target >= 0).sum())

    def metrics(self) -> MetricCollection:
        """``loss`` (nats per token) and ``bits_per_character`` or ``perplexity``."""
        own: dict[str, Metric | MetricCollection] = {"bits_per_character": MeanLoss("bits")} if self.unit == "char" else {"perplexity": MeanLoss("perplexity")}
        return MetricCollection({**own, "loss": MeanLoss()}, compute_groups=False)

    def update(self, metrics: MetricCollection, output: Tensor, batch: dict[str, Tensor]) -> None:
        """Add logits [B, T, vocab_size] and targets [B, T]; padding is left out."""
        loss = self.loss(output, batch, reduction="none")[batch["target"] >= 0]
        for metric in metrics.values():
            metric.update(loss)
