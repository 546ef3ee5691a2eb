"""Contrastive losses over any number of views, with false negatives left out or attracted.

Sources: NT-Xent (Chen et al. 2020, SimCLR, eq. 1), InfoNCE over a queue (He et al. 2020, MoCo, eq. 1), false negative
cancellation (Huynh et al. 2022, arXiv 2011.11765, section 3).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Cancel = Literal["none", "eliminate", "attract"]
CANCEL = ("none", "eliminate", "attract")

# numbers of an image that a key may have instead of a place in the batch
EARLIER = -1
NOTHING = -2


@dataclass(frozen=True)
class Keys:
    """What anchors are compared with.

    Attributes:
        embedding: unit vectors [K, d].
        image: int64 [K], the image's place in the batch; ``EARLIER``: of an earlier batch, ``NOTHING``: no key (a queue that is
            not full yet).
        view: int64 [K], number of the view of that image.
    """

    embedding: Tensor
    image: Tensor
    view: Tensor

    def candidates(self, images: Tensor) -> Tensor:
        """Which keys are of other images than ``images``, int64 [b]: bool [b, K]."""
        return (self.image != images[:, None]) & (self.image != NOTHING)


def view_keys(embedding: Tensor, first_view: int = 0) -> Keys:
    """The keys of views [V, B, d] of a batch: view v of image i is key ``v * B + i``; views are numbered from ``first_view``."""
    views, count = embedding.shape[:2]
    view, image = torch.meshgrid(
        torch.arange(first_view, first_view + views, device=embedding.device),
        torch.arange(count, device=embedding.device),
        indexing="ij",
    )
    return Keys(embedding.flatten(0, 1), image.flatten(), view.flatten())


def contrastive(
    anchors: Tensor,
    images: Tensor,
    keys: Keys,
    temperature: float,
    false_negatives: Tensor | None = None,
    cancel: Cancel = "none",
) -> Tensor:
    """Loss of each anchor a = view v of image i; P are the other views of i, F its false negatives, Z = log sum exp over keys.

    With logits l_k = a.k / temperature:

    - ``none``: Z - mean of l over P, Z over all keys but a itself;
    - ``eliminate``: the same, Z without F;
    - ``attract``: Z - (sum of l over P and F) / (|P| + |F|), Z over all keys but a itself, F included.

    Args:
        anchors: unit vectors [V, b, d]; ``anchors[v]`` is view v of its image.
        images: int64 [b], the images' places in the batch that ``keys`` speak of.
        keys: what they are compared with; each image has a key of another view.
        temperature: tau, above 0.
        false_negatives: bool [b, K], one row for all views of an image, with none of its own keys; None: there are none.
        cancel: what is done with them.

    Returns:
        [V, b], in nats.
    """
    own = keys.image == images[:, None]
    absent = keys.image == NOTHING
    losses = []
    for view, anchor in enumerate(anchors):
        itself = own & (keys.view == view)
        positives, ignored = own & ~itself, itself | absent
        if false_negatives is not None and cancel == "eliminate":
            ignored = ignored | false_negatives
        elif false_negatives is not None and cancel == "attract":
            positives = positives | false_negatives
        logits = anchor @ keys.embedding.T / temperature
        normaliser = logits.masked_fill(ignored, -torch.inf).logsumexp(1)
        losses.append(normaliser - logits.masked_fill(~positives, 0).sum(1) / positives.sum(1))
    return torch.stack(losses)


def total(losses: Tensor) -> Tensor:
    """Losses [V, b] as one number: (2 / V) times the sum over views of the batch's mean, SimCLR's scale for any V > 1.

    Of a single view it is the mean, MoCo's scale.
    """
    return min(len(losses), 2) * losses.mean()


def nt_xent(embedding: Tensor, temperature: float, false_negatives: Tensor | None = None, cancel: Cancel = "none") -> Tensor:
    """NT-Xent among the views [V, B, d] (unit vectors) of a batch: every view is anchor and key.

    Args:
        false_negatives: bool [B, V * B], see :func:`contrastive`; key ``v * B + i`` is view v of image i.
    """
    images = torch.arange(embedding.shape[1], device=embedding.device)
    return total(contrastive(embedding, images, view_keys(embedding), temperature, false_negatives, cancel))
