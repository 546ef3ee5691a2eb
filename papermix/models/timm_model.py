"""Any model of timm, papermix's own ones included, by its name."""

import inspect
import re
from typing import Any

import torch
from torch import nn

from papermix.errors import UserError, nearest


def timm_model(
    name: str,
    num_classes: int,
    in_chans: int = 3,
    image_size: int | None = None,
    pretrained: bool = False,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
    args: dict[str, Any] | None = None,
) -> nn.Module:
    """Build a model that ``timm.create_model`` knows.

    Args:
        name: a name of timm's (``resnet18``, ``vit_tiny_patch16_224``, ``resnet18.a1_in1k``), of ours (``resnet20_cifar``), or a
            model elsewhere (``hf-hub:owner/name``, ``local-dir:folder``).
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        image_size: height and width of the images; networks built for one size (ViT, Swin, mixers) are built for this one, and
            any network is tried on a blank image of it. None: timm's default size, nothing is tried.
        pretrained: load timm's weights, from the network or its cache.
        drop_rate: dropout probability before the classifier; None: the model's default.
        drop_path_rate: probability of dropping a residual branch; None: the model's default.
        args: further keyword arguments of that model.

    Returns:
        The model; images ``[B, in_chans, image_size, image_size]`` -> logits ``[B, num_classes]``.

    Raises:
        UserError: for an unknown name, a keyword that the model does not take, weights that do not exist or cannot be loaded, or
            images that the model cannot take.
    """
    import timm

    kwargs: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans, **(args or {})}
    kwargs |= {k: v for k, v in {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}.items() if v is not None}
    check_name(name, pretrained)
    if ":" not in name:
        config = timm.models.get_pretrained_cfg(name)
        if image_size is not None and config is not None and config.fixed_input_size:
            kwargs.setdefault("img_size", image_size)
    model = create(name, pretrained, kwargs)
    if image_size is not None:
        _try_image(model, name, in_chans, image_size)
    return model


def create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    """``timm.create_model`` for a name that :func:`check_name` has passed; what goes wrong is a UserError."""
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except UserError:
        raise
    except Exception as e:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(e))
        if unknown:
            raise UserError(f"model {name} does not take {unknown[1]!r}{nearest(unknown[1], _keywords(name))}.") from e
        if pretrained or ":" in name:
            raise UserError(
                f"the weights of {name} cannot be loaded ({first_line(e)}): check network and name, or use pretrained=false."
            ) from e
        raise UserError(f"model {name} cannot be built with {_words(kwargs)} ({first_line(e)}): change one of these.") from e


def check_name(name: str, pretrained: bool) -> None:
    """Raise UserError unless timm knows the name (ours among them) and its tag, and has weights for it where they are wanted.

    Models elsewhere (``hf-hub:``, ``local-dir:``) are only known when they are built.
    """
    import timm

    import papermix.models.registry  # noqa: F401  (makes our own names known to timm)

    if ":" in name:
        return
    architecture, tag = timm.models.split_model_name_tag(name)
    if not timm.is_model(architecture):
        raise UserError(f"timm has no model {name!r}{nearest(architecture, timm.list_models())}.")
    tagged = timm.list_models(f"{architecture}.*", include_tags=True)
    if tag and name not in tagged:
        raise UserError(f"model {architecture} has no weights tagged {tag!r}{nearest(name, tagged)}.")
    if pretrained and not timm.models.is_model_pretrained(name):
        raise UserError(f"there are no pretrained weights for {name}: use pretrained=false.")


def _keywords(name: str) -> list[str]:
    """Parameters of a model's class, for the nearest spelling of a wrong one (none where the class cannot be found)."""
    import timm

    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except Exception:
        return []  # only the hint is lost
    return [p for p in inspect.signature(type(model).__init__).parameters if p not in ("self", "kwargs")]


def _try_image(model: nn.Module, name: str, in_chans: int, image_size: int) -> None:
    """Raise UserError if the model would cut the image's border off, or fails on a blank one. Changes no state."""
    patches = getattr(model, "patch_embed", None)
    patch = getattr(patches, "patch_size", None)
    # timm would leave the border out without a word
    if isinstance(patch, tuple) and any(image_size % p for p in patch) and not getattr(patches, "dynamic_img_pad", False):
        divisor = max((d for d in range(1, image_size // 4 + 1) if image_size % d == 0), default=1)
        raise UserError(
            f"model {name} cuts images into patches of {patch[0]} pixels, of which {image_size} is no multiple: "
            f"use a divisor, for example +model.args.patch_size={divisor}."
        )
    parameter = next(model.parameters())
    image = torch.zeros(1, in_chans, image_size, image_size, device=parameter.device, dtype=parameter.dtype)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(image)
    except Exception as e:
        raise UserError(
            f"model {name} cannot take images of {in_chans}x{image_size}x{image_size} ({first_line(e)}): "
            "use larger images, another model, or other settings (+model.args....)."
        ) from e
    finally:
        model.train(was_training)


def first_line(error: Exception) -> str:
    """Type and first line of an exception, for one sentence."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0].rstrip('. ')}" if text else type(error).__name__


def _words(kwargs: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in kwargs.items())
