"""A network with early exits: classifiers at its feature maps, fine to coarse (BranchyNet; a baseline of Wan et al. 2020)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from papermix.errors import UserError
from papermix.models.image_model import Pool, check_positive
from papermix.models.nested.base import ExitModel, State
from papermix.models.timm_model import check_name, create, first_line


class Section(nn.Sequential):
    """The layers between two exits."""

    def forward(self, state: State) -> State:
        feature = super().forward(state.feature)
        return State(state.done + 1, feature, (*state.memory, feature))


class Branched(ExitModel):
    """A convolutional network that is a chain (ResNets, VGGs, DenseNets, ...) with classifiers at some of its feature maps.

    Args:
        backbone: a name of timm's (``resnet18``, ``resnet50.a1_in1k``) or of ours (``resnet20_cifar``).
        maps: numbers of the feature maps, from 0, with a classifier, rising; the last one gives the last exit. None: all but the
            first, which is the stem's.
        pretrained: load timm's weights, from the network or its cache.
        image_size: height and width of the images, on a blank one of which the network is tried; None: it is not tried.
        num_classes: outputs of each classifier; 0 for none.
        in_chans: channels of the image.
        global_pool: ``avg``, ``max`` or ``""``.
        drop_rate: dropout probability before the classifiers.
        args: further keyword arguments of the backbone.

    Raises:
        UserError: an unknown or unfit backbone, feature maps that it does not have, images that it cannot take.
    """

    def __init__(
        self,
        backbone: str = "resnet20_cifar",
        maps: Sequence[int] | None = None,
        pretrained: bool = False,
        image_size: int | None = None,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: Pool = "avg",
        drop_rate: float = 0.0,
        args: dict[str, Any] | None = None,
    ):
        check_positive(in_chans=in_chans)
        check_name(backbone, pretrained)
        kwargs: dict[str, Any] = {"in_chans": in_chans, "features_only": True, **(args or {})}
        with torch.device("meta"):
            count = len(create(backbone, False, kwargs).feature_info)  # type: ignore[arg-type]
        chosen = list(range(min(1, count - 1), count)) if maps is None else list(maps)
        if not chosen or sorted(set(chosen)) != chosen or chosen[0] < 0 or chosen[-1] >= count:
            raise UserError(f"maps={maps} is not possible: {backbone} has the feature maps 0 to {count - 1}; name some, rising.")
        net: Any = create(backbone, pretrained, {**kwargs, "out_indices": chosen})
        layers: Any = getattr(net, "return_layers", None)
        if layers is None or not hasattr(net, "items"):
            raise UserError(f"backbone {backbone} is no chain of layers with maps between them: use a ResNet, VGG or DenseNet.")
        sections: list[Section] = [Section()]
        for name, layer in net.items():
            sections[-1].add_module(name, layer)
            if name in layers:
                sections.append(Section())
        info = net.feature_info.get_dicts(keys=["num_chs", "reduction"])
        features = [(i["num_chs"], i["reduction"]) for i in info]
        own = {name: value.clone() for name, value in net.state_dict().items()}
        super().__init__(sections[: len(chosen)], features, num_classes, in_chans, global_pool, drop_rate)
        net.load_state_dict(own)  # the backbone's weights or its own way to start, which He's has just gone over
        if image_size is not None:
            self._try(backbone, in_chans, image_size)

    @torch.no_grad()
    def _try(self, backbone: str, in_chans: int, image_size: int) -> None:
        """Run a blank image. Changes no state."""
        like = next(self.parameters())
        self.eval()
        try:
            self(torch.zeros(1, in_chans, image_size, image_size, device=like.device, dtype=like.dtype))
        except UserError:
            raise
        except Exception as e:
            raise UserError(
                f"backbone {backbone} cannot have exits on images of {in_chans}x{image_size}x{image_size} ({first_line(e)}): "
                "use a convolutional network, or larger images."
            ) from e
        finally:
            self.train()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """A group for each exit."""
        return {"blocks": r"^exit(\d+)"}
