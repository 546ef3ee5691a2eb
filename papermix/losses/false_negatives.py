"""Which negatives of a contrastive loss are of the anchor's own class? (Huynh et al. 2022, arXiv 2011.11765, section 3.2)"""

from typing import Literal

import torch
from torch import Tensor

Aggregate = Literal["max", "mean"]
AGGREGATES = ("max", "mean")


@torch.no_grad()
def support_scores(support: Tensor, keys: Tensor, aggregate: Aggregate = "max") -> Tensor:
    """How alike keys are to an image, seen through several of its views: the maximum or the mean of their cosines.

    Args:
        support: unit vectors [V, b, d].
        keys: unit vectors [K, d].

    Returns:
        [b, K], in -1 to 1, without gradient.
    """
    scores = support[0] @ keys.T
    for view in support[1:]:
        cosine = view @ keys.T
        scores = torch.maximum(scores, cosine) if aggregate == "max" else scores + cosine
    return scores if aggregate == "max" else scores / len(support)


@torch.no_grad()
def find(scores: Tensor, candidates: Tensor, topk: int | None = None, threshold: float = -1.0) -> Tensor:
    """The candidates among the ``topk`` best of their row whose score is above ``threshold``, bool [b, K].

    Args:
        scores: [b, K], as :func:`support_scores` gives them.
        candidates: bool [b, K], keys of other images.
        topk: None: all.
        threshold: of the raw score; -1: none.
    """
    scores = scores.masked_fill(~candidates, -torch.inf)
    # rounding may bring the cosine of opposite vectors below -1
    found = candidates & (scores > threshold) if threshold > -1 else candidates
    if topk is None or topk >= scores.shape[1]:
        return found
    best = torch.zeros_like(found).scatter_(1, scores.topk(topk, dim=1).indices, True)
    return found & best


@torch.no_grad()
def quality(found: Tensor, same: Tensor, candidates: Tensor) -> dict[str, Tensor]:
    """How often what was found is true: means over the images of a batch of the numbers of keys.

    Args:
        found: bool [b, K]. same: bool [b, K], whether a key is of the image's class. candidates: bool [b, K].

    Returns:
        ``found``, ``true`` (found and of the same class), ``all`` (candidates of the same class), ``candidates``: true / found is
        the precision, true / all the recall, all / candidates the precision of guessing.
    """
    same = same & candidates
    parts = {"found": found, "true": found & same, "all": same, "candidates": candidates}
    return {name: part.sum(1, dtype=torch.float32).mean() for name, part in parts.items()}
