"""Networks nested in depth: each exit puts a new layer behind every layer there is, and may widen them, too (Wan et al. 2020)."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.models.image_model import Pool, check_positive, conv_norm_act
from papermix.models.nested.base import ExitModel, State


def reads(index: int) -> list[int]:
    """The layers that layer ``index`` of an exit's network reads: those 1, 2, 4, ... before it; -1 is the stem."""
    return [index - 2**i for i in range((index + 1).bit_length())]


class Interlace(nn.Module):
    """What one exit adds: a layer behind every layer so far, and with ``have > 0`` and ``total > have`` new channels in those.

    The network of exit k has ``2**(k-1)`` times the first one's layers; number i of it reads those at i-1, i-2, i-4, ... of the
    same network, so with all channels that are known at this exit. Layer 2i of exit k is layer i of exit k-1.

    Args:
        in_chans: channels of the image.
        layers: of the first exit's network in each resolution.
        exit: number of this exit, from 1.
        have: channels that layers of earlier exits have in the first resolution (0 for the first exit).
        total: channels that all layers have after this exit; both double from one resolution to the next.
        aggregate: ``concat`` or ``sum``.
    """

    def __init__(self, in_chans: int, layers: Sequence[int], exit: int, have: int, total: int, aggregate: str):
        super().__init__()
        self.exit, self.aggregate = exit, aggregate
        self.levels = [level for level, count in enumerate(layers) for _ in range(count)]
        self.stem = conv_norm_act(in_chans, total - have) if total > have else None
        self.layers = nn.ModuleDict()
        for index in range(len(self.levels) * 2 ** (exit - 1)):
            new = (total if self.is_new(index) else total - have) * 2 ** self.level(index)
            if new:
                sources = [total * 2 ** self.level(i) for i in reads(index)]
                self.layers[str(index)] = conv_norm_act(sum(sources) if aggregate == "concat" else max(sources), new)

    def is_new(self, index: int) -> bool:
        """Whether earlier exits do not have this layer at all."""
        return self.exit == 1 or index % 2 == 1

    def level(self, index: int) -> int:
        """Resolution of a layer (of the stem: -1): the image's is divided by two to this power."""
        return 0 if index < 0 else self.levels[index // 2 ** (self.exit - 1)]

    def forward(self, state: State) -> State:
        image, *old = state.memory
        stem = None if self.stem is None else self.stem(image)
        known = [join(old[0] if old else None, stem)]
        for index in range(len(self.levels) * 2 ** (self.exit - 1)):
            before = None if self.is_new(index) else old[1 + index // 2]
            name = str(index)
            new = self.layers[name](self.gather(known, index)) if name in self.layers else None
            known.append(join(before, new))
        # the newest layer of this exit and of all before it
        last = [known[-(2**k)] for k in range(self.exit)]
        return State(state.done + 1, torch.cat(last, 1), (image, *known))

    def gather(self, known: Sequence[Tensor], index: int) -> Tensor:
        """What layer ``index`` reads, at its resolution."""
        found = []
        for i in reads(index):
            x = known[i + 1]
            for _ in range(self.level(index) - self.level(i)):
                x = F.avg_pool2d(x, 2, ceil_mode=True)
            found.append(x)
        if self.aggregate == "concat":
            return torch.cat(found, 1)
        widest = max(x.shape[1] for x in found)
        total = found[0].new_zeros(())
        for x in found:
            total = total + F.pad(x, (0, 0, 0, 0, 0, widest - x.shape[1]))
        return total


def join(old: Tensor | None, new: Tensor | None) -> Tensor:
    """A layer's channels so far with the new ones behind; one of the two there is."""
    if old is None or new is None:
        found = new if old is None else old
        assert found is not None
        return found
    return torch.cat((old, new), 1)


class NestedDepth(ExitModel):
    """Convolutional network nested in depth, or in depth and width: each exit doubles the number of layers (and their width).

    A layer is convolution, batch norm, ReLU; it reads the layers 1, 2, 4, ... before it in its own exit's network, which is
    made of the layers of this exit and all earlier ones. Layers of a finer resolution are pooled. The head reads the newest
    layer of its exit and of all before it.

    Args:
        exits: number of exits.
        layers: layers of the first exit's network in each resolution; each resolution halves the image and doubles the width.
        width: channels of a layer in the first resolution (of the first exit, if they grow).
        widen: double the width, too, at each exit.
        aggregate: how a layer joins what it reads: ``concat``, or ``sum`` (narrower ones padded with zero channels).
        num_classes: outputs of each classifier; 0 for none.
        in_chans: channels of the image.
        global_pool: ``avg``, ``max`` or ``""``.
        drop_rate: dropout probability before the classifiers.

    Raises:
        UserError: sizes that cannot be, or an unknown way to join.
    """

    def __init__(
        self,
        exits: int = 3,
        layers: Sequence[int] = (2, 2, 2),
        width: int = 16,
        widen: bool = False,
        aggregate: Literal["concat", "sum"] = "concat",
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: Pool = "avg",
        drop_rate: float = 0.0,
    ):
        check_positive(exits=exits, width=width, in_chans=in_chans, **{f"layers[{i}]": n for i, n in enumerate(layers)})
        if not layers:
            raise UserError("layers=[] leaves no layer: give the layers of at least one resolution, for example [2, 2, 2].")
        if aggregate not in ("concat", "sum"):
            raise UserError(f"aggregate={aggregate!r} is not known: use concat or sum.")
        totals = [width * 2**k if widen else width for k in range(exits)]
        have = [0, *totals]
        parts = [Interlace(in_chans, layers, k + 1, have[k], totals[k], aggregate) for k in range(exits)]
        stride = 2 ** (len(layers) - 1)
        features = [((k + 1) * totals[k] * stride, stride) for k in range(exits)]
        super().__init__(parts, features, num_classes, in_chans, global_pool, drop_rate)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """A group for each exit: its layers stand between those of the exits before."""
        return {"blocks": r"^exit(\d+)"}
