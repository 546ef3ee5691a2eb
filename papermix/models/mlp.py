"""Multi-layer perceptron on the pixels of an image."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from papermix.errors import UserError
from papermix.models.image_model import ImageModel, check_positive, check_rate


class MLP(ImageModel):
    """Flattened image -> hidden layers (linear, batch norm, ReLU) -> linear classifier.

    Hidden weights are normal with variance 2 / fan_in (He et al. 2015, eq. 10), biases zero.

    Args:
        img_size: the image's height and width in pixels: one number for both, or a pair.
        hidden: width of each hidden layer.
        norm: batch norm behind every hidden linear layer, which then has no bias.
        drop_rate: dropout probability behind every hidden layer.
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.

    Raises:
        UserError: for a width below 1, no hidden layer, or a dropout probability outside [0, 1).
    """

    spatial = False

    def __init__(
        self,
        img_size: int | Sequence[int] = 32,
        hidden: Sequence[int] = (256, 256),
        norm: bool = True,
        drop_rate: float = 0.0,
        num_classes: int = 10,
        in_chans: int = 3,
    ):
        if not hidden:
            raise UserError("hidden=[] leaves no hidden layer: give at least one width, for example hidden=[256].")
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        check_positive(height=height, width=width, in_chans=in_chans, **{f"hidden[{i}]": out for i, out in enumerate(hidden)})
        check_rate(drop_rate=drop_rate)
        parts: dict[str, nn.Module] = {}
        width *= in_chans * height
        for i, out in enumerate(hidden):
            layers: list[nn.Module] = [nn.Flatten() if i == 0 else nn.Dropout(drop_rate), nn.Linear(width, out, bias=not norm)]
            layers += [nn.BatchNorm1d(out), nn.ReLU(inplace=True)] if norm else [nn.ReLU(inplace=True)]
            nn.init.kaiming_normal_(layers[1].weight, mode="fan_in", nonlinearity="relu")  # type: ignore[arg-type]
            parts[f"stage{i + 1}"] = nn.Sequential(*layers)
            width = out
        # every pixel has been mixed with every other: one value stands for the whole image
        features = [(name, out, height) for name, out in zip(parts, hidden)]
        super().__init__(parts, features, num_classes, in_chans, "", drop_rate)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """A group per hidden layer, its norm included."""
        return super().group_matcher(coarse=True)
