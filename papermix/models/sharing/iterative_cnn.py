"""A network for algorithms on grids: alike layers at full resolution, which can become a loop (Savarese & Maire 2019)."""

from torch import Tensor, nn

from papermix.models.dense.dense import DenseModel
from papermix.models.image_model import he_init
from papermix.models.sharing.networks import trunk
from papermix.models.sharing.share import share


class IterativeCNN(DenseModel):
    """Stem, ``layers`` 3x3 convolutions in residual blocks of two on one bank, norm, ReLU, 1x1 heads: maps at stride 1.

    Args:
        layers: an even number of convolutions between stem and head; a cell sees as many cells far, and one more.
        width: channels.
        templates: k of the bank that all ``layers`` draw from; None: ordinary convolutions.
        in_chans: channels of the image.
        dropout: probability of dropping a channel before a head's convolution.

    Raises:
        UserError: an odd number of layers, or sizes and rates that cannot be.
    """

    def __init__(self, layers: int = 12, width: int = 32, templates: int | None = 2, in_chans: int = 3, dropout: float = 0.0):
        body = nn.Sequential()
        for name, part in trunk(in_chans, width, layers).items():
            body.add_module(name, part)
        body.apply(he_init)
        if templates is not None:
            share(body, templates, include=["stage1.*"], skip_first=False)
        info = [{"num_chs": width, "reduction": 1}]
        super().__init__(body, info, 1, width, 1, "batch", dropout, 0, None)

    def features(self, x: Tensor) -> Tensor:
        return self.backbone(x)
