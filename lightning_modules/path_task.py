"""Two classes of cells, of which one is sought: floods and paths on grids."""

from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryF1Score

from lightning_modules.dense_tasks import Batch, Output, SemanticSegmentation
from lightning_modules.tasks import MeanLoss
from papermix.segmentation.segments import VOID


class PathFinding(SemanticSegmentation):
    """Is a cell flooded, or on a path? Cross-entropy of two classes, and F1 of class 1 over all cells of a split together.

    Args:
        num_classes: 2.
        label_smoothing: see :class:`lightning_modules.dense_tasks.SemanticSegmentation`.
    """

    monitor = "val/f1"

    def metrics(self) -> MetricCollection:
        """``f1``, ``loss``."""
        f1 = BinaryF1Score(ignore_index=VOID, validate_args=False)
        return MetricCollection({"f1": f1, "loss": MeanLoss()}, compute_groups=False)

    def update(self, metrics: MetricCollection, output: Output, batch: Batch) -> None:
        """Add a batch."""
        metrics["loss"].update(self.loss(output, batch, reduction="none")[batch["semantic"] != VOID])
        metrics["f1"].update(self.resized(output["semantic"], batch).argmax(1), batch["semantic"])
