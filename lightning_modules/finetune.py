"""Fine-tuning: train a whole pretrained network on, with learning rates that fall from the head to the stem."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.linear_probe import classifier_of, fresh_classifier
from lightning_modules.supervised import Supervised
from papermix.errors import UserError
from papermix.models.projector import projection as projection_layer


class Finetune(Supervised):
    """Supervised training from pretrained weights (``init_from=...`` or ``model.pretrained=true``).

    Args:
        layer_decay: each layer's learning rate is this factor times that of the layer above it, the head at the full rate
            (ELECTRA, BEiT); 1 trains all at one rate.
        reset_classifier: start from a fresh classifier.
        frozen_epochs: train only the classifier for so many epochs first.
        projection: units of the first layer of a contrastive pretraining's projector, which is kept between features and
            classifier (SimCLRv2, Chen et al. 2020, section 2); None: the projector is left out.
        projection_norm: whether that layer has batch norm.
    """

    def __init__(
        self,
        *args: Any,
        layer_decay: float = 0.75,
        reset_classifier: bool = True,
        frozen_epochs: int = 0,
        projection: int | None = None,
        projection_norm: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not 0 < layer_decay <= 1:
            raise UserError(f"method.layer_decay={layer_decay} must lie in (0, 1].")
        classifier_of(self.model, "finetune")
        if reset_classifier:
            self.fresh = fresh_classifier(self.model, "finetune")
        self.kept = ""
        if projection is not None:
            if not reset_classifier:
                raise UserError("method.projection needs a fresh classifier behind that layer: set method.reset_classifier=true.")
            self._keep_projection(projection, projection_norm)
        self.layer_decay = layer_decay
        self.frozen_epochs = frozen_epochs

    def _keep_projection(self, units: int, norm: bool) -> None:
        """Put a projector's first layer between features and classifier."""
        classifier = classifier_of(self.model, "finetune")
        if not isinstance(classifier, nn.Linear):
            raise UserError(f"method.projection needs a linear classifier, which {type(self.model).__name__} lacks: leave it out.")
        (name,) = self.fresh
        layer = projection_layer(classifier.in_features, units, norm)
        self.model.set_submodule(name, nn.Sequential(layer, nn.Linear(units, classifier.out_features)).to(classifier.weight))
        self.kept, self.fresh = f"{name}.0.", (f"{name}.1",)

    def inherit(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model, and the projector's first layer where it is kept. Raises UserError when there is none that fits."""
        found = super().inherit(state)
        if self.kept:
            first, own = _under("projector.layers.0.", state), _under(self.kept, self.model.state_dict())
            if {k: v.shape for k, v in first.items()} != {k: v.shape for k, v in own.items()}:
                there = f"one of shape {tuple(first['0.weight'].shape)}" if "0.weight" in first else "none"
                units = len(own["0.weight"])
                raise UserError(
                    f"method.projection={units}: the checkpoint's projector has no such first layer (it has {there}); "
                    "set its units and method.projection_norm as method.projector had them, or method.projection=null."
                )
            found |= {f"{self.kept}{name}": value for name, value in first.items()}
        return found

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer with layer-wise learning rates."""
        return self.optimizer_factory(self.model, layer_decay=self.layer_decay if self.layer_decay < 1 else None)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """While the body is frozen its gradients are dropped, so that no optimizer state moves either."""
        if self.current_epoch < self.frozen_epochs:
            head = {id(p) for p in classifier_of(self.model, "finetune").parameters()}
            for p in self.model.parameters():
                if id(p) not in head:
                    p.grad = None


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
