"""Networks with shared layers: the paper's SWRN, any timm model, and a network of one resolution."""

from typing import Any, Literal

from torch import nn

from papermix.errors import UserError
from papermix.models.image_model import ImageModel, Pool, check_positive, conv3x3
from papermix.models.resnet_cifar import PreActBlock
from papermix.models.sharing.share import share
from papermix.models.timm_model import timm_model
from papermix.models.wide_resnet import WideResNet


class SharedWideResNet(WideResNet):
    """SWRN depth-widen-templates: a wide ResNet with a bank for each of its three stages, the first block of each ordinary.

    Source: Savarese & Maire 2019; 12.3 M, 17.1 M and 36.5 M parameters for SWRN-28-10-1, -2 and -6.

    Args:
        depth: 6n+4, at least 16: two blocks of each stage share.
        widen: factor on the 16, 32, 64 channels of the three stages.
        templates: k of each bank; None: as many as layers that share (no saving, the paper's SWRN without a number).
        dropout, num_classes, in_chans, global_pool, drop_rate: see :class:`papermix.models.wide_resnet.WideResNet`.

    Raises:
        UserError: for a depth that leaves nothing to share, and for all that a wide ResNet refuses.
    """

    def __init__(
        self,
        depth: int = 28,
        widen: int = 10,
        templates: int | None = 2,
        dropout: float = 0.0,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: Pool = "avg",
        drop_rate: float = 0.0,
    ):
        super().__init__(depth, widen, dropout, num_classes, in_chans, global_pool, drop_rate)
        if depth < 16:
            raise UserError(f"depth={depth} leaves nothing to share beside the first block of each stage: take 16, 22, 28, ...")
        share(self, templates)


def trunk(in_chans: int, width: int, layers: int) -> dict[str, nn.Module]:
    """Stem convolution, ``layers`` 3x3 convolutions in pre-activation blocks of two, norm and ReLU; one resolution throughout.

    Args:
        in_chans: channels of the image.
        width: channels of everything behind the stem.
        layers: an even number of convolutions.
    """
    check_positive(in_chans=in_chans, width=width, layers=layers)
    if layers % 2:
        raise UserError(f"layers={layers} is not possible: blocks have two convolutions each, take {layers + 1}.")
    blocks = nn.Sequential(*(PreActBlock(width, width, 1, "B") for _ in range(layers // 2)))
    norm = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True))
    return {"stem": nn.Sequential(conv3x3(in_chans, width)), "stage1": blocks, "norm": norm}


class IsotropicCNN(ImageModel):
    """A classifier whose convolutions all have one shape, so that one bank can serve them: for small experiments on sharing.

    Args:
        layers: 3x3 convolutions behind the stem, an even number, in pre-activation residual blocks of two.
        width: channels.
        templates: k of the bank that all ``layers`` draw from; None: ordinary convolutions.
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        global_pool: ``avg``, ``max`` or ``""``.
        drop_rate: dropout probability before the classifier.

    Raises:
        UserError: an odd number of layers, or sizes and rates that cannot be.
    """

    def __init__(
        self,
        layers: int = 8,
        width: int = 32,
        templates: int | None = 2,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: Pool = "avg",
        drop_rate: float = 0.0,
    ):
        parts = trunk(in_chans, width, layers)
        features = [("stem", width, 1), ("norm", width, 1)]
        super().__init__(parts, features, num_classes, in_chans, global_pool, drop_rate)
        if templates is not None:
            share(self, templates, include=["stage1.*"], skip_first=False)


def shared_model(
    name: str,
    num_classes: int,
    templates: int | None = 2,
    kinds: tuple[str, ...] = ("conv",),
    scope: Literal["stage", "network"] = "stage",
    skip_first: bool = True,
    pointwise: bool = False,
    include: tuple[str, ...] = ("*",),
    exclude: tuple[str, ...] = (),
    init: Literal["random", "fit"] = "random",
    in_chans: int = 3,
    image_size: int | None = None,
    pretrained: bool = False,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
    args: dict[str, Any] | None = None,
) -> nn.Module:
    """Any model of timm, ours included, whose layers of one shape share templates.

    Args:
        name, num_classes, in_chans, image_size, pretrained, drop_rate, drop_path_rate, args: see
            :func:`papermix.models.timm_model.timm_model`.
        templates, kinds, scope, skip_first, pointwise, include, exclude, init: see :func:`papermix.models.sharing.share.share`.

    Raises:
        UserError: what these two refuse, and pretrained weights that ``init=random`` would throw away.
    """
    if pretrained and init == "random":
        raise UserError(
            "model.pretrained=true with model.init=random would throw the weights of shared layers away: use model.init=fit."
        )
    model = timm_model(name, num_classes, in_chans, image_size, pretrained, drop_rate, drop_path_rate, args)
    return share(model, templates, kinds, scope, skip_first, pointwise, include, exclude, init)
