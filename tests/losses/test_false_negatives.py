"""The search for false negatives against loops, and the numbers that say how good it is."""

import pytest
import torch
import torch.nn.functional as F

from papermix.losses.contrastive import nt_xent, view_keys
from papermix.losses.false_negatives import find, quality, support_scores


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("aggregate", ["max", "mean"])
def test_scores_are_those_of_a_loop(aggregate) -> None:
    support, keys = vectors(3, 4, 5).requires_grad_(), vectors(7, 5, seed=1)
    scores = support_scores(support, keys, aggregate)
    for i in range(4):
        for k in range(7):
            each = [(support[v, i] @ keys[k]).item() for v in range(3)]
            assert scores[i, k].item() == pytest.approx(max(each) if aggregate == "max" else sum(each) / 3, abs=1e-6)
    assert not scores.requires_grad


def test_at_most_k_above_the_threshold_and_never_an_image_itself() -> None:
    z = vectors(3, 8, 4, seed=2)
    keys, images = view_keys(z), torch.arange(8)
    candidates = keys.candidates(images)
    scores = support_scores(z, keys.embedding)
    found = find(scores, candidates, topk=5, threshold=0.3)
    assert not found.requires_grad and (found.sum(1) <= 5).all() and found.any()
    assert not found[candidates.logical_not()].any()
    for i in range(8):
        ranked = sorted((k for k in range(24) if k % 8 != i), key=lambda k: -float(scores[i, k]))[:5]
        assert set(found[i].nonzero()[:, 0].tolist()) == {k for k in ranked if scores[i, k] > 0.3}


def test_each_filter_can_be_switched_off() -> None:
    z = vectors(2, 6, 3, seed=4)
    keys = view_keys(z)
    candidates, scores = keys.candidates(torch.arange(6)), support_scores(z, keys.embedding)
    assert torch.equal(find(scores, candidates, None, -1.0), candidates)
    assert torch.equal(find(scores, candidates, 12, -1.0), candidates)
    assert torch.equal(find(scores, candidates, 10, -1.0), candidates)  # more than there are candidates: no row of its own
    assert (find(scores, candidates, 3, -1.0).sum(1) == 3).all()
    for nothing in (find(scores, candidates, 0, -1.0), find(scores, candidates, None, 1.01)):
        assert not nothing.any()
        for cancel in ("eliminate", "attract"):
            assert torch.equal(nt_xent(z, 0.2, nothing, cancel), nt_xent(z, 0.2))


def test_quality_counts_what_is_true() -> None:
    candidates = torch.tensor([[False, True, True, True], [True, False, True, True]])
    same = torch.tensor([[True, True, False, True], [False, True, False, False]])
    found = torch.tensor([[False, True, True, False], [True, False, False, False]])
    numbers = {name: value.item() for name, value in quality(found, same, candidates).items()}
    assert numbers == {"found": 1.5, "true": 0.5, "all": 1.0, "candidates": 3.0}
