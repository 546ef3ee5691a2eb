"""Sequence tasks: losses over what is asked, and metrics against plain counting."""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.sequence_tasks import Mapping, QuestionAnswering, Recall, Sorting
from papermix.errors import UserError


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cases():
    asked = random(0, 3, 5) > -0.3
    maps = {"target": (random(1, 3, 5, 1, 4, 4) > 0.8).float(), "asked": asked}
    bits = {"target": (random(2, 3, 5, 6) > 0).float(), "asked": asked}
    words = {"target": random(3, 3, 5).mul(10).long().abs() % 7, "asked": asked}
    yield Mapping, (), random(4, 3, 5, 1, 4, 4), maps
    yield Sorting, (), random(5, 3, 5, 6), bits
    yield Recall, (7,), random(6, 3, 5, 7), words
    yield QuestionAnswering, (7,), random(7, 3, 5, 7), words


@pytest.mark.parametrize(("kind", "arguments", "output", "batch"), cases())
def test_losses(kind, arguments, output, batch) -> None:
    asked, target = batch["asked"], batch["target"]
    if target.is_floating_point():
        each = F.binary_cross_entropy_with_logits(output, target, reduction="none").flatten(2)[asked]
    else:
        each = F.cross_entropy(output[asked], target[asked], reduction="none")[:, None]
    mean, total = kind(*arguments), kind(*arguments, reduction="sum")
    assert torch.allclose(mean.loss(output, batch), each.mean()) and torch.allclose(total.loss(output, batch), each.sum())
    for task in (mean, total):
        steps = task.loss(output, batch, reduction="none")
        assert torch.allclose(steps[asked], each.mean(1)) and not steps[~asked].any()
        # what is not asked has no part in it
        other = output.clone()
        other[~asked] += 1
        assert torch.equal(task.loss(other, batch), task.loss(output, batch))
    nothing = {**batch, "asked": torch.zeros_like(asked)}
    assert mean.loss(output, nothing) == 0 == total.loss(output, nothing)
    with pytest.raises(UserError, match="must be mean or sum"):
        kind(*arguments, reduction="max")


def test_map_scores() -> None:
    task = Mapping()
    metrics = task.metrics()
    _, _, output, batch = next(cases())
    for part in (slice(0, 2), slice(2, 3)):
        task.update(metrics, output[part], {name: values[part] for name, values in batch.items()})
    said, there = output[batch["asked"]] > 0, batch["target"][batch["asked"]] > 0
    right = (said & there).sum()
    found = metrics.compute()
    precision, recall = right / said.sum(), right / there.sum()
    assert float(found["precision"]) == pytest.approx(float(precision)) and float(found["recall"]) == pytest.approx(float(recall))
    assert float(found["f1"]) == pytest.approx(float(2 * precision * recall / (precision + recall)))
    assert float(found["loss"]) == pytest.approx(float(task.loss(output, batch)))
    assert set(found) == {"precision", "recall", "f1", "loss"} and task.monitor == "val/f1" and task.mode == "max"


def test_recall_and_sorting_scores() -> None:
    _, (_, _, bits, sort), (_, _, words, recall), _ = cases()
    for task, output, batch, name in ((Sorting(), bits, sort, "bit_error"), (Recall(7), words, recall, "accuracy")):
        metrics = task.metrics()
        task.update(metrics, output, batch)
        task.update(metrics, output, {**batch, "asked": torch.zeros_like(batch["asked"])})
        asked = batch["asked"]
        if name == "accuracy":
            value = (output.argmax(-1) == batch["target"])[asked].double().mean()
        else:
            value = ((output > 0) != (batch["target"] > 0))[asked].double().mean()
        assert float(metrics.compute()[name]) == pytest.approx(float(value))


def test_a_question_is_wrong_if_a_word_of_its_answer_is_also_across_segments() -> None:
    # two rows of twelve words: (row, first step, words of the answer, step of a wrong word)
    task = QuestionAnswering(5, tasks=3)
    target = torch.ones(2, 12, dtype=torch.int64)
    asked, last, said = torch.zeros(2, 12, dtype=torch.bool), torch.zeros(2, 12, dtype=torch.bool), target.clone()
    for row, first, words, wrong in [
        (0, 1, 1, None),
        (0, 3, 3, 3),
        (0, 8, 2, None),
        (1, 0, 2, 1),
        (1, 5, 3, None),
        (1, 10, 2, 11),
    ]:
        asked[row, first : first + words] = True
        last[row, first + words - 1] = True
        if wrong is not None:
            said[row, wrong] = 2
    batch = {"target": target, "asked": asked, "last": last, "task": torch.tensor([1, 3])}
    for cut in range(1, 13):
        metrics = task.metrics()
        for start in range(0, 12, cut):
            part = {name: values[:, start : start + cut] if values.ndim == 2 else values for name, values in batch.items()}
            part["fresh"] = torch.full((2,), start == 0)
            task.update(metrics, F.one_hot(said[:, start : start + cut], 5).float(), part)
        found = metrics.compute()
        assert float(found["error_qa1"]) == pytest.approx(1 / 3) and float(found["error_qa3"]) == pytest.approx(2 / 3), cut
        assert float(found["error"]) == pytest.approx(1 / 2) and found["failed_tasks"] == 2 and "error_qa2" not in found
    # a story that begins forgets the answer that was not finished
    metrics = task.metrics()
    for start, fresh in ((0, True), (4, True)):
        part = {name: values[:, start : start + 4] if values.ndim == 2 else values for name, values in batch.items()}
        task.update(metrics, F.one_hot(said[:, start : start + 4], 5).float(), part | {"fresh": torch.full((2,), fresh)})
    assert float(metrics.compute()["error_qa1"]) == 0
