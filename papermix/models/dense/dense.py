"""What the dense networks here have in common: any image size, heads by name, a few layers."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from papermix.errors import UserError, nearest
from papermix.models.image_model import check_positive, check_rate, he_init

Norm = Literal["batch", "group", "none"]


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Batch norm, group norm (Wu & He 2018) or an identity for ``channels`` channels.

    Group norm has 32 groups, or the next fewer that divide the channels and leave at least four in a group: single channels
    would lose all they know where a map has one position.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(max(g for g in range(1, min(32, max(channels // 4, 1)) + 1) if channels % g == 0), channels)
    if norm == "none":
        return nn.Identity()
    raise UserError(f"norm={norm!r} is not known{nearest(str(norm), ('batch', 'group', 'none'))}: use batch, group or none.")


def conv_block(in_chans: int, out_chans: int, norm: Norm, kernel: int = 3, dilation: int = 1) -> nn.Sequential:
    """Convolution that keeps the size, norm, ReLU; the convolution has a bias where there is no norm."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(in_chans, out_chans, kernel, padding=padding, dilation=dilation, bias=norm == "none")
    return nn.Sequential(conv, norm_layer(norm, out_chans), nn.ReLU(inplace=True))


def resize(x: Tensor, like: Tensor, mode: Literal["nearest", "bilinear"] = "bilinear") -> Tensor:
    """``x`` at the height and width of ``like``; itself where it has them."""
    size = like.shape[-2:]
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size, mode=mode, align_corners=None if mode == "nearest" else False)


class DenseModel(nn.Module):
    """Image ``[B, in_chans, H, W]`` of any size -> one map ``[B, channels, h, w]`` for each head, h = ceil(H / stride).

    A network has no heads until :meth:`reset_heads` says which. A head is ``head_convs`` times a 3x3 convolution with norm and
    ReLU, then dropout and a 1x1 convolution whose weights start as N(0, 0.01) and biases as 0.

    Subclasses implement :meth:`features` for sizes that ``divisor`` divides. The image is filled up to such a size with zeros
    (the mean of a normalised image) at the bottom and the right, and the features are cut accordingly.

    Args:
        backbone: what makes the feature maps.
        feature_info: one dict (``num_chs``, ``reduction``) for each of its maps, from fine to coarse.
        divisor: the image sizes that ``features`` takes.
        width: channels of ``features``.
        stride: pixels of the image, along a side, for each position of ``features``.
        norm: ``batch``, ``group`` or ``none`` in the heads.
        dropout: probability of dropping a channel before a head's last convolution.
        head_convs: 3x3 convolutions of a head.
        head_width: their channels; None: ``width``.

    Attributes:
        num_features: channels of ``forward_features``, as timm calls them.

    Raises:
        UserError: for sizes, rates or a norm that cannot be.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_info: Sequence[Mapping[str, Any]],
        divisor: int,
        width: int,
        stride: int,
        norm: Norm,
        dropout: float,
        head_convs: int,
        head_width: int | None,
    ):
        super().__init__()
        check_positive(width=width, head_width=width if head_width is None else head_width)
        check_rate(dropout=dropout)
        if isinstance(head_convs, bool) or not isinstance(head_convs, int) or head_convs < 0:
            raise UserError(f"head_convs={head_convs!r} is not possible: give a whole number, 0 for a 1x1 convolution alone.")
        self.backbone = backbone
        self.feature_info = [dict(info) for info in feature_info]
        self.divisor = divisor
        self.num_features = width
        self.stride = stride
        self.norm: Norm = norm
        self.dropout = dropout
        self.head_convs = head_convs
        self.head_width = head_width or width
        self.head = nn.ModuleDict()

    @property
    def heads(self) -> dict[str, int]:
        """Name -> channels of the present heads."""
        return {name: layers[-1].out_channels for name, layers in self.head.items()}  # type: ignore[index, misc]

    def reset_heads(self, heads: Mapping[str, int]) -> None:
        """Drop all heads and put fresh ones in place, on the device and in the type of the network.

        Args:
            heads: name -> channels, for example ``{"semantic": 21, "center": 1, "offset": 2}``.

        Raises:
            UserError: no head, a name that is no identifier or that ``nn.ModuleDict`` keeps for itself, channels below 1.
        """
        if not heads:
            raise UserError("a dense model needs at least one head, for example heads={'semantic': 21}.")
        fresh = nn.ModuleDict()
        for name, channels in heads.items():
            if not isinstance(name, str) or not name.isidentifier() or hasattr(fresh, name):
                raise UserError(f"a head cannot be called {name!r}: take a plain word such as 'semantic'.")
            check_positive(**{f"heads[{name!r}]": channels})
            fresh[name] = self._new_head(channels)
        self.head = fresh.to(next(self.parameters())).train(self.training)

    def _new_head(self, channels: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        chans = self.num_features
        for _ in range(self.head_convs):
            layers.append(conv_block(chans, self.head_width, self.norm))
            chans = self.head_width
        last = nn.Conv2d(chans, channels, 1)
        head = nn.Sequential(*layers, nn.Dropout2d(self.dropout), last)
        head.apply(he_init)
        nn.init.normal_(last.weight, std=0.01)
        return head

    def features(self, x: Tensor) -> Tensor:
        """Image ``[B, in_chans, H, W]`` -> ``[B, num_features, H / stride, W / stride]``; ``divisor`` divides H and W."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """Image ``[B, in_chans, H, W]`` -> ``[B, num_features, ceil(H / stride), ceil(W / stride)]``."""
        height, width = x.shape[-2:]
        below, beside = -height % self.divisor, -width % self.divisor
        features = self.features(F.pad(x, (0, beside, 0, below)) if below or beside else x)
        return features[..., : -(-height // self.stride), : -(-width // self.stride)]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Image ``[B, in_chans, H, W]`` -> head's name -> ``[B, channels, ceil(H / stride), ceil(W / stride)]``."""
        if not self.head:
            raise UserError(f"this {type(self).__name__} has no heads yet: call reset_heads({{name: channels}}).")
        features = self.forward_features(x)
        return {name: head(features) for name, head in self.head.items()}
