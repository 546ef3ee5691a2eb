"""RandAugment for batches of bytes (Cubuk et al. 2020), with torchvision's kernels and ranges."""

import math

from torch import Tensor

RANDAUGMENT_OPS = tuple(
    "identity shear_x shear_y translate_x translate_y rotate brightness color contrast sharpness "
    "posterize solarize autocontrast equalize".split()
)


def randaugment_op(images: Tensor, name: str, magnitude: int, sign: int) -> Tensor:
    """Apply one operation of RandAugment, with torchvision's kernels and ranges, to all of ``images``.

    Args:
        images: uint8 [B, C, H, W].
        name: one of ``RANDAUGMENT_OPS``.
        magnitude: 0 to 30.
        sign: 1 or -1; reverses shear, translation, rotation and the four enhancements, and leaves the others alone.
    """
    from torchvision.transforms.v2 import functional as V

    part = sign * magnitude / 30
    height, width = images.shape[-2:]

    def affine(translate: list[float], shear: list[float]) -> Tensor:
        return V.affine(images, angle=0.0, translate=translate, scale=1.0, shear=shear, center=[0.0, 0.0])

    match name:
        case "identity":
            return images
        case "shear_x":
            return affine([0, 0], [math.degrees(math.atan(0.3 * part)), 0.0])
        case "shear_y":
            return affine([0, 0], [0.0, math.degrees(math.atan(0.3 * part))])
        case "translate_x":
            return affine([int(150 / 331 * width * part), 0], [0.0, 0.0])
        case "translate_y":
            return affine([0, int(150 / 331 * height * part)], [0.0, 0.0])
        case "rotate":
            return V.rotate(images, angle=30 * part)
        case "brightness":
            return V.adjust_brightness(images, 1 + 0.9 * part)
        case "color":
            return V.adjust_saturation(images, 1 + 0.9 * part)
        case "contrast":
            return V.adjust_contrast(images, 1 + 0.9 * part)
        case "sharpness":
            return V.adjust_sharpness(images, 1 + 0.9 * part)
        case "posterize":
            return V.posterize(images, bits=8 - round(magnitude / 7.5))
        case "solarize":
            return V.solarize(images, threshold=255 * (1 - magnitude / 30))
        case "autocontrast":
            return V.autocontrast(images)
        case "equalize":
            return V.equalize(images)
    raise ValueError(f"unknown operation {name}")


def randaugment(images: Tensor, ops: Tensor, signs: Tensor, magnitude: int) -> Tensor:
    """RandAugment (Cubuk et al. 2020, section 3): to each image some operations, one after the other, all of one magnitude.

    Images that drew the same operation and sign are changed together.

    Args:
        images: uint8 [B, C, H, W].
        ops: int64 [B, N] on the CPU, indices into ``RANDAUGMENT_OPS``.
        signs: int64 [B, N] on the CPU, 0 or 1; 1 reverses.
        magnitude: 0 to 30.
    """
    images = images.clone()
    for choice in (ops * 2 + signs).unbind(1):
        for code in choice.unique().tolist():
            chosen = (choice == code).nonzero()[:, 0].to(images.device)
            changed = randaugment_op(images.index_select(0, chosen), RANDAUGMENT_OPS[code // 2], magnitude, 1 - 2 * (code % 2))
            images.index_copy_(0, chosen, changed)
    return images
