"""Wide residual networks (Zagoruyko & Komodakis 2016)."""

from torch import nn

from papermix.models.image_model import ImageModel, Pool, check_depth, check_positive, check_rate, conv3x3
from papermix.models.resnet_cifar import PreActBlock


class WideResNet(ImageModel):
    """WRN-depth-widen: pre-activation ResNet of depth 6n+4 with stages of 16k, 32k and 64k channels at strides 1, 2, 4.

    Source: Zagoruyko & Komodakis 2016, "Wide Residual Networks", table 1 and section 2.4 (dropout between the convolutions);
    36.5 M parameters for WRN-28-10, 8.9 M for WRN-40-4, 2.75 M for WRN-16-4.

    Args:
        depth: 6n+4; the paper's are 16, 22, 28, 40.
        widen: k, the factor on the channels of every stage.
        dropout: probability between the two convolutions of a block (paper: 0.3 where it is used).
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        global_pool: ``avg``, ``max`` or ``""``.
        drop_rate: dropout probability before the classifier.

    Raises:
        UserError: for a depth that is not 6n+4, or sizes and rates that cannot be.
    """

    def __init__(
        self,
        depth: int = 28,
        widen: int = 10,
        dropout: float = 0.0,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: Pool = "avg",
        drop_rate: float = 0.0,
    ):
        check_positive(widen=widen, in_chans=in_chans)
        check_depth(depth, blocks=6, rest=4)
        check_rate(dropout=dropout)
        parts: dict[str, nn.Module] = {"stem": nn.Sequential(conv3x3(in_chans, 16))}
        widths = (16 * widen, 32 * widen, 64 * widen)
        chans = 16
        for i, out in enumerate(widths):
            blocks: list[nn.Module] = []
            for j in range((depth - 4) // 6):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(PreActBlock(chans, out, stride, "B", dropout=dropout))
                chans = out
            parts[f"stage{i + 1}"] = nn.Sequential(*blocks)
        parts["norm"] = nn.Sequential(nn.BatchNorm2d(chans), nn.ReLU(inplace=True))
        features = [("stem", 16, 1), ("stage1", widths[0], 1), ("stage2", widths[1], 2), ("norm", widths[2], 4)]
        super().__init__(parts, features, num_classes, in_chans, global_pool, drop_rate)
