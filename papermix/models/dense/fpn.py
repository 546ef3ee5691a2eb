"""Feature Pyramid Network, and the branch that makes one fine map of it (Lin et al. 2017, Kirillov et al. 2019)."""

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from papermix.models.dense.backbone import Backbone
from papermix.models.dense.dense import DenseModel, Norm, conv_block, resize
from papermix.models.image_model import check_positive, he_init


class TopDown(nn.Module):
    """Maps ``[B, channels[i], h_i, w_i]``, fine to coarse -> maps ``[B, width, h_i, w_i]`` that all know the coarsest one.

    Each map goes through a 1x1 convolution and gets the next coarser sum added, nearest neighbour upsampled; a 3x3 convolution
    smooths the sum (Lin et al. 2017, fig. 3). As there, no norm and no nonlinearity. Maps of equal size are added as they are.
    """

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        sums = [lateral(m) for lateral, m in zip(self.lateral, maps)]
        for i in reversed(range(len(sums) - 1)):
            sums[i] = sums[i] + resize(sums[i + 1], sums[i], "nearest")
        return [smooth(s) for smooth, s in zip(self.smooth, sums)]


class Upsampling(nn.Module):
    """``doublings`` times: 3x3 convolution, norm, ReLU, bilinear upsampling by two; one such block without upsampling for 0."""

    def __init__(self, in_chans: int, width: int, doublings: int, norm: Norm):
        super().__init__()
        count = max(doublings, 1)
        self.blocks = nn.ModuleList(conv_block(width if i else in_chans, width, norm) for i in range(count))

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """``[B, in_chans, h, w]`` -> ``[B, width]`` at the size of ``like``."""
        for block in self.blocks[:-1]:  # type: ignore[union-attr]
            x = F.interpolate(block(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        return resize(self.blocks[-1](x), like)


class FPN(DenseModel):
    """Semantic or panoptic FPN: a backbone's pyramid, each level brought to the finest one's size, their sum for the heads.

    Sources: Lin et al. 2017, "Feature Pyramid Networks for Object Detection", section 3; Kirillov et al. 2019, "Panoptic Feature
    Pyramid Networks", section 3.1 and fig. 3 (256 channels in the pyramid, 128 behind it, group norm). There the heads are 1x1
    convolutions (``head_convs=0``). Stride 4 with ResNets and most others, the finest stride of a small-image network, 16 with a
    ViT of 16-pixel patches.

    Args:
        backbone: a name that :class:`papermix.models.dense.backbone.Backbone` builds.
        pretrained: load timm's weights of the backbone.
        in_chans: channels of the image.
        levels: maps of the backbone at most, the coarsest ones.
        pyramid_width: channels of each level of the pyramid.
        width: channels of the sum.
        norm: ``batch``, ``group`` or ``none`` behind the pyramid and in the heads (the backbone has its own).
        dropout: probability of dropping a channel before a head's last convolution.
        head_convs: 3x3 convolutions of a head.
        head_width: their channels; None: ``width``.
        args: further keyword arguments of the backbone.

    Raises:
        UserError: for a backbone that cannot be built or has no maps, and for sizes, rates or a norm that cannot be.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        pretrained: bool = False,
        in_chans: int = 3,
        levels: int = 4,
        pyramid_width: int = 256,
        width: int = 128,
        norm: Norm = "group",
        dropout: float = 0.0,
        head_convs: int = 1,
        head_width: int | None = None,
        args: dict[str, Any] | None = None,
    ):
        check_positive(levels=levels, pyramid_width=pyramid_width)
        body = Backbone(backbone, in_chans, pretrained, levels=levels, args=args)
        finest = body.strides[0]
        super().__init__(body, body.feature_info, body.divisor, width, finest, norm, dropout, head_convs, head_width)
        self.top_down = TopDown(body.channels, pyramid_width)
        self.branches = nn.ModuleList(
            Upsampling(pyramid_width, width, round(math.log2(stride / finest)), norm) for stride in body.strides
        )
        self.top_down.apply(he_init)
        self.branches.apply(he_init)

    def features(self, x: Tensor) -> Tensor:
        pyramid = self.top_down(self.backbone(x))
        total = self.branches[0](pyramid[0], pyramid[0])
        for branch, level in zip(self.branches[1:], pyramid[1:]):  # type: ignore[arg-type]
            total = total + branch(level, pyramid[0])
        return total
