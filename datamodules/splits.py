"""Which examples of labelled data are used, and what is done to their labels. Pure functions of (labels, settings, seed)."""

import torch
from torch import Tensor

from datamodules.loaders import generator
from papermix.errors import UserError, nearest


def per_class(labels: Tensor, quotas: Tensor, *key: int | str) -> Tensor:
    """Choose ``quotas[c]`` examples of each class c at random, a function of ``key``; return a bool mask [examples].

    Args:
        labels: int64 [examples], from 0 to len(quotas) - 1.
        quotas: int64 [classes], at most as many as each class has.
    """
    shuffled = torch.randperm(len(labels), generator=generator(*key))
    order = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount(minlength=len(quotas))
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[order[place < quotas[labels[order]]]] = True
    return mask


def stratified(labels: Tensor, count: int, *key: int | str) -> Tensor:
    """Choose exactly ``count`` examples, the classes in proportion (largest remainder); return a bool mask [examples]."""
    counts = labels.bincount()
    share = counts.double() * count / len(labels)
    quotas = share.long()
    rest = (share - quotas).argsort(descending=True, stable=True)[: count - int(quotas.sum())]
    quotas[rest] += 1
    return per_class(labels, quotas, *key)


def validation_count(examples: int, fraction: float) -> int:
    """Size of a validation split: ``fraction`` of the examples when below 1, that many examples from 1 on, none for 0.

    Raises:
        UserError: a negative or broken number, one that leaves no example for training, or a fraction too small for one example.
    """
    if fraction < 0 or (fraction >= 1 and fraction != int(fraction)):
        raise UserError(f"dataset.val_fraction={fraction} must be 0, a fraction below 1 or a whole number of examples")
    count = int(fraction) if fraction >= 1 else round(fraction * examples)
    if count >= examples:
        raise UserError(f"dataset.val_fraction={fraction} takes {count} of {examples} examples and leaves none for training")
    if fraction and not count:
        raise UserError(f"dataset.val_fraction={fraction} of {examples} examples is less than one: raise it, or set it to 0")
    return count


def check_composition(imbalance: float, labels_fraction: float) -> None:
    """Raise UserError when ``imbalance`` or ``labels_fraction`` is out of its range."""
    if not imbalance >= 1:
        raise UserError(f"dataset.imbalance={imbalance} must be at least 1 (1: as the data is)")
    if not 0 < labels_fraction <= 1:
        raise UserError(f"dataset.labels_fraction={labels_fraction} must be above 0 and at most 1 (1: all)")


def long_tail(labels: Tensor, num_classes: int, ratio: float, *key: int | str) -> Tensor:
    """Thin out the classes exponentially (Cui et al. 2019, section 5.1); return a bool mask [examples].

    Class c keeps n_c * ratio ** (-c / (num_classes - 1)) of its n_c examples, rounded, at least one: for balanced data the first
    class ends up ``ratio`` times as large as the last.
    """
    counts = labels.bincount(minlength=num_classes)
    share = ratio ** (-torch.arange(num_classes).double() / max(num_classes - 1, 1))
    return per_class(labels, (counts * share).round().long().clamp(min=1).minimum(counts), *key)


def label_subset(labels: Tensor, fraction: float, *key: int | str) -> Tensor:
    """Keep ``fraction`` of every class, rounded, at least one example; return a bool mask [examples]."""
    counts = labels.bincount()
    return per_class(labels, (counts * fraction).round().long().clamp(min=1).minimum(counts), *key)


NOISE_KINDS = ("uniform", "flip")


def check_noise(kind: str | None, rate: float) -> None:
    """Raise UserError for an unknown kind, a rate outside [0, 1], or a rate without a kind (which would do nothing)."""
    if kind is not None and kind not in NOISE_KINDS:
        raise UserError(f"dataset.label_noise.kind={kind} is not known{nearest(kind, NOISE_KINDS)}: use null, uniform or flip")
    if not 0 <= rate <= 1:
        raise UserError(f"dataset.label_noise.rate={rate} must be from 0 to 1")
    if kind is None and rate:
        raise UserError(
            f"dataset.label_noise.rate={rate} does nothing without a kind: set dataset.label_noise.kind=uniform or flip"
        )


def noisy(labels: Tensor, kind: str, rate: float, num_classes: int, *key: int | str) -> Tensor:
    """Give round(rate * examples) randomly chosen examples a wrong label; return new labels, int64 [examples].

    ``uniform`` takes one of the other classes, each equally likely (symmetric noise); ``flip`` takes the next class, the first
    after the last (pair flip of Han et al. 2018, Co-teaching).
    """
    if num_classes < 2:
        raise UserError("dataset.label_noise needs at least two classes")
    random = generator(*key)
    chosen = torch.randperm(len(labels), generator=random)[: round(rate * len(labels))]
    step = torch.randint(1, num_classes, chosen.shape, generator=random) if kind == "uniform" else 1
    labels = labels.clone()
    labels[chosen] = (labels[chosen] + step) % num_classes
    return labels
