"""k-nearest-neighbour evaluation equals a loop over all pairs."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from callbacks.knn import KNN, features, knn_predict
from papermix.errors import UserError
from tests.callbacks.world import Points, Small, fit, trainer


def naive(queries, bank, labels, classes: int, k: int, temperature: float) -> list[int]:
    out = []
    for q in queries.tolist():
        near = sorted(
            (
                (sum(a * b for a, b in zip(q, f)) / (math.hypot(*q) * math.hypot(*f)), label)
                for f, label in zip(bank.tolist(), labels.tolist())
            ),
            reverse=True,
        )[:k]
        votes = [sum(math.exp(c / temperature) for c, label in near if label == cls) for cls in range(classes)]
        out.append(votes.index(max(votes)))
    return out


@pytest.mark.parametrize(("k", "temperature", "chunk"), [(1, 0.07, 7), (5, 0.07, 100), (30, 1.0, 3), (1000, 0.07, 8)])
def test_equals_a_loop(k: int, temperature: float, chunk: int) -> None:
    torch.manual_seed(0)
    queries, bank, labels = torch.randn(20, 6), torch.randn(50, 6), torch.randint(0, 4, (50,))
    expected = naive(queries, bank, labels, 4, k, temperature)
    assert knn_predict(queries, bank, labels, 4, k, temperature, chunk).tolist() == expected


def test_small_temperature_does_not_overflow() -> None:
    bank = torch.eye(3)
    assert knn_predict(bank, bank, torch.arange(3), 3, 3, 1e-3).tolist() == [0, 1, 2]


def test_logs_the_accuracy_of_the_validation_features(tmp_path: Path) -> None:
    """The value is that of the model in evaluation mode on plain images, and training is not disturbed."""

    class Data(SimpleNamespace):
        def eval_dataloader(self, split: str) -> Points:
            return Points(seed=0 if split == "train" else 1, shuffle=False)

    class Set(KNN):
        def setup(self, runner, module, stage) -> None:
            runner.datamodule = Data()
            super().setup(runner, module, stage)
            runner.datamodule = None

        def on_validation_epoch_end(self, runner, module) -> None:
            runner.datamodule = Data()
            super().on_validation_epoch_end(runner, module)
            runner.datamodule = None

    module = Small()
    runner = trainer(tmp_path, [Set(num_classes=2, k=5)])
    fit(module, runner)
    plain = fit(Small(), trainer(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), plain.state_dict().values()))
    module.eval()
    train, val = Points(seed=0), Points(seed=1)
    with torch.no_grad():
        guess = knn_predict(features(module.model, val.x), features(module.model, train.x), train.y, 2, 5)
    assert float(runner.callback_metrics["val/knn_accuracy"]) == pytest.approx((guess == val.y).float().mean().item())


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="k=0"):
        KNN(10, k=0)
    with pytest.raises(UserError, match="temperature=0"):
        KNN(10, temperature=0)
    with pytest.raises(UserError, match="needs a dataset of images"):
        fit(Small(), trainer(tmp_path, [KNN(2)]))
