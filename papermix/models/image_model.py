"""What the image networks here have in common: parts in a row, pooling, a linear classifier, under timm's names."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn

from papermix.errors import UserError, nearest

Pool = Literal["avg", "max", ""]


class GlobalPool(nn.Module):
    """Mean (``avg``) or maximum (``max``) over the positions of ``[B, C, H, W]`` -> ``[B, C]``; ``""`` returns its input."""

    def __init__(self, pool_type: Pool = "avg"):
        super().__init__()
        if pool_type not in ("avg", "max", ""):
            raise UserError(
                f"global_pool={pool_type!r} is not known{nearest(str(pool_type), ('avg', 'max'))}: use avg, max or ''."
            )
        self.pool_type = pool_type

    def forward(self, x: Tensor) -> Tensor:
        if self.pool_type == "avg":
            return x.mean((2, 3))
        return x.amax((2, 3)) if self.pool_type == "max" else x

    def extra_repr(self) -> str:
        return repr(self.pool_type)


def conv3x3(in_chans: int, out_chans: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution that keeps the size (divided by ``stride``), without bias: a batch norm follows it everywhere here."""
    return nn.Conv2d(in_chans, out_chans, 3, stride=stride, padding=1, bias=False)


def conv_norm_act(in_chans: int, out_chans: int) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(conv3x3(in_chans, out_chans), nn.BatchNorm2d(out_chans), nn.ReLU(inplace=True))


def he_init(module: nn.Module) -> None:
    """He initialisation of every convolution and zero biases, for ``Module.apply``.

    Normal with variance 2 / fan_out (He et al. 2015, "Delving Deep into Rectifiers", eq. 14), as the ResNet, Wide ResNet and
    DenseNet authors' code has it. Batch norms keep scale 1 and shift 0; linear weights keep torch's U(-1, 1) / sqrt(fan_in).
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


class ImageModel(nn.Module):
    """A chain of named parts with a classifier ``head``; the interface is that of timm's models.

    Args:
        parts: name -> module, applied in this order; each takes what the one before returns, the first ``[B, in_chans, H, W]``.
        features: (name of a part, its channels, its stride against the image) of each feature map offered, in order, the last
            part last.
        num_classes: outputs of the classifier; 0 for none (the network then returns pooled features).
        in_chans: channels of the image.
        global_pool: ``avg``, ``max``, or ``""`` (feature maps are left as they are, which excludes a classifier).
        drop_rate: dropout probability before the classifier.

    Attributes:
        num_features: channels of ``forward_features``.
        feature_info: one dict (``module``, ``num_chs``, ``reduction``) per feature map, as timm's ``features_only`` reads it.

    Raises:
        UserError: for sizes, rates or a pooling that cannot be.
    """

    spatial = True  # features are maps [B, C, H, W], not vectors [B, C]

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        features: Sequence[tuple[str, int, int]],
        num_classes: int,
        in_chans: int,
        global_pool: Pool,
        drop_rate: float,
    ):
        super().__init__()
        check_positive(in_chans=in_chans)
        check_rate(drop_rate=drop_rate)
        for name, part in parts.items():
            self.add_module(name, part)
        self.part_names = tuple(parts)
        self.feature_info = [{"module": name, "num_chs": chans, "reduction": stride} for name, chans, stride in features]
        self.num_features = self.head_hidden_size = features[-1][1]
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.global_pool = GlobalPool(global_pool)
        self.head_drop = nn.Dropout(drop_rate)
        self.apply(he_init)
        self.head: nn.Module
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Image ``[B, in_chans, H, W]`` -> the last feature maps ``[B, num_features, h, w]`` (vectors for an MLP)."""
        for name in self.part_names:
            x = getattr(self, name)(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features -> logits ``[B, num_classes]``, or the classifier's input ``[B, num_features]`` with ``pre_logits``."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Image ``[B, in_chans, H, W]`` -> logits ``[B, num_classes]``."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps on the way, in the order of ``feature_info``.

        Args:
            x: image ``[B, in_chans, H, W]``.
            indices: positions in ``feature_info`` (negative ones count from the end); an int for the last so many; None for all.
            norm: has no effect (the last map already includes the last norm); accepted because timm's callers pass it.
            stop_early: leave out the parts behind the last map asked for.
            output_fmt: ``NCHW``, the only one.
            intermediates_only: return the list alone instead of (last features, list).
        """
        if output_fmt != "NCHW":
            raise UserError(f"output_fmt={output_fmt!r} is not possible for {type(self).__name__}: use NCHW.")
        count = len(self.feature_info)
        if indices is None:
            indices = count
        wanted = list(range(-indices, 0)) if isinstance(indices, int) else list(indices)
        if not wanted or min(wanted) < -count or max(wanted) >= count:
            raise UserError(f"feature indices {indices} do not exist: {type(self).__name__} has {count} feature maps.")
        names = {self.feature_info[i]["module"] for i in wanted}
        maps: list[Tensor] = []
        for name in self.part_names:
            x = getattr(self, name)(x)
            if name in names:
                maps.append(x)
                if len(maps) == len(names) and (stop_early or intermediates_only):
                    break
        return maps if intermediates_only else (x, maps)

    def get_classifier(self) -> nn.Module:
        """The last linear layer (an identity when there are no classes)."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: Pool | None = None) -> None:
        """Put a fresh classifier of ``num_classes`` outputs (0: none) in place, on the device and in the type of the network."""
        pool = self.global_pool if global_pool is None else GlobalPool(global_pool)
        if num_classes < 0:
            raise UserError(f"num_classes={num_classes} is negative: give the number of classes, or 0 for features alone.")
        if self.spatial and num_classes and not pool.pool_type:
            raise UserError("global_pool='' leaves maps, which a classifier cannot take: use avg or max, or num_classes=0.")
        if not self.spatial and pool.pool_type:
            raise UserError(f"global_pool={pool.pool_type!r} is not possible: {type(self).__name__} has no positions to pool.")
        self.global_pool = pool
        self.num_classes = num_classes
        like = next(self.parameters())
        self.head = nn.Linear(self.num_features, num_classes).to(like) if num_classes else nn.Identity()
        he_init(self.head)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names by depth, as timm's layer-wise learning rates read them: a group per block or per stage."""
        block = r"^stage(\d+)" if coarse else r"^stage(\d+)\.(\d+)"
        return {"stem": r"^stem", "blocks": [(block, None), (r"^norm", (99999,))]}


def check_positive(**values: int) -> None:
    """Raise UserError unless every value is an integer of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name}={value!r} is not possible: give a whole number of at least 1.")


def check_rate(**values: float) -> None:
    """Raise UserError unless every value is a probability below 1."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise UserError(f"{name}={value} is not a dropout probability: give a number from 0 up to (not including) 1.")


def check_depth(depth: int, blocks: int, rest: int) -> None:
    """Raise UserError unless ``depth`` is ``blocks`` * n + ``rest`` with n >= 1, naming the nearest depth that is."""
    check_positive(depth=depth)
    if depth < blocks + rest or (depth - rest) % blocks:
        nearest_depth = blocks * max(1, round((depth - rest) / blocks)) + rest
        raise UserError(f"depth={depth} is not possible: it must be {blocks}n+{rest}, for example {nearest_depth}.")
