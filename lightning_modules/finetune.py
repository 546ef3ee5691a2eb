"""Fine-tuning: train a whole pretrained network on, with learning rates that fall from the head to the stem."""

from typing import Any

import torch

from lightning_modules.linear_probe import classifier_of, fresh_classifier
from lightning_modules.supervised import Supervised
from papermix.errors import UserError


class Finetune(Supervised):
    """Supervised training from pretrained weights (``init_from=...`` or ``model.pretrained=true``).

    Args:
        layer_decay: each layer's learning rate is this factor times that of the layer above it, the head at the full rate
            (ELECTRA, BEiT); 1 trains all at one rate.
        reset_classifier: start from a fresh classifier.
        frozen_epochs: train only the classifier for so many epochs first.
    """

    def __init__(self, *args: Any, layer_decay: float = 0.75, reset_classifier: bool = True, frozen_epochs: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not 0 < layer_decay <= 1:
            raise UserError(f"method.layer_decay={layer_decay} must lie in (0, 1].")
        classifier_of(self.model, "finetune")
        if reset_classifier:
            self.fresh = fresh_classifier(self.model, "finetune")
        self.layer_decay = layer_decay
        self.frozen_epochs = frozen_epochs

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
