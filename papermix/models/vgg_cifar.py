"""VGG networks (Simonyan & Zisserman 2015) with batch norm and one linear layer, as they are used on small images."""

from typing import Literal

from torch import nn

from papermix.errors import UserError
from papermix.models.image_model import ImageModel, Pool, check_positive
from papermix.models.small_cnn import conv_stages

# convolutions per stage: table 1 of the paper, columns A, B, D, E
CONVS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGGCifar(ImageModel):
    """VGG-11, 13, 16 or 19: five stages of 3x3 convolution, batch norm and ReLU, a 2x2 max pool behind each, one classifier.

    Source: Simonyan & Zisserman 2015, table 1, without its fully connected layers (25,088 -> 4,096 -> 4,096), which 32x32
    images do not need; 14.7 M parameters for VGG-16 with ten classes. Pools round sizes up, so that an image below 32 pixels
    stops shrinking at one pixel.

    Args:
        depth: 11, 13, 16 or 19.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        global_pool: ``avg``, ``max`` or ``""``.
        drop_rate: dropout probability before the classifier.

    Raises:
        UserError: for another depth, or sizes that cannot be.
    """

    def __init__(
        self,
        depth: Literal[11, 13, 16, 19] = 16,
        width: int = 64,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: Pool = "avg",
        drop_rate: float = 0.0,
    ):
        if depth not in CONVS:
            raise UserError(f"depth={depth} is not possible for a VGG: use {', '.join(map(str, CONVS))}.")
        check_positive(width=width, in_chans=in_chans)
        parts, features = conv_stages(in_chans, [factor * width for factor in (1, 2, 4, 8, 8)], CONVS[depth])
        parts["pool"] = nn.MaxPool2d(2, ceil_mode=True)
        features.append(("pool", 8 * width, 32))
        super().__init__(parts, features, num_classes, in_chans, global_pool, drop_rate)
