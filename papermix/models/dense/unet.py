"""U-Net, with its own encoder or any timm model as the encoder (Ronneberger et al. 2015)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.models.dense.backbone import Backbone
from papermix.models.dense.dense import DenseModel, Norm, conv_block
from papermix.models.image_model import check_positive, he_init


def double_conv(in_chans: int, out_chans: int, norm: Norm) -> nn.Sequential:
    """Twice 3x3 convolution, norm and ReLU."""
    return nn.Sequential(*conv_block(in_chans, out_chans, norm), *conv_block(out_chans, out_chans, norm))


class Encoder(nn.Module):
    """The contracting path of the paper: double convolutions to ``width`` 2^i channels at strides 2^i, a 2x2 max pool between.

    It has what a :class:`papermix.models.dense.backbone.Backbone` has. The convolutions keep the size (the paper's do not).
    """

    def __init__(self, in_chans: int, width: int, levels: int, norm: Norm):
        super().__init__()
        self.channels = [width * 2**i for i in range(levels)]
        self.strides = [2**i for i in range(levels)]
        self.feature_info = [{"num_chs": c, "reduction": s} for c, s in zip(self.channels, self.strides)]
        self.divisor = 2 ** (levels - 1)
        self.stages = nn.ModuleList(double_conv(c, width * 2**i, norm) for i, c in enumerate([in_chans, *self.channels[:-1]]))
        self.pool = nn.MaxPool2d(2)
        self.apply(he_init)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for stage in self.stages:
            maps.append(stage(self.pool(maps[-1]) if maps else x))
        return maps


class Up(nn.Module):
    """Up-convolution by ``ratio``, concatenation with the encoder's map of that size (if there is one), double convolution."""

    def __init__(self, in_chans: int, skip_chans: int, out_chans: int, ratio: int, norm: Norm):
        super().__init__()
        self.up = nn.ConvTranspose2d(in_chans, out_chans, ratio, stride=ratio)
        self.convs = double_conv(out_chans + skip_chans, out_chans, norm)
        self.convs.apply(he_init)
        # every output position has in_chans inputs, and no ReLU follows
        nn.init.normal_(self.up.weight, std=1 / math.sqrt(in_chans))
        nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = self.up(x)
        return self.convs(x if skip is None else torch.cat([skip, x], 1))


class UNet(DenseModel):
    """U-Net: an encoder, and a decoder that returns to the image's size with a skip connection at every stride of the encoder.

    Source: Ronneberger et al. 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation", fig. 1 (``width=64``,
    ``levels=5``, 31.0 M parameters). Differences: convolutions keep the size, so that nothing is cropped; there is a norm. The
    decoder has ``width`` channels at stride 1 and twice as many at each doubling of the stride, 16 times at most; where the
    encoder has no map (a ResNet at stride 1) it goes on without a skip connection. The stride is 1.

    Args:
        backbone: None for the paper's encoder, or a name that :class:`papermix.models.dense.backbone.Backbone` builds.
        pretrained: load timm's weights of the backbone.
        in_chans: channels of the image.
        levels: resolutions of the encoder; None: five of the paper's, all of a backbone.
        width: channels at the image's size.
        norm: ``batch``, ``group`` or ``none`` (a backbone has its own).
        dropout: probability of dropping a channel before a head's last convolution.
        head_convs: 3x3 convolutions of a head, at the image's size (paper: none).
        head_width: their channels; None: ``width``.
        args: further keyword arguments of the backbone.

    Raises:
        UserError: for a backbone that cannot be built or has no maps, for weights or arguments without a backbone, and for sizes,
            rates or a norm that cannot be.
    """

    def __init__(
        self,
        backbone: str | None = None,
        pretrained: bool = False,
        in_chans: int = 3,
        levels: int | None = None,
        width: int = 32,
        norm: Norm = "batch",
        dropout: float = 0.0,
        head_convs: int = 0,
        head_width: int | None = None,
        args: dict[str, Any] | None = None,
    ):
        check_positive(in_chans=in_chans, width=width, levels=5 if levels is None else levels)
        if backbone is None and (pretrained or args):
            wanted = "pretrained=true" if pretrained else f"args={args}"
            raise UserError(f"{wanted} needs a backbone: name one, for example backbone=resnet18.")
        encoder: Encoder | Backbone
        if backbone is None:
            encoder = Encoder(in_chans, width, levels or 5, norm)
        else:
            encoder = Backbone(backbone, in_chans, pretrained, levels=levels, args=args)
        super().__init__(encoder, encoder.feature_info, encoder.divisor, width, 1, norm, dropout, head_convs, head_width)
        steps = [*zip(encoder.strides, encoder.channels)][-2::-1]
        steps += [(stride, 0) for stride in strides_to_one(encoder.strides[0])]
        ups: list[nn.Module] = []
        chans, coarser = encoder.channels[-1], encoder.strides[-1]
        for stride, skip in steps:
            if coarser % stride:
                raise UserError(
                    f"backbone {backbone} has strides {encoder.strides}, and {stride} does not divide {coarser}: use another."
                )
            out = width * min(stride, 16)
            ups.append(Up(chans, skip, out, coarser // stride, norm))
            chans, coarser = out, stride
        self.ups = nn.ModuleList(ups)

    def features(self, x: Tensor) -> Tensor:
        *skips, x = self.backbone(x)
        for up in self.ups:
            x = up(x, skips.pop() if skips else None)
        return x


def strides_to_one(stride: int) -> list[int]:
    """The strides that lie before a decoder at ``stride``, each the one before over its smallest prime factor: 14 -> [7, 1]."""
    path: list[int] = []
    while stride > 1:
        stride //= next(p for p in range(2, stride + 1) if stride % p == 0)
        path.append(stride)
    return path
