"""The perceptron between an encoder's features and the space of a self-supervised loss."""

from itertools import pairwise

from torch import Tensor, nn

from papermix.models.image_model import check_positive


class Projector(nn.Module):
    """Linear layers with ReLU between them (SimCLR, section 2.1; three of them in SimCLRv2).

    Args:
        in_features: length of the features.
        hidden: units of the layers before the last; None: as many as features.
        dim: length of what comes out.
        layers: how many.
        norm: batch norm behind every layer, the last one too; the layers then have no bias.

    Attributes:
        dim: length of what comes out.
        layers: the layers in order; ``layers[0]`` is what SimCLRv2 keeps for fine-tuning.
    """

    def __init__(self, in_features: int, hidden: int | None = None, dim: int = 128, layers: int = 2, norm: bool = True) -> None:
        super().__init__()
        hidden = in_features if hidden is None else hidden
        check_positive(hidden=hidden, dim=dim, layers=layers)
        self.dim = dim
        sizes = [in_features, *[hidden] * (layers - 1), dim]
        self.layers = nn.Sequential(*(projection(a, b, norm, last=k == layers - 1) for k, (a, b) in enumerate(pairwise(sizes))))

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, in_features] -> [B, dim]."""
        return self.layers(x)


def projection(in_features: int, out_features: int, norm: bool = True, last: bool = False) -> nn.Sequential:
    """One layer of a :class:`Projector`."""
    parts: list[nn.Module] = [nn.Linear(in_features, out_features, bias=not norm)]
    if norm:
        parts.append(nn.BatchNorm1d(out_features))
    return nn.Sequential(*parts) if last else nn.Sequential(*parts, nn.ReLU(inplace=True))
