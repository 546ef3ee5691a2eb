"""A small convolutional network for digits and Fashion-MNIST on a laptop."""

from collections.abc import Sequence

from torch import nn

from papermix.errors import UserError
from papermix.models.image_model import ImageModel, Pool, check_positive, conv_norm_act


class SmallCNN(ImageModel):
    """Stages of 3x3 convolution, batch norm and ReLU, a 2x2 max pool between two stages, mean over positions, one classifier.

    The default has five convolutions, 0.28 M parameters, and takes 28x28 images through 28, 14 and 7 pixels.

    Args:
        widths: channels of each stage.
        convs: convolutions of each stage.
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        global_pool: ``avg``, ``max`` or ``""``.
        drop_rate: dropout probability before the classifier.

    Raises:
        UserError: when ``widths`` and ``convs`` differ in length or hold numbers below 1.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128),
        convs: Sequence[int] = (1, 2, 2),
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: Pool = "avg",
        drop_rate: float = 0.0,
    ):
        check_positive(in_chans=in_chans)
        parts, features = conv_stages(in_chans, widths, convs)
        super().__init__(parts, features, num_classes, in_chans, global_pool, drop_rate)


def conv_stages(
    in_chans: int, widths: Sequence[int], convs: Sequence[int]
) -> tuple[dict[str, nn.Module], list[tuple[str, int, int]]]:
    """Stages ``stage1``, ... of ``convs[i]`` convolutions to ``widths[i]`` channels, from the second on with a pool in front.

    Pools round sizes up, so that a small image stops shrinking at one pixel. Returns the parts and their features, as
    ``ImageModel`` takes them.
    """
    if not widths or len(widths) != len(convs):
        raise UserError(f"widths={list(widths)} and convs={list(convs)} must have one number for each stage.")
    check_positive(**{f"widths[{i}]": w for i, w in enumerate(widths)}, **{f"convs[{i}]": c for i, c in enumerate(convs)})
    parts: dict[str, nn.Module] = {}
    features: list[tuple[str, int, int]] = []
    for i, (width, count) in enumerate(zip(widths, convs)):
        layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True)] if i else []
        for _ in range(count):
            layers.append(conv_norm_act(in_chans, width))
            in_chans = width
        parts[f"stage{i + 1}"] = nn.Sequential(*layers)
        features.append((f"stage{i + 1}", width, 2**i))
    return parts, features
