"""Label structure (Mostajabi, Maire & Shakhnarovich 2018, arXiv 1804.02009): a code of label maps, and a branch that predicts it.

First an autoencoder learns the label maps alone. Then a segmentation network gets a second way to say the labels: a branch from
its features into the code, and through the decoder, which is frozen. The decoder only knows plausible layouts, so the gradient
that comes back through it tells the network about co-occurrence, shape and adjacency, which no loss of single pixels does. The
branch and the autoencoder serve training alone; the network itself stays as it is.

    structure = LabelStructure(autoencoder, [network.num_features])
    loss = own_loss + sum(weight * pixels.sum() / known.sum() for pixels, known in structure([features], labels))
"""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papermix.errors import UserError, nearest
from papermix.models.dense.dense import Norm, conv_block, norm_layer
from papermix.models.image_model import check_positive, he_init
from papermix.segmentation.segments import VOID

Loss = Literal["cross_entropy", "squared", "code"]
Mode = Literal["frozen", "tuned", "random", "scratch", "joint"]
LOSSES = ("cross_entropy", "squared", "code")
MODES = ("frozen", "tuned", "random", "scratch", "joint")


class LabelAutoencoder(nn.Module):
    """Classes of pixels [B, H, W] -> a narrow code -> logits of the same classes; no connection leads around the code.

    The encoder looks each class up (a 1x1 convolution of the one-hot map, which is never made; void is the zero vector), then 3x3
    convolution, norm, ReLU and 2x2 max pool for each halving, and a 1x1 convolution with norm into the code. The decoder mirrors
    it: 3x3 convolution, norm, ReLU, with bilinear upsampling by two before all but the first, and a 1x1 convolution.

    Maps of any size: they are filled up with void to a multiple of ``stride``, and the logits are cut accordingly.

    Args:
        num_classes: classes, void (255) not among them.
        code: channels of the code.
        stride: pixels, along a side, for each position of the code: a power of two.
        base: channels at the maps' own size, twice as many at each halving, 8 times at most.
        norm: ``batch``, ``group`` or ``none``.

    Attributes:
        layers: (channels, stride) of the decoder's hidden layers: 0 is the code, layer l > 0 is what its l-th block gives.

    Raises:
        UserError: sizes or a norm that cannot be.
    """

    def __init__(self, num_classes: int, code: int = 32, stride: int = 8, base: int = 32, norm: Norm = "batch") -> None:
        super().__init__()
        check_positive(num_classes=num_classes, code=code, stride=stride, base=base)
        if stride < 2 or stride & (stride - 1):
            raise UserError(f"stride={stride} of a label autoencoder must be a power of two, 2 or more: 8, for example.")
        halvings = stride.bit_length() - 1
        widths = [base * min(2**i, 8) for i in range(halvings + 1)]
        self.num_classes, self.stride = num_classes, stride
        self._same = {"num_classes": num_classes, "code": code, "stride": stride, "base": base, "norm": norm}
        self.lookup = nn.Embedding(num_classes + 1, base, padding_idx=num_classes)
        down: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            down += [conv_block(narrow, wide, norm), nn.MaxPool2d(2)]
        self.encoder = nn.Sequential(*down, nn.Conv2d(widths[-1], code, 1, bias=norm == "none"), norm_layer(norm, code))
        blocks = [conv_block(code, widths[-1], norm)]
        blocks += [conv_block(wide, narrow, norm) for wide, narrow in zip(widths[:0:-1], widths[-2::-1])]
        self.decoder = Decoding(blocks, nn.Conv2d(base, num_classes, 1))
        self.layers = [(code, stride)] + [(width, 2**i) for i, width in reversed(list(enumerate(widths)))]
        self.encoder.apply(he_init)
        self.decoder.apply(he_init)

    def newborn(self) -> "LabelAutoencoder":
        """An untrained one of the same shape."""
        return LabelAutoencoder(**self._same)  # type: ignore[arg-type]

    def encode(self, labels: Tensor) -> Tensor:
        """Classes int64 [B, H, W], 255 void -> code [B, code, ceil(H / stride), ceil(W / stride)]."""
        height, width = labels.shape[-2:]
        below, beside = -height % self.stride, -width % self.stride
        if below or beside:
            labels = F.pad(labels, (0, beside, 0, below), value=VOID)
        looked_up = self.lookup(labels.where(labels != VOID, self.num_classes))
        return self.encoder(looked_up.permute(0, 3, 1, 2))

    def hidden(self, labels: Tensor, layer: int = 0) -> Tensor:
        """What hidden layer ``layer`` of the decoder holds for these labels, [B, channels, h, w] as in ``layers``."""
        return self.decoder(self.encode(labels), 0, layer)

    def forward(self, labels: Tensor) -> dict[str, Tensor]:
        """Classes int64 [B, H, W], 255 void -> {"semantic": logits [B, num_classes, H, W]}."""
        height, width = labels.shape[-2:]
        return {"semantic": self.decoder(self.encode(labels))[..., :height, :width]}


class Decoding(nn.Module):
    """The decoder: what lies before its ``layer``-th hidden layer is left out, and on request what lies behind another one.

    Args:
        blocks: of convolutions; before all but the first the map is made twice as large.
        last: the convolution that gives the logits.
    """

    def __init__(self, blocks: Sequence[nn.Module], last: nn.Module) -> None:
        super().__init__()
        self.blocks, self.last = nn.ModuleList(blocks), last

    def forward(self, x: Tensor, layer: int = 0, until: int | None = None) -> Tensor:
        """Hidden layer ``layer`` -> hidden layer ``until``; None: the logits."""
        for place, block in list(enumerate(self.blocks))[layer:until]:
            x = block(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False) if place else x)
        return self.last(x) if until is None else x


class CodeBranch(nn.Module):
    """Features -> a hidden layer of the decoder: 3x3 convolution, norm, ReLU, 1x1 convolution (and ReLU where the layer has one).

    Maps of several depths are brought to the layer's size (means where they are finer) and stand side by side (a hypercolumn).

    Args:
        in_chans: channels of each map.
        out_chans: channels of the layer.
        width: channels between.
        norm: ``batch``, ``group`` or ``none``.
        positive: the layer is behind a ReLU.
    """

    def __init__(
        self, in_chans: Sequence[int], out_chans: int, width: int = 64, norm: Norm = "batch", positive: bool = False
    ) -> None:
        super().__init__()
        check_positive(width=width)
        self.hidden = conv_block(sum(in_chans), width, norm)
        self.last = nn.Conv2d(width, out_chans, 1)
        self.positive = positive
        self.apply(he_init)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Maps [B, in_chans[i], h_i, w_i] -> [B, out_chans, *size]."""
        x = self.last(self.hidden(torch.cat([at_size(m, size) for m in maps], 1)))
        return F.relu(x) if self.positive else x


def at_size(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A map [B, C, h, w] at another size: means over blocks of pixels where it is finer, bilinear for what is left."""
    down = max(round(x.shape[-2] / size[0]), 1), max(round(x.shape[-1] / size[1]), 1)
    if down != (1, 1):
        x = F.avg_pool2d(x, down, ceil_mode=True)
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Nats of every pixel [B, H, W], 0 at void; logits [B, K, H, W], labels int64 [B, H, W]."""
    return F.cross_entropy(logits.float(), labels, ignore_index=VOID, reduction="none")


def squared(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the classes of (softmax(logits) - one-hot label)^2 for every pixel [B, H, W], 0 at void."""
    p = logits.float().softmax(1)
    known = labels != VOID
    right = p.gather(1, labels.where(known, 0)[:, None])[:, 0]
    # the one-hot map is never made: sum (p - y)^2 = sum p^2 - 2 p_y + 1
    return torch.where(known, p.square().sum(1) - 2 * right + 1, 0.0) / logits.shape[1]


class LabelStructure(nn.Module):
    """The auxiliary branch with the decoder behind it: what a segmentation network's training is given besides its own loss.

    ``parameters()`` are those to be trained with the network; what is frozen is no sub-module, so that it stays in evaluation
    mode, in no optimizer and in no ``state_dict``, but moves along with ``to``. Gradients flow through it.

    Args:
        autoencoder: a trained one; it is copied.
        in_chans: channels of each of the maps that the branch reads.
        width: channels of the branch's own layer.
        layer: the decoder's hidden layer that the branch predicts, 0 for the code; see :class:`LabelAutoencoder`.
        loss: of the decoded labels, ``cross_entropy`` or ``squared``; or ``code``: the squared distance to the layer that the
            encoder and the decoder have for the true labels (the paper's alternative; nothing is decoded then).
        decoder: ``frozen``, the method; its controls: ``tuned``, trained on with the network; ``random``, frozen as it is born;
            ``scratch``, trained from its birth (plain deep supervision); ``joint``, the autoencoder trained beside the network.
        norm: of the branch.

    Raises:
        UserError: unknown names, a layer that the decoder does not have, the loss ``code`` without a frozen trained autoencoder.
    """

    def __init__(
        self,
        autoencoder: LabelAutoencoder,
        in_chans: Sequence[int],
        width: int = 64,
        layer: int = 0,
        loss: Loss = "cross_entropy",
        decoder: Mode = "frozen",
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        for key, value, known in (("loss", loss, LOSSES), ("decoder", decoder, MODES)):
            if value not in known:
                hint = nearest(str(value), known)
                raise UserError(f"{key}={value!r} of the label structure must be one of {', '.join(known)}{hint}.")
        last = len(autoencoder.layers) - 1
        if not 0 <= layer <= last:
            raise UserError(f"layer={layer} must be from 0, the code, to {last}, the decoder's last hidden layer.")
        if loss == "code" and decoder != "frozen":
            raise UserError(f"loss=code compares with a frozen autoencoder's code: decoder={decoder} needs another loss.")
        self.layer, self.loss, self.joint = layer, loss, decoder == "joint"
        self.channels, self.stride = autoencoder.layers[layer]
        self.whole = autoencoder.stride
        self.branch = CodeBranch(in_chans, self.channels, width, norm, positive=layer > 0)
        own = copy.deepcopy(autoencoder) if decoder in ("frozen", "tuned") else autoencoder.newborn()
        self._frozen: tuple[LabelAutoencoder, ...] = ()
        if decoder in ("frozen", "random"):
            self._frozen = (own.requires_grad_(False).eval(),)
        elif self.joint:
            self.autoencoder = own
        else:
            # blocks before the layer are not used, so not trained
            own.decoder.blocks[:layer].requires_grad_(False)  # type: ignore[union-attr]
            self.decoder = own.decoder

    def _apply(self, fn: Any, recurse: bool = True) -> "LabelStructure":
        for autoencoder in self._frozen:
            autoencoder._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @property
    def decoding(self) -> Decoding:
        """The decoder."""
        return self._frozen[0].decoder if self._frozen else self.autoencoder.decoder if self.joint else self.decoder

    def size(self, labels: Tensor) -> tuple[int, int]:
        """Height and width of the predicted layer for labels [B, H, W] of any size."""
        height, width = (-(-side // self.whole) * self.whole // self.stride for side in labels.shape[-2:])
        return height, width

    def predict(self, maps: Sequence[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the branch says of the layer [B, channels, h, w], and the logits [B, K, H, W] that the decoder makes of it."""
        predicted = self.branch(maps, self.size(labels))
        height, width = labels.shape[-2:]
        return predicted, self.decoding(predicted, self.layer)[..., :height, :width]

    def forward(self, maps: Sequence[Tensor], labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Losses of a batch, each as (loss of every position, 0 where there is no label; bool, the positions that have one).

        The first is the branch's: of pixels [B, H, W], or with ``code`` of the layer's positions [B, h, w], those without any
        labelled pixel left out. A joint autoencoder adds its own cross-entropy.

        Args:
            maps: the network's features, [B, in_chans[i], h_i, w_i].
            labels: classes int64 [B, H, W], 255 void.
        """
        known = labels != VOID
        if self.loss == "code":
            predicted = self.branch(maps, self.size(labels)).float()
            with torch.no_grad():
                target = self._frozen[0].hidden(labels, self.layer).float()
            there = F.max_pool2d(known[:, None].float(), self.stride, ceil_mode=True)[:, 0] > 0
            height, width = self.size(labels)
            there = F.pad(there, (0, width - there.shape[-1], 0, height - there.shape[-2]))
            return [((predicted - target).square().mean(1) * there, there)]
        logits = self.predict(maps, labels)[1]
        found = [((cross_entropy if self.loss == "cross_entropy" else squared)(logits, labels), known)]
        if self.joint:
            found.append((cross_entropy(self.autoencoder(labels)["semantic"], labels), known))
        return found
