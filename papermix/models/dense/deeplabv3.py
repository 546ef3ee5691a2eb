"""DeepLabv3 and DeepLabv3+ (Chen et al. 2017, 2018)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.models.dense.backbone import Backbone
from papermix.models.dense.dense import DenseModel, Norm, conv_block, norm_layer, resize
from papermix.models.image_model import check_positive, he_init


class ImageNorm(nn.BatchNorm2d):
    """Batch norm of one vector for each image, ``[B, C, 1, 1]``.

    A lone image in training has no statistics over a batch; it is normed by the running ones, as in evaluation.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with image features (Chen et al. 2017, section 3.3 and fig. 5).

    A 1x1 convolution, a 3x3 one with each of the ``rates``, and a 1x1 one of the mean over all positions, side by side, each with
    norm and ReLU; a further 1x1 convolution joins them: ``[B, in_chans, h, w]`` -> ``[B, width, h, w]``.
    """

    def __init__(self, in_chans: int, width: int, rates: Sequence[int], norm: Norm):
        super().__init__()
        self.branches = nn.ModuleList([conv_block(in_chans, width, norm, kernel=1)])
        self.branches.extend(conv_block(in_chans, width, norm, dilation=rate) for rate in rates)
        pooled_norm = ImageNorm(width) if norm == "batch" else norm_layer(norm, width)
        self.pooled = nn.Sequential(nn.Conv2d(in_chans, width, 1, bias=norm == "none"), pooled_norm, nn.ReLU(inplace=True))
        self.join = conv_block((len(rates) + 2) * width, width, norm, kernel=1)
        self.apply(he_init)

    def forward(self, x: Tensor) -> Tensor:
        maps = [branch(x) for branch in self.branches]
        maps.append(self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:]))
        return self.join(torch.cat(maps, 1))


class DeepLabV3(DenseModel):
    """DeepLabv3: a dilated backbone and ASPP. With ``plus``: DeepLabv3+, which joins a finer map of the backbone to the result.

    Sources: Chen et al. 2017, "Rethinking Atrous Convolution for Semantic Image Segmentation", section 3 (without the multi-grid
    of section 3.2.1); Chen et al. 2018, "Encoder-Decoder with Atrous Separable Convolution", section 3.1 (with plain
    convolutions): of the two 3x3 convolutions of its decoder the second one is the head's (``head_convs=1``).

    Args:
        backbone: a name that :class:`papermix.models.dense.backbone.Backbone` builds.
        pretrained: load timm's weights of the backbone.
        in_chans: channels of the image.
        output_stride: stride at which ASPP works, 16 or 8 in the papers; a backbone of finer strides stays as it is.
        plus: DeepLabv3+: the result has the stride of the backbone's map nearest to 4 instead of ``output_stride``.
        rates: of ASPP's 3x3 convolutions; None: the paper's 6, 12, 18 at stride 16, and so many pixels at any other.
        width: channels of ASPP and of the features.
        low_width: channels of the backbone's finer map in the decoder of ``plus``.
        norm: ``batch``, ``group`` or ``none`` behind the backbone (which has its own).
        dropout: probability of dropping a channel before a head's last convolution.
        head_convs: 3x3 convolutions of a head.
        head_width: their channels; None: ``width``.
        args: further keyword arguments of the backbone.

    Raises:
        UserError: for a backbone that cannot be built, has no maps or (``plus``) no finer ones, or cannot have that output
            stride, and for sizes, rates or a norm that cannot be.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        pretrained: bool = False,
        in_chans: int = 3,
        output_stride: int = 16,
        plus: bool = False,
        rates: Sequence[int] | None = None,
        width: int = 256,
        low_width: int = 48,
        norm: Norm = "batch",
        dropout: float = 0.0,
        head_convs: int = 1,
        head_width: int | None = None,
        args: dict[str, Any] | None = None,
    ):
        check_positive(output_stride=output_stride, width=width, low_width=low_width)
        body = Backbone(backbone, in_chans, pretrained, output_stride=output_stride, args=args)
        deep = body.strides[-1]
        if rates is None:
            rates = [max(rate * 16 // deep, 1) for rate in (6, 12, 18)]
        check_positive(**{f"rates[{i}]": rate for i, rate in enumerate(rates)})
        finer = [i for i, s in enumerate(body.strides) if s < deep]
        if plus and not finer:
            raise UserError(f"backbone {backbone} has no map finer than stride {deep}, which plus=true needs: use plus=false.")
        low = min(finer, key=lambda i: abs(math.log2(body.strides[i] / 4))) if plus else -1
        super().__init__(body, body.feature_info, body.divisor, width, body.strides[low], norm, dropout, head_convs, head_width)
        self.low = low
        self.aspp = ASPP(body.channels[-1], width, rates, norm)
        self.reduce = self.fuse = None
        if plus:
            self.reduce = conv_block(body.channels[low], low_width, norm, kernel=1)
            self.fuse = conv_block(width + low_width, width, norm)
            self.reduce.apply(he_init)
            self.fuse.apply(he_init)

    def features(self, x: Tensor) -> Tensor:
        maps = self.backbone(x)
        x = self.aspp(maps[-1])
        if self.reduce is None or self.fuse is None:
            return x
        low = self.reduce(maps[self.low])
        return self.fuse(torch.cat([low, resize(x, low)], 1))
