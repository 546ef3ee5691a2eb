"""Contrastive losses against their definitions, written as loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from papermix.losses.contrastive import EARLIER, NOTHING, Keys, contrastive, nt_xent, total, view_keys


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def simclr(z: torch.Tensor, tau: float) -> float:
    """SimCLR's loss as in the paper: both directions of every pair, each averaged over the batch, summed."""
    a, b = z
    count = len(a)
    both = torch.cat([a, b])
    value = 0.0
    for i in range(2 * count):
        j = (i + count) % (2 * count)
        logits = [float(both[i] @ both[k]) / tau for k in range(2 * count) if k != i]
        value += math.log(sum(map(math.exp, logits))) - float(both[i] @ both[j]) / tau
    return value / count


def supervised(z: torch.Tensor, tau: float, positive) -> float:
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2) of all views, the positives given as a function of two keys."""
    views, count, _ = z.shape
    keys = [(v, i) for v in range(views) for i in range(count)]
    value = 0.0
    for v, i in keys:
        others = [k for k in keys if k != (v, i)]
        normaliser = math.log(sum(math.exp(float(z[v, i] @ z[k]) / tau) for k in others))
        chosen = [k for k in others if positive((v, i), k)]
        value -= sum(float(z[v, i] @ z[k]) / tau - normaliser for k in chosen) / len(chosen)
    return 2 * value / len(keys)


def test_two_views_without_false_negatives_are_nt_xent() -> None:
    z = vectors(2, 7, 5)
    nothing = torch.zeros(7, 14, dtype=torch.bool)
    for cancel in ("none", "eliminate", "attract"):
        assert float(nt_xent(z, 0.3, nothing, cancel)) == pytest.approx(simclr(z, 0.3), abs=1e-9)
    assert float(nt_xent(z.float(), 0.3)) == pytest.approx(simclr(z, 0.3), abs=1e-5)


def test_attraction_is_the_supervised_loss_with_more_positives() -> None:
    z = vectors(3, 6, 4, seed=1)
    chosen = torch.rand(6, 18, generator=torch.Generator().manual_seed(2)) < 0.3
    chosen &= torch.arange(18) % 6 != torch.arange(6)[:, None]
    expected = supervised(z, 0.5, lambda a, k: k[1] == a[1] or bool(chosen[a[1], k[0] * 6 + k[1]]))
    assert float(nt_xent(z, 0.5, chosen, "attract")) == pytest.approx(expected, abs=1e-9)


def test_elimination_takes_them_out_of_the_denominator_and_never_raises_the_loss() -> None:
    z = vectors(3, 6, 4, seed=3)
    chosen = (torch.rand(6, 18, generator=torch.Generator().manual_seed(4)) < 0.4) & (
        torch.arange(18) % 6 != torch.arange(6)[:, None]
    )
    keys, images = view_keys(z), torch.arange(6)
    plain = contrastive(z, images, keys, 0.2)
    less = contrastive(z, images, keys, 0.2, chosen, "eliminate")
    assert (less <= plain + 1e-12).all() and (less < plain - 1e-6).any()
    v, i = 1, 2
    kept = [k for k in range(18) if k != v * 6 + i and not chosen[i, k]]
    logits = z[v, i] @ keys.embedding.T / 0.2
    others = [w * 6 + i for w in range(3) if w != v]
    assert less[v, i].item() == pytest.approx((logits[kept].logsumexp(0) - logits[others].mean()).item(), abs=1e-9)


@pytest.mark.parametrize(("cancel", "value"), [("none", 0.7824), ("eliminate", 0.3133), ("attract", 0.8824)])
def test_the_tiny_example(cancel, value: float) -> None:
    anchor = torch.tensor([[[1.0, 0.0]]])
    keys = Keys(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), torch.tensor([0, 1, 2]), torch.tensor([1, 0, 0]))
    found = torch.tensor([[False, True, False]])
    loss = contrastive(anchor, torch.tensor([0]), keys, 1.0, found, cancel)
    assert loss.item() == pytest.approx(value, abs=1e-4)
    exact = {"none": math.log(math.e + math.exp(0.8) + 1) - 1, "eliminate": math.log(math.e + 1) - 1}
    assert loss.item() == pytest.approx(exact.get(cancel, math.log(math.e + math.exp(0.8) + 1) - 0.9), abs=1e-6)


def test_keys_of_earlier_batches_are_negatives_and_empty_places_are_nothing() -> None:
    z, old = vectors(2, 4, 3), vectors(2, 3, seed=9)
    here = view_keys(z)
    rest = torch.tensor([EARLIER, NOTHING])
    keys = Keys(torch.cat([here.embedding, old]), torch.cat([here.image, rest]), torch.cat([here.view, rest]))
    loss = contrastive(z, torch.arange(4), keys, 0.4)
    logits = z[0, 1] @ torch.cat([here.embedding, old[:1]]).T / 0.4
    assert loss[0, 1].item() == pytest.approx((logits[torch.arange(9) != 1].logsumexp(0) - logits[5]).item(), abs=1e-9)
    assert keys.candidates(torch.tensor([2]))[0].tolist() == [k % 4 != 2 for k in range(8)] + [True, False]


def test_the_scale_is_that_of_two_directions_whatever_the_number_of_views() -> None:
    assert total(torch.ones(2, 5)) == 2 and total(torch.ones(7, 5)) == 2 and total(torch.ones(1, 5)) == 1
