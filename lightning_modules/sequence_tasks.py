"""Tasks of networks with a memory: maps, recall, sorting, questions about stories. Only the steps that are asked count."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_modules.tasks import MeanLoss, Task
from papermix.errors import UserError

Batch = dict[str, Tensor]
# with more wrong answers than this share a task of bAbI is failed (Weston et al. 2016)
FAILED = 0.05


class SequenceTask(Task):
    """Base of tasks on `frames` [B, T, ...] with a `target` and `asked` bool [B, T]. Subclasses give ``terms``, ``metrics``, ``update``.

    Args:
        reduction: ``mean`` of the loss over what is asked (steps, and cells or bits of a step), or its ``sum`` over all of it.
    """

    input = "frames"
    target = "target"

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise UserError(f"dataset.task.reduction={reduction!r} must be mean or sum.")
        self.reduction = reduction

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Losses in nats of what is asked at each step, [B, T, n]."""
        raise NotImplementedError

    def loss(self, output: Tensor, batch: Batch, reduction: str = "mean") -> Tensor:
        """Loss of an output [B, T, ...]. With ``reduction="none"`` the mean of each step's terms, [B, T], 0 where none is asked.

        A sum is in training that of the joint batch of all processes, as seen by gradients that are averaged over them.
        """
        terms = self.terms(output.float(), batch["target"])
        asked = batch["asked"]
        if reduction == "none":
            return terms.mean(2) * asked
        if self.reduction == "mean":
            return self.mean(terms.mean(2) * asked, asked.sum())
        several = self.training and torch.distributed.is_available() and torch.distributed.is_initialized()
        return (terms.sum(2) * asked).sum() * (torch.distributed.get_world_size() if several else 1)


class MapScores(Metric):
    """``precision``, ``recall`` and ``f1`` of cells that are on, over all maps together; 0 where nothing is on."""

    full_state_update = False
    right: Tensor
    said: Tensor
    there: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("right", "said", "there"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Add maps, bool of one shape."""
        self.right += (predicted & target).sum()
        self.said += predicted.sum()
        self.there += target.sum()

    def compute(self) -> dict[str, Tensor]:
        """The three numbers."""
        right, said, there = (count.double() for count in (self.right, self.said, self.there))
        return {
            "precision": right / said.clamp_min(1),
            "recall": right / there.clamp_min(1),
            "f1": 2 * right / (said + there).clamp_min(1),
        }


class Mapping(SequenceTask):
    """Where was a pattern seen? Binary cross-entropy of every cell of a map; outputs are logits [B, T, 1, grid, grid].

    Args:
        reduction: see :class:`SequenceTask`.
    """

    monitor = "val/f1"
    mode = "max"

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Of the cells."""
        return F.binary_cross_entropy_with_logits(output, target, reduction="none").flatten(2)

    def metrics(self) -> MetricCollection:
        """``precision``, ``recall``, ``f1`` of the cells where the pattern is more likely than not, and ``loss``, the mean over cells."""
        return MetricCollection({"scores": MapScores(), "loss": MeanLoss()}, compute_groups=False)

    def update(self, metrics: MetricCollection, output: Tensor, batch: Batch) -> None:
        """Add the maps of a batch."""
        asked = batch["asked"]
        metrics["scores"].update(output[asked] > 0, batch["target"][asked] > 0.5)
        metrics["loss"].update(self.loss(output, batch, reduction="none")[asked])


class Recall(SequenceTask):
    """One of ``num_classes`` answers at each asked step: cross-entropy and accuracy; outputs are logits [B, T, num_classes].

    Args:
        num_classes: number of answers.
        reduction: see :class:`SequenceTask`.
    """

    monitor = "val/accuracy"
    mode = "max"

    def __init__(self, num_classes: int, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.num_classes = num_classes

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """One a step."""
        return F.cross_entropy(output.flatten(0, 1), target.flatten(), reduction="none").view(*target.shape, 1)

    def metrics(self) -> MetricCollection:
        """``accuracy``, ``loss``."""
        accuracy = MulticlassAccuracy(self.num_classes, average="micro", validate_args=False)
        return MetricCollection({"accuracy": accuracy, "loss": MeanLoss()}, compute_groups=False)

    def update(self, metrics: MetricCollection, output: Tensor, batch: Batch) -> None:
        """Add the answers of a batch."""
        asked = batch["asked"]
        metrics["loss"].update(self.loss(output, batch, reduction="none")[asked])
        if bool(asked.any()):
            metrics["accuracy"].update(output[asked], batch["target"][asked])


class Sorting(SequenceTask):
    """The bits of a vector at each asked step: binary cross-entropy and share of wrong bits; outputs are logits [B, T, bits].

    Args:
        reduction: see :class:`SequenceTask`.
    """

    monitor = "val/bit_error"

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Of the bits."""
        return F.binary_cross_entropy_with_logits(output, target, reduction="none").flatten(2)

    def metrics(self) -> MetricCollection:
        """``bit_error``, ``loss``."""
        return MetricCollection({"bit_error": MeanLoss(), "loss": MeanLoss()}, compute_groups=False)

    def update(self, metrics: MetricCollection, output: Tensor, batch: Batch) -> None:
        """Add the bits of a batch."""
        asked = batch["asked"]
        metrics["loss"].update(self.loss(output, batch, reduction="none")[asked])
        metrics["bit_error"].update(((output > 0) != (batch["target"] > 0.5))[asked].double())


class TaskErrors(Metric):
    """Share of wrongly answered questions of each task: ``error_qa1``, ...; their mean ``error``; ``failed_tasks``, how many are above 5 %.

    A question is wrong if one word of its answer is. Answers may go on in the next batch.

    Args:
        tasks: number of tasks.
    """

    full_state_update = False
    wrong: Tensor
    count: Tensor

    def __init__(self, tasks: int) -> None:
        super().__init__()
        for name in ("wrong", "count"):
            self.add_state(name, torch.zeros(tasks, dtype=torch.int64), dist_reduce_fx="sum")
        # of each row, whether a word of the answer that is not at its end yet was wrong
        self._open: Tensor | None = None

    def update(self, wrong: Tensor, last: Tensor, fresh: Tensor, task: Tensor) -> None:
        """Add the words of a batch.

        Args:
            wrong: bool [B, T], a word of an answer, and not the right one.
            last: bool [B, T], the last word of an answer.
            fresh: bool [B], a story begins.
            task: int64 [B], from 1.
        """
        before = torch.zeros_like(fresh) if self._open is None or len(self._open) != len(fresh) else self._open & ~fresh
        # the number of the answer in its row that a step belongs to, and wrong words of each answer
        answer = last.cumsum(1) - last.long()
        errors = torch.zeros(len(last), last.shape[1] + 1, dtype=torch.int64, device=last.device)
        errors = errors.scatter_add(1, answer, wrong.long())
        errors[:, 0] += before
        self._open = errors.gather(1, last.sum(1, keepdim=True))[:, 0] > 0
        failed = errors.gather(1, answer) > 0
        place = (task - 1)[:, None].expand_as(last)[last]
        size = len(self.count)
        self.count += place.bincount(minlength=size)
        self.wrong += place[failed[last]].bincount(minlength=size)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._open = None

    def compute(self) -> dict[str, Tensor]:
        """The numbers of the tasks that were asked."""
        asked = self.count > 0
        errors = self.wrong.double() / self.count.clamp_min(1)
        each = {f"error_qa{task + 1}": errors[task] for task in asked.nonzero()[:, 0].tolist()}
        return {"error": errors.sum() / asked.sum(), "failed_tasks": ((errors > FAILED) & asked).sum().double(), **each}


class QuestionAnswering(SequenceTask):
    """A word at each asked step, answers of one or more words: cross-entropy, and the errors of tasks; outputs are logits
    [B, T, vocab_size].

    Args:
        vocab_size: number of different words.
        tasks: number of tasks, batches hold `task` int64 [B] from 1, and `last` bool [B, T], the last words of answers.
        reduction: see :class:`SequenceTask`.
    """

    monitor = "val/error"

    def __init__(self, vocab_size: int, tasks: int = 20, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.vocab_size, self.tasks = vocab_size, tasks

    def terms(self, output: Tensor, target: Tensor) -> Tensor:
        """One a step."""
        return F.cross_entropy(output.flatten(0, 1), target.flatten(), reduction="none").view(*target.shape, 1)

    def metrics(self) -> MetricCollection:
        """``error``, ``failed_tasks``, ``error_qa1``, ..., and ``loss``."""
        return MetricCollection({"errors": TaskErrors(self.tasks), "loss": MeanLoss()}, compute_groups=False)

    def update(self, metrics: MetricCollection, output: Tensor, batch: Batch) -> None:
        """Add the words of a batch."""
        asked = batch["asked"]
        metrics["loss"].update(self.loss(output, batch, reduction="none")[asked])
        wrong = (output.argmax(-1) != batch["target"]) & asked
        metrics["errors"].update(wrong, batch["last"] & asked, batch["fresh"], batch["task"])
