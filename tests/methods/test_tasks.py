"""The task of language: padding is left out, wherever it falls."""

import torch
import torch.nn.functional as F

from datamodules.text import PADDING
from lightning_modules.tasks import LanguageModelling


def test_padding_is_left_out_of_loss_and_metrics() -> None:
    task = LanguageModelling(7)
    logits = torch.randn(2, 5, 7)
    target = torch.randint(0, 7, (2, 5))
    target[0, 3:] = PADDING
    real = target >= 0
    wanted = F.cross_entropy(logits[real], target[real])
    batch = {"target": target}
    for training in (True, False):
        assert torch.allclose(task.train(training).loss(logits, batch), wanted)
    each = task.loss(logits, batch, reduction="none")
    assert each.shape == (2, 5) and not each[~real].any() and torch.allclose(each.sum() / 8, wanted)
    metrics = task.metrics()
    task.update(metrics, logits, batch)
    assert torch.allclose(metrics.compute()["loss"].float(), wanted)
