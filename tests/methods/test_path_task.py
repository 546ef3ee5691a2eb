"""F1 of the cells that are sought, over a whole split."""

import torch

from lightning_modules.path_task import PathFinding
from papermix.segmentation.segments import VOID


def test_f1_counts_all_cells_together_without_void() -> None:
    task = PathFinding(2)
    metrics = task.metrics()
    truth = torch.tensor([[[1, 1, 0, 0]], [[0, 1, VOID, 0]]])
    said = torch.tensor([[[1, 0, 0, 1]], [[0, 1, 1, 0]]])
    size = torch.tensor([[1, 4]])
    for n in range(2):
        logits = torch.nn.functional.one_hot(said[n : n + 1], 2).permute(0, 3, 1, 2).float() * 10
        batch = {"image": torch.zeros(1, 3, 1, 4), "semantic": truth[n : n + 1], "size": size, "truth_size": size}
        task.update(metrics, {"semantic": logits}, batch)
    values = metrics.compute()
    # right 2, missed 1, false 1; the mean of the images would be 0.75
    assert values["f1"].item() == torch.tensor(2 * 2 / (2 * 2 + 1 + 1)).item()
    assert set(values) == {"f1", "loss"} and task.monitor == "val/f1" and task.heads == {"semantic": 2}
