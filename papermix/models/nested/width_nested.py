"""Networks nested in width: every layer's channels are stripes, and stripe k reads the stripes 1 to k (Wan et al. 2020)."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.models.image_model import Pool, check_positive, check_rate, conv3x3, conv_norm_act
from papermix.models.nested.base import ExitModel, State
from papermix.models.resnet_cifar import PadShortcut

Join = Callable[[Tensor], Tensor]


def stripes(width: int, exits: int) -> list[int]:
    """Channels that each exit adds: w, w, 2w, 4w, ..., so that the total doubles from exit to exit."""
    return [width * 2 ** max(0, k - 1) for k in range(exits)]


class Stripe(nn.Module):
    """The channels that one exit adds to every layer. A layer reads them together with those of all earlier exits."""

    def forward(self, state: State) -> State:
        known, kept = iter(state.memory[1:]), [state.memory[0]]

        def join(new: Tensor) -> Tensor:
            """A layer's channels so far, with the new ones behind."""
            old = next(known, None)
            kept.append(new if old is None else torch.cat((old, new), 1))
            return kept[-1]

        feature = self.run(state.memory[0], join)
        return State(state.done + 1, feature, tuple(kept))

    def run(self, image: Tensor, join: Join) -> Tensor:
        """The image -> the whole feature; every layer that others read goes through ``join``, in the same order at every exit."""
        raise TypeError(f"{type(self).__name__} does not say what it computes")


class StripeBlock(nn.Module):
    """Basic residual block (He et al. 2015, fig. 2) of one stripe; its shortcut subsamples, and pads with zero channels.

    Args:
        known: channels of the block's input at this exit, this stripe's included.
        inner: those between the two convolutions.
        in_chans, out_chans: channels of the stripe alone.
    """

    def __init__(self, known: int, inner: int, in_chans: int, out_chans: int, stride: int):
        super().__init__()
        self.conv1 = conv3x3(known, out_chans, stride)
        self.norm1 = nn.BatchNorm2d(out_chans)
        self.act1 = nn.ReLU()
        self.conv2 = conv3x3(inner, out_chans)
        self.norm2 = nn.BatchNorm2d(out_chans)
        self.act2 = nn.ReLU()
        same = in_chans == out_chans and stride == 1
        self.shortcut = nn.Identity() if same else PadShortcut(in_chans, out_chans, stride)

    def forward(self, new: Tensor, join: Join) -> Tensor:
        inner = join(self.act1(self.norm1(self.conv1(join(new)))))
        return self.act2(self.norm2(self.conv2(inner)) + self.shortcut(new))


class ConvStripe(Stripe):
    """One stripe of a residual network.

    Args:
        in_chans: channels of the image.
        before: channels that earlier exits have in the first stage.
        width: channels that this one adds there; both double from stage to stage.
        blocks: residual blocks of each stage.
        stem: ``small`` or ``imagenet``.
    """

    def __init__(self, in_chans: int, before: int, width: int, blocks: Sequence[int], stem: str):
        super().__init__()
        self.stem = conv_norm_act(in_chans, width)
        if stem == "imagenet":
            wide = nn.Conv2d(in_chans, width, 7, stride=2, padding=3, bias=False)
            self.stem = nn.Sequential(wide, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.blocks = nn.ModuleList()
        total = before + width
        known, chans = total, width
        for stage, count in enumerate(blocks):
            scale = 2**stage
            for i in range(count):
                self.blocks.append(StripeBlock(known, total * scale, chans, width * scale, 2 if stage and i == 0 else 1))
                known, chans = total * scale, width * scale

    def run(self, image: Tensor, join: Join) -> Tensor:
        x = self.stem(image)
        for block in self.blocks:
            x = block(x, join)
        return join(x)


class NestedResNet(ExitModel):
    """Residual network nested in width: at each exit the total width doubles, and the earlier network is part of the later one.

    a_k at layer l+1 is relu(norm_k(W_k [a_1; ...; a_k])), z_k = V_k [a_1; ...; a_k] at the last layer: block-triangular weights,
    a batch norm of its own for each stripe. With ``exits=1`` it is a plain residual network of that width.

    Args:
        exits: number of exits.
        width: channels of the first exit's network in the first stage; each stage has twice as many as the one before.
        blocks: residual blocks of each stage; ``[3, 3, 3]`` is ResNet-20's depth, ``[3, 4, 6, 3]`` ResNet-34's.
        stem: ``small``: a 3x3 convolution; ``imagenet``: 7x7 at stride 2 and a max pool.
        num_classes: outputs of each classifier; 0 for none.
        in_chans: channels of the image.
        global_pool: ``avg``, ``max`` or ``""``.
        drop_rate: dropout probability before the classifiers.

    Raises:
        UserError: sizes that cannot be, or an unknown stem.
    """

    def __init__(
        self,
        exits: int = 4,
        width: int = 8,
        blocks: Sequence[int] = (3, 3, 3),
        stem: Literal["small", "imagenet"] = "small",
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: Pool = "avg",
        drop_rate: float = 0.0,
    ):
        check_positive(exits=exits, width=width, in_chans=in_chans, **{f"blocks[{i}]": b for i, b in enumerate(blocks)})
        if not blocks:
            raise UserError("blocks=[] leaves no layer: give the number of blocks of at least one stage, for example [3, 3, 3].")
        if stem not in ("small", "imagenet"):
            raise UserError(f"stem={stem!r} is not known: use small or imagenet.")
        own = stripes(width, exits)
        parts = [ConvStripe(in_chans, sum(own[:k]), own[k], blocks, stem) for k in range(exits)]
        stride = 2 ** (len(blocks) - 1) * (4 if stem == "imagenet" else 1)
        features = [(sum(own[: k + 1]) * 2 ** (len(blocks) - 1), stride) for k in range(exits)]
        super().__init__(parts, features, num_classes, in_chans, global_pool, drop_rate)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """A group for each block, over all exits."""
        return {"stem": r"^exit\d+\.stem", "blocks": r"^exit\d+\.blocks\.(\d+)"}


class DenseStripe(Stripe):
    """One stripe of a multi-layer perceptron.

    Args:
        pixels: numbers in an image.
        before: units that earlier exits have in each layer.
        width: units that this one adds.
        layers: hidden layers.
        norm: batch norm behind every linear layer, which then has no bias.
    """

    def __init__(self, pixels: int, before: int, width: int, layers: int, norm: bool):
        super().__init__()
        self.blocks = nn.ModuleList()
        for i in range(layers):
            linear = nn.Linear(before + width if i else pixels, width, bias=not norm)
            self.blocks.append(nn.Sequential(linear, *([nn.BatchNorm1d(width)] if norm else []), nn.ReLU()))

    def run(self, image: Tensor, join: Join) -> Tensor:
        x = image.flatten(1)
        for block in self.blocks:
            x = join(block(x))
        return x


class NestedMLP(ExitModel):
    """Multi-layer perceptron nested in width; see :class:`NestedResNet`. Weights start as torch's linear layers do.

    Args:
        img_size: the image's height and width in pixels: one number for both, or a pair.
        exits: number of exits.
        width: units of the first exit's network in each hidden layer; the total doubles from exit to exit.
        layers: hidden layers.
        norm: batch norm behind every hidden linear layer, which then has no bias.
        num_classes: outputs of each classifier; 0 for none.
        in_chans: channels of the image.
        drop_rate: dropout probability before the classifiers.

    Raises:
        UserError: sizes that cannot be.
    """

    spatial = False

    def __init__(
        self,
        img_size: int | Sequence[int] = 28,
        exits: int = 4,
        width: int = 16,
        layers: int = 3,
        norm: bool = True,
        num_classes: int = 10,
        in_chans: int = 1,
        drop_rate: float = 0.0,
    ):
        height, side = (img_size, img_size) if isinstance(img_size, int) else img_size
        check_positive(height=height, img_size=side, exits=exits, width=width, layers=layers, in_chans=in_chans)
        check_rate(drop_rate=drop_rate)
        own = stripes(width, exits)
        pixels = math.prod((in_chans, height, side))
        parts = [DenseStripe(pixels, sum(own[:k]), own[k], layers, norm) for k in range(exits)]
        super().__init__(parts, [(sum(own[: k + 1]), height) for k in range(exits)], num_classes, in_chans, "", drop_rate)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """A group for each hidden layer, over all exits."""
        return {"blocks": r"^exit\d+\.blocks\.(\d+)"}
