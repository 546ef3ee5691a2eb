"""Feature maps of any timm model, papermix's own ones included."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.models.image_model import check_positive
from papermix.models.timm_model import check_name, create, first_line

# what lets networks made for one image size take any: timm's ViT, EVA and Swin know the first, its older Swins the second
ANY_SIZE: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


class Backbone(nn.Module):
    """Image ``[B, in_chans, H, W]`` -> list of maps ``[B, channels[i], H / strides[i], W / strides[i]]``, fine to coarse.

    H and W must be multiples of ``divisor``. Of a pyramid, the last map of each stride is taken; of a network that keeps one
    stride (ViT), maps from equally spaced depths, the last one included.

    Args:
        name: a name of timm's (``resnet50``, ``swin_tiny_patch4_window7_224``, ``resnet18.a1_in1k``) or of ours
            (``resnet20_cifar``).
        in_chans: channels of the image.
        pretrained: load timm's weights, from the network or its cache.
        levels: number of maps at most, the coarsest ones; None: all strides of a pyramid, four maps of a ViT.
        output_stride: coarsest stride; strides beyond are replaced by dilation. None: the network's own.
        args: further keyword arguments of that model.

    Attributes:
        channels, strides: of each map.
        divisor: least common multiple of the strides.

    Raises:
        UserError: for an unknown name, a keyword that the model does not take, weights that do not exist or cannot be loaded, an
            output stride that the model cannot have, a model without maps or one that takes images of its own size alone.
    """

    def __init__(
        self,
        name: str,
        in_chans: int = 3,
        pretrained: bool = False,
        levels: int | None = None,
        output_stride: int | None = None,
        args: dict[str, Any] | None = None,
    ):
        super().__init__()
        check_positive(in_chans=in_chans, levels=levels or 1)
        check_name(name, pretrained)
        kwargs: dict[str, Any] = {"in_chans": in_chans, "features_only": True, **(args or {})}
        info = _describe(name, kwargs)
        coarsest = info[-1]["reduction"]
        if output_stride is not None and coarsest > output_stride:
            try:
                kwargs["output_stride"] = output_stride
                info = _describe(name, kwargs)
            except UserError as e:
                raise UserError(
                    f"backbone {name} cannot have output_stride={output_stride}: use its own, {coarsest}, or a network that timm "
                    "can dilate to 8 or 16 (resnet50, regnety_040, convnext_tiny, efficientnet_b0, ...)."
                ) from e
        kwargs["out_indices"] = choose([i["reduction"] for i in info], levels)
        self.body = create(name, pretrained, kwargs)
        chosen = [info[i] for i in kwargs["out_indices"]]
        self.channels: list[int] = [i["num_chs"] for i in chosen]
        self.strides: list[int] = [i["reduction"] for i in chosen]
        self.feature_info = [{"num_chs": c, "reduction": s} for c, s in zip(self.channels, self.strides)]
        self.divisor = math.lcm(*self.strides)
        self.channels_last = False
        self._try(name, in_chans)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.body(x)
        return [m.permute(0, 3, 1, 2) for m in maps] if self.channels_last else list(maps)

    @torch.no_grad()
    def _try(self, name: str, in_chans: int) -> None:
        """Run a blank image, neither square nor of timm's size, to see the maps. Changes no state."""
        like = next(self.parameters())
        height, width = 3 * self.divisor, 5 * self.divisor
        image = torch.zeros(1, in_chans, height, width, device=like.device, dtype=like.dtype)
        self.eval()
        try:
            found = [tuple(m.shape[1:]) for m in self.body(image)]
        except Exception as e:
            raise UserError(
                f"backbone {name} does not take images of any size ({first_line(e)}): "
                "use a convolutional network, a ViT or a Swin."
            ) from e
        finally:
            self.train()
        sizes = [(height // s, width // s) for s in self.strides]
        if found == [(*size, c) for size, c in zip(sizes, self.channels)]:
            self.channels_last = True
        elif found != [(c, *size) for size, c in zip(sizes, self.channels)]:
            raise UserError(
                f"backbone {name} turns a {height}x{width} image into {found}, which are no maps of {self.channels} channels "
                f"at its strides {self.strides}: use another network."
            )


def choose(strides: Sequence[int], levels: int | None = None) -> tuple[int, ...]:
    """Which of the maps of these strides (in the network's order) to take; see :class:`Backbone`."""
    count = len(strides)
    if len(set(strides)) == 1:
        taken = min(levels or 4, count)
        return tuple((i + 1) * count // taken - 1 for i in range(taken))
    last = [i for i in range(count) if i + 1 == count or strides[i + 1] != strides[i]]
    return tuple(last[-levels:] if levels else last)


def _describe(name: str, kwargs: dict[str, Any]) -> list[dict[str, Any]]:
    """timm's ``feature_info`` of the model with these arguments, without memory for its weights where that is possible.

    Adds to ``kwargs`` the keyword of :data:`ANY_SIZE` that the model knows.
    """
    import timm

    body: Any
    one = {"out_indices": (0,)}  # every network has this map
    # older timm reads numbers back while it builds some networks, which meta tensors do not have
    for device, extra in product(("meta", "cpu"), ANY_SIZE):
        try:
            with torch.device(device):
                body = timm.create_model(name, **{**extra, **kwargs, **one})
        except Exception:
            continue
        kwargs.update({**extra, **kwargs})
        return body.feature_info.info
    body = create(name, False, {**kwargs, **one})  # tells what is wrong
    return body.feature_info.info
