"""Errors of maps of numbers, such as depth."""

import torch
from torch import Tensor
from torchmetrics import Metric

from papermix.errors import UserError


class DenseError(Metric):
    """Mean absolute and root mean squared error over all pixels of a split together, in the unit of the truth.

    Pixels whose truth is not finite (NaN: none was measured) count nowhere. States sum over processes.
    """

    full_state_update = False
    absolute: Tensor
    squared: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("absolute", "squared", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Add two float tensors of the same shape (any). Raises UserError when the shapes differ."""
        if prediction.shape != truth.shape:
            raise UserError(f"a prediction of shape {tuple(prediction.shape)} does not fit the truth's {tuple(truth.shape)}.")
        known = truth.isfinite()
        error = torch.where(known, prediction.detach().double() - truth, 0.0)
        self.absolute += error.abs().sum()
        self.squared += error.square().sum()
        self.count += known.sum()

    def compute(self) -> dict[str, Tensor]:
        """``mae`` and ``rmse``; NaN without any known pixel."""
        return {"mae": self.absolute / self.count, "rmse": (self.squared / self.count).sqrt()}
