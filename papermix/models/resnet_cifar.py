"""Residual networks for small images: post-activation (He et al. 2015) and pre-activation (He et al. 2016)."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.models.image_model import ImageModel, Pool, check_depth, check_positive, conv3x3, conv_norm_act


class PadShortcut(nn.Module):
    """Option A of He et al. 2015, section 3.3: every ``stride``-th position, and zeros for the new channels; no parameters."""

    def __init__(self, in_chans: int, out_chans: int, stride: int):
        super().__init__()
        self.stride, self.new_chans = stride, out_chans - in_chans

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_chans))


class BasicBlock(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))): He et al. 2015, fig. 2 with two 3x3 convolutions."""

    def __init__(self, in_chans: int, out_chans: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = conv3x3(in_chans, out_chans, stride)
        self.norm1 = nn.BatchNorm2d(out_chans)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(out_chans, out_chans)
        self.norm2 = nn.BatchNorm2d(out_chans)
        self.act2 = nn.ReLU(inplace=True)
        self.shortcut: nn.Module
        if in_chans == out_chans and stride == 1:
            self.shortcut = nn.Identity()
        elif shortcut == "A":
            self.shortcut = PadShortcut(in_chans, out_chans, stride)
        else:
            self.shortcut = nn.Sequential(nn.Conv2d(in_chans, out_chans, 1, stride, bias=False), nn.BatchNorm2d(out_chans))

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(y)) + self.shortcut(x))


class PreActBlock(nn.Module):
    """x + conv(dropout(relu(norm(conv(relu(norm(x))))))): He et al. 2016, fig. 1(b); dropout as in Zagoruyko & Komodakis 2016.

    The shortcut takes the activated input where it is a projection, and in the network's first block (``first``), where
    the activation right after the stem serves both paths (He et al. 2016, section 4.1); elsewhere it takes ``x`` itself.
    """

    def __init__(self, in_chans: int, out_chans: int, stride: int, shortcut: str, first: bool = False, dropout: float = 0.0):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_chans)
        self.act1 = nn.ReLU(inplace=True)
        self.conv1 = conv3x3(in_chans, out_chans, stride)
        self.norm2 = nn.BatchNorm2d(out_chans)
        self.act2 = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(dropout)
        self.conv2 = conv3x3(out_chans, out_chans)
        self.shortcut: nn.Module
        self.activated_shortcut = first
        if in_chans == out_chans and stride == 1:
            self.shortcut = nn.Identity()
        elif shortcut == "A":
            self.shortcut = PadShortcut(in_chans, out_chans, stride)
        else:
            self.shortcut = nn.Conv2d(in_chans, out_chans, 1, stride, bias=False)
            self.activated_shortcut = True

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.norm1(x))
        shortcut = self.shortcut(y if self.activated_shortcut else x)
        return self.conv2(self.drop(self.act2(self.norm2(self.conv1(y))))) + shortcut


class ResNetCifar(ImageModel):
    """ResNet of depth 6n+2 for images of about 8 to 64 pixels: a 3x3 stem, then three stages of n blocks at strides 1, 2, 4.

    Sources: He et al. 2015, "Deep Residual Learning", section 4.2 (``version=1``, shortcut A), with 0.27 M (depth 20), 0.46 M
    (32), 0.66 M (44), 0.85 M (56) and 1.7 M (110) parameters; He et al. 2016, "Identity Mappings" (``version=2``).

    Args:
        depth: 6n+2; the papers' are 20, 32, 44, 56, 110.
        version: 1 post-activation, 2 pre-activation.
        shortcut: where the shape changes, A: subsampling and zero channels; B: 1x1 convolution.
        width: channels of the first stage; the others have twice and four times as many.
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        global_pool: ``avg``, ``max`` or ``""``.
        drop_rate: dropout probability before the classifier.

    Raises:
        UserError: for a depth that is not 6n+2, an unknown version or shortcut, or sizes that cannot be.
    """

    def __init__(
        self,
        depth: int = 20,
        version: Literal[1, 2] = 1,
        shortcut: Literal["A", "B"] = "A",
        width: int = 16,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: Pool = "avg",
        drop_rate: float = 0.0,
    ):
        check_positive(width=width, in_chans=in_chans)
        check_depth(depth, blocks=6, rest=2)
        if version not in (1, 2):
            raise UserError(f"version={version} is not known: use 1 (post-activation) or 2 (pre-activation).")
        if shortcut not in ("A", "B"):
            raise UserError(f"shortcut={shortcut!r} is not known: use A (subsampling and zero channels) or B (1x1 convolution).")
        widths = (width, 2 * width, 4 * width)
        stem = conv_norm_act(in_chans, width) if version == 1 else nn.Sequential(conv3x3(in_chans, width))
        parts: dict[str, nn.Module] = {"stem": stem}
        chans = width
        for i, out in enumerate(widths):
            blocks: list[nn.Module] = []
            for j in range((depth - 2) // 6):
                stride = 2 if i > 0 and j == 0 else 1
                if version == 1:
                    blocks.append(BasicBlock(chans, out, stride, shortcut))
                else:
                    blocks.append(PreActBlock(chans, out, stride, shortcut, first=i == j == 0))
                chans = out
            parts[f"stage{i + 1}"] = nn.Sequential(*blocks)
        last = "stage3"
        if version == 2:
            last = "norm"
            parts["norm"] = nn.Sequential(nn.BatchNorm2d(chans), nn.ReLU(inplace=True))
        features = [("stem", width, 1), ("stage1", widths[0], 1), ("stage2", widths[1], 2), (last, widths[2], 4)]
        super().__init__(parts, features, num_classes, in_chans, global_pool, drop_rate)
