"""Importing this makes papermix's image networks known to timm: ``timm.create_model("resnet20_cifar")`` then builds one.

It imports timm (seconds), which is why nothing else here imports it.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from papermix.models.densenet_cifar import DenseNetCifar
from papermix.models.image_model import ImageModel
from papermix.models.mlp import MLP
from papermix.models.resnet_cifar import ResNetCifar
from papermix.models.sharing.networks import IsotropicCNN, SharedWideResNet
from papermix.models.small_cnn import SmallCNN
from papermix.models.vgg_cifar import VGGCifar
from papermix.models.wide_resnet import WideResNet

# name -> class, its arguments, the first convolution or linear layer
MODELS: dict[str, tuple[type[ImageModel], dict[str, Any], str]] = {
    "mlp_256x2_cifar": (MLP, {"hidden": (256, 256)}, "stage1.1"),
    "mlp_512x3_cifar": (MLP, {"hidden": (512, 512, 512)}, "stage1.1"),
    "small_cnn_cifar": (SmallCNN, {}, "stage1.0.0"),
    **{f"resnet{d}_cifar": (ResNetCifar, {"depth": d}, "stem.0") for d in (20, 32, 44, 56, 110)},
    **{f"preact_resnet{d}_cifar": (ResNetCifar, {"depth": d, "version": 2}, "stem.0") for d in (20, 32, 44, 56, 110)},
    **{
        f"wrn{d}_{k}_cifar": (WideResNet, {"depth": d, "widen": k}, "stem.0")
        for d, k in ((16, 4), (16, 8), (22, 2), (28, 2), (28, 10), (40, 2), (40, 4))
    },
    **{f"swrn28_10_{t}_cifar": (SharedWideResNet, {"depth": 28, "widen": 10, "templates": t}, "stem.0") for t in (1, 2, 6)},
    "isotropic8_32_cifar": (IsotropicCNN, {"layers": 8, "width": 32, "templates": None}, "stem.0"),
    **{f"vgg{d}_bn_cifar": (VGGCifar, {"depth": d}, "stage1.0.0") for d in (11, 13, 16, 19)},
    "densenet40_12_cifar": (DenseNetCifar, {"depth": 40, "growth": 12, "bottleneck": False, "compression": 1.0}, "stem.0"),
    **{
        f"densenet_bc{d}_{k}_cifar": (DenseNetCifar, {"depth": d, "growth": k}, "stem.0")
        for d, k in ((100, 12), (250, 24), (190, 40))
    },
}

# read by timm's register_model: 32x32 colour images, ten classes, no weights
default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "fixed_input_size": cls is MLP,  # timm then passes img_size
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2470, 0.2435, 0.2616),
            "first_conv": first,
            "classifier": "head",
        }
        for name, (cls, _, first) in MODELS.items()
    }
)


def _entrypoint(name: str, cls: type[ImageModel], arguments: dict[str, Any]) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        features = None
        if kwargs.get("features_only"):  # every map there is, unless out_indices says otherwise
            with torch.device("meta"):
                features = {"out_indices": tuple(range(len(cls(**arguments).feature_info)))}
        return build_model_with_cfg(cls, name, pretrained, feature_cfg=features, **{**arguments, **kwargs})

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"{cls.__name__} with {arguments}."
    return entrypoint


for _name, (_cls, _arguments, _) in MODELS.items():
    register_model(_entrypoint(_name, _cls, _arguments))
