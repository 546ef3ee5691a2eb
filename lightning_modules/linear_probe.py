"""Linear probe: how linearly separable are a frozen network's features?"""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.method import Method
from papermix.errors import UserError


def classifier_of(model: Any, who: str) -> nn.Module:
    """The model's classifier. Raises UserError, in the name of ``who``, when it has none."""
    if not hasattr(model, "get_classifier") or not isinstance(model.get_classifier(), nn.Module):
        raise UserError(f"method={who} needs a model with a classifier (timm's get_classifier), which {type(model).__name__} lacks.")
    return model.get_classifier()


def fresh_classifier(model: Any, who: str) -> tuple[str, ...]:
    """Give the model a new classifier; returns the name under which it stands, for :attr:`Method.fresh`."""
    classifier_of(model, who)
    model.reset_classifier(model.num_classes)
    new = classifier_of(model, who)
    return tuple(name for name, module in model.named_modules() if module is new)


class LinearProbe(Method):
    """Train a fresh linear classifier on the features of a frozen network, which stays in evaluation mode.

    Give the network with ``init_from=<stage, run folder or .ckpt>``; without it, random features are probed.

    Args:
        normalize: standardise the features by batch statistics (a BatchNorm without affine parameters) before the classifier,
            as MAE's and BYOL's linear evaluations do.
    """

    def __init__(self, *args: Any, normalize: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model.requires_grad_(False)
        self.fresh = fresh_classifier(self.model, "linear_probe")
        self.norm: nn.Module = nn.BatchNorm1d(self.model.num_features, affine=False) if normalize else nn.Identity()

    def train(self, mode: bool = True) -> "LinearProbe":
        """Keep the network in evaluation mode: its batch statistics and dropout are frozen, too."""
        super().train(mode)
        self.model.eval()
        return self

    def predict(self, batch: dict[str, Tensor], split: str) -> Tensor:
        """Logits [B, num_classes]."""
        with torch.no_grad():
            features = self.model.forward_head(self.model.forward_features(batch[self.task.input]), pre_logits=True)
        return self.model.get_classifier()(self.norm(features.flatten(1)))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch."""
        loss = self.task.loss(self.predict(batch, "train"), batch)
        self.record(loss=loss)
        return loss
