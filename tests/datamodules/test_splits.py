"""Splits, long tails, subsets and label noise."""

import pytest
import torch

from datamodules import splits
from papermix.errors import UserError

LABELS = torch.repeat_interleave(torch.arange(4), torch.tensor([100, 60, 30, 11]))[
    torch.randperm(201, generator=torch.Generator().manual_seed(0))
]


def test_stratified_takes_exactly_the_count_in_proportion():
    for count in (0, 1, 7, 40, 100, 200, 201):
        chosen = splits.stratified(LABELS, count, 0)
        assert int(chosen.sum()) == count
        expected = LABELS.bincount() * count / len(LABELS)
        assert (LABELS[chosen].bincount(minlength=4) - expected).abs().max() < 1


def test_choices_are_functions_of_the_key_and_random_within_a_class():
    a, b, c = (splits.stratified(LABELS, 100, seed, "val") for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    often = sum(splits.stratified(LABELS, 100, seed).long() for seed in range(200)) / 200
    assert (often - 100 / 201).abs().max() < 0.17


@pytest.mark.parametrize("fraction, count", [(0, 0), (0.1, 20), (0.15, 30), (1, 1), (50, 50), (200, 200)])
def test_validation_count(fraction, count):
    assert splits.validation_count(200 + (fraction == 200), fraction) == count


@pytest.mark.parametrize(
    "fraction, words",
    [
        (-0.1, "dataset.val_fraction=-0.1 must be 0, a fraction below 1 or a whole number"),
        (1.5, "dataset.val_fraction=1.5 must be"),
        (200, "takes 200 of 200 examples and leaves none for training"),
        (0.999, "takes 200 of 200 examples"),
        (0.001, "dataset.val_fraction=0.001 of 200 examples is less than one"),
    ],
)
def test_impossible_validation_splits_are_refused(fraction, words):
    with pytest.raises(UserError) as error:
        splits.validation_count(200, fraction)
    assert words in str(error.value)


def test_long_tail_is_exponential():
    labels = torch.arange(5).repeat(1000)
    kept = labels[splits.long_tail(labels, 5, 100, 0)].bincount()
    assert kept.tolist() == [1000, 316, 100, 32, 10]
    assert LABELS[splits.long_tail(LABELS, 4, 1e6, 0)].bincount().tolist() == [100, 1, 1, 1], "at least one of each"
    assert splits.long_tail(torch.zeros(9, dtype=torch.int64), 1, 10, 0).all()


def test_label_subset_keeps_a_part_of_every_class():
    assert LABELS[splits.label_subset(LABELS, 0.1, 0)].bincount().tolist() == [10, 6, 3, 1]
    assert LABELS[splits.label_subset(LABELS, 0.001, 0)].bincount().tolist() == [1, 1, 1, 1]
    assert splits.label_subset(LABELS, 1.0, 0).all()


@pytest.mark.parametrize("kind", ["uniform", "flip"])
def test_noise_changes_exactly_the_rate_and_always_to_another_class(kind):
    labels = torch.arange(10).repeat(900)
    before = labels.clone()
    noisy = splits.noisy(labels, kind, 0.3, 10, 5)
    assert torch.equal(labels, before)
    wrong = noisy != labels
    assert int(wrong.sum()) == 2700 and noisy.min() == 0 and noisy.max() == 9
    assert (wrong.view(-1, 10).double().mean(0) - 0.3).abs().max() < 0.06, "in every class alike"
    steps = ((noisy - labels) % 10)[wrong].bincount(minlength=10)
    if kind == "flip":
        assert steps[1] == 2700
    else:
        assert steps[0] == 0 and (steps[1:] - 300).abs().max() < 70
    assert torch.equal(splits.noisy(labels, kind, 0.3, 10, 5), noisy)
    assert not torch.equal(splits.noisy(labels, kind, 0.3, 10, 6), noisy)
    assert torch.equal(splits.noisy(labels, kind, 0.0, 10, 5), labels)


@pytest.mark.parametrize(
    "check, words",
    [
        (lambda: splits.check_noise("unifrom", 0.1), "kind=unifrom is not known (did you mean 'uniform'?)"),
        (lambda: splits.check_noise("flip", 1.2), "dataset.label_noise.rate=1.2 must be from 0 to 1"),
        (lambda: splits.check_noise(None, 0.2), "dataset.label_noise.rate=0.2 does nothing without a kind"),
        (lambda: splits.noisy(LABELS, "flip", 0.2, 1, 0), "needs at least two classes"),
        (lambda: splits.check_composition(0.5, 1), "dataset.imbalance=0.5 must be at least 1"),
        (lambda: splits.check_composition(1, 0), "dataset.labels_fraction=0 must be above 0 and at most 1"),
    ],
)
def test_settings_out_of_range_are_refused(check, words):
    with pytest.raises(UserError) as error:
        check()
    assert words in str(error.value)
