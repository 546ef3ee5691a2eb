"""k-nearest-neighbour evaluation of frozen features (Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
Discrimination", section 3.4)."""

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from callbacks.base import Callback
from papermix.errors import UserError


def knn_predict(
    queries: Tensor, bank: Tensor, labels: Tensor, num_classes: int, k: int = 200, temperature: float = 0.07, chunk: int = 1024
) -> Tensor:
    """Weighted vote of the k nearest features by cosine: neighbour i votes for its class with weight exp(cos_i / temperature).

    Args:
        queries: features to classify [Q, D].
        bank: features with known labels [N, D]; ``labels``: int64 [N].
        num_classes: number of classes.
        k: neighbours, at most N of them.
        temperature: tau of Wu et al., 0.07 there.
        chunk: queries compared at once; memory is chunk * N numbers.

    Returns:
        Predicted classes, int64 [Q].
    """
    bank = F.normalize(bank.float(), dim=1).T.contiguous()
    k = min(k, bank.shape[1])
    predicted = []
    for part in F.normalize(queries.float(), dim=1).split(chunk):
        cosine, nearest = (part @ bank).topk(k, dim=1)
        # a common factor changes no vote: the largest weight is 1, nothing overflows
        weights = ((cosine - cosine[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(part), num_classes).scatter_add_(1, labels[nearest], weights)
        predicted.append(votes.argmax(1))
    return torch.cat(predicted)


def features(model: nn.Module, images: Tensor) -> Tensor:
    """The pooled features before the classifier, [B, D] (timm's ``forward_head(forward_features(x), pre_logits=True)``)."""
    return model.forward_head(model.forward_features(images), pre_logits=True).flatten(1)  # type: ignore[operator]


class KNN(Callback):
    """Logs ``val/knn_accuracy`` after validations: validation images classified by their nearest training images.

    Features come from the model in evaluation mode and images without augmentation, ``datamodule.eval_dataloader("train")`` and
    ``("val")``. With several processes each takes its share of both and the training features are gathered.

    Args:
        num_classes: classes of the data.
        k: neighbours that vote.
        temperature: tau of the vote.
        every: validations between two evaluations.
        chunk: validation images compared at once (memory).
    """

    def __init__(self, num_classes: int, k: int = 20, temperature: float = 0.07, every: int = 1, chunk: int = 1024) -> None:
        for name, value in (("k", k), ("every", every), ("chunk", chunk)):
            if value < 1:
                raise UserError(f"callbacks.knn.{name}={value} must be at least 1.")
        if temperature <= 0:
            raise UserError(f"callbacks.knn.temperature={temperature} must be above 0.")
        self.num_classes, self.k, self.temperature, self.every, self.chunk = num_classes, k, temperature, every, chunk
        self._validations = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse data and models that cannot be evaluated so."""
        if not hasattr(getattr(trainer, "datamodule", None), "eval_dataloader"):
            raise UserError("callbacks=knn needs a dataset of images with labels, such as dataset=digits.")
        if not hasattr(getattr(pl_module, "model", None), "forward_head"):
            raise UserError("callbacks=knn needs a model with features, such as model=resnet20.")

    @torch.no_grad()
    def _encode(self, pl_module: Any, loader: Iterable[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        found, labels = [], []
        for batch in loader:
            found.append(features(pl_module.model, batch["image"].to(pl_module.device)))
            labels.append(batch["label"].to(pl_module.device))
        return torch.cat(found), torch.cat(labels)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Evaluate, if it is the turn of this validation."""
        if trainer.sanity_checking:
            return
        self._validations += 1
        if (self._validations - 1) % self.every:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        bank, labels = self._encode(pl_module, data.eval_dataloader("train"))
        queries, truth = self._encode(pl_module, data.eval_dataloader("val"))
        if trainer.world_size > 1:
            bank, labels = _gathered(bank), _gathered(labels)
        predicted = knn_predict(queries, bank, labels, self.num_classes, self.k, self.temperature, self.chunk)
        counts = torch.stack([(predicted == truth).sum(), torch.tensor(len(truth), device=truth.device)]).double()
        if trainer.world_size > 1:
            torch.distributed.all_reduce(counts)
        pl_module.publish({"val/knn_accuracy": (counts[0] / counts[1]).item()})

    def state_dict(self) -> dict[str, Any]:
        """The number of validations so far."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._validations = state_dict["validations"]


def _gathered(mine: Tensor) -> Tensor:
    """Concatenate the rows of all processes, which may have different numbers of them."""
    sizes: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(sizes, len(mine))
    padded = mine.new_zeros(max(sizes), *mine.shape[1:])
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in sizes]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes)])
