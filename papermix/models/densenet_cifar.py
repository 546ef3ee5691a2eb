"""Densely connected networks for small images (Huang et al. 2017)."""

import torch
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.models.image_model import ImageModel, Pool, check_depth, check_positive, check_rate, conv3x3


class DenseLayer(nn.Module):
    """[x, H(x)] along channels, H = norm, relu, 3x3 convolution to ``growth`` channels, with a 1x1 convolution to 4 growth
    before it in a bottleneck layer (DenseNet-B): Huang et al. 2017, eq. 2 and section 3."""

    def __init__(self, in_chans: int, growth: int, bottleneck: bool, dropout: float):
        super().__init__()
        layers: list[nn.Module] = []
        if bottleneck:
            layers += [
                nn.BatchNorm2d(in_chans),
                nn.ReLU(inplace=True),
                nn.Conv2d(in_chans, 4 * growth, 1, bias=False),
                nn.Dropout(dropout),
            ]
            in_chans = 4 * growth
        layers += [nn.BatchNorm2d(in_chans), nn.ReLU(inplace=True), conv3x3(in_chans, growth), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.layers(x)), 1)


def transition(in_chans: int, out_chans: int, dropout: float) -> nn.Sequential:
    """Norm, relu, 1x1 convolution, 2x2 average pool (section 3, "Pooling layers")."""
    return nn.Sequential(
        nn.BatchNorm2d(in_chans),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_chans, out_chans, 1, bias=False),
        nn.Dropout(dropout),
        nn.AvgPool2d(2, ceil_mode=True),
    )


class DenseNetCifar(ImageModel):
    """DenseNet of depth L and growth rate k: three dense blocks at strides 1, 2, 4.

    Source: Huang et al. 2017, "Densely Connected Convolutional Networks", section 3 and table 2: 1.0 M parameters for L=40, k=12
    plain; 0.8 M for L=100, k=12 as DenseNet-BC.

    Args:
        depth: L; 6n+4 with bottlenecks, 3n+4 without.
        growth: k, the channels that each layer adds.
        bottleneck: a 1x1 convolution to 4k channels before every 3x3 one (the B of BC).
        compression: share of its channels that a transition keeps, in (0, 1] (below 1: the C of BC; paper: 0.5).
        dropout: probability behind every convolution but the first (paper: 0.2 without augmentation, else 0).
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        global_pool: ``avg``, ``max`` or ``""``.
        drop_rate: dropout probability before the classifier.

    Raises:
        UserError: for a depth that does not fit three equal blocks, or sizes, shares and rates that cannot be.
    """

    def __init__(
        self,
        depth: int = 100,
        growth: int = 12,
        bottleneck: bool = True,
        compression: float = 0.5,
        dropout: float = 0.0,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: Pool = "avg",
        drop_rate: float = 0.0,
    ):
        check_positive(growth=growth, in_chans=in_chans)
        check_depth(depth, blocks=6 if bottleneck else 3, rest=4)
        check_rate(dropout=dropout)
        if not 0 < compression <= 1:
            raise UserError(f"compression={compression} is not possible: give a share above 0 and up to 1.")
        # section 3, "Implementation Details": 16 channels, or 2k for a DenseNet-BC
        chans = 2 * growth if bottleneck and compression < 1 else 16
        parts: dict[str, nn.Module] = {"stem": nn.Sequential(conv3x3(in_chans, chans))}
        features = [("stem", chans, 1)]
        for i in range(3):
            layers: list[nn.Module] = []
            if i > 0:
                kept = int(compression * chans)
                layers.append(transition(chans, kept, dropout))
                chans = kept
            for _ in range((depth - 4) // (6 if bottleneck else 3)):
                layers.append(DenseLayer(chans, growth, bottleneck, dropout))
                chans += growth
            parts[f"stage{i + 1}"] = nn.Sequential(*layers)
            features.append((f"stage{i + 1}", chans, 2**i))
        parts["norm"] = nn.Sequential(nn.BatchNorm2d(chans), nn.ReLU(inplace=True))
        features[-1] = ("norm", chans, 4)
        super().__init__(parts, features, num_classes, in_chans, global_pool, drop_rate)
