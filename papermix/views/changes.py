"""Changes of images [B, C, H, W] in 0 to 1, each image by numbers of its own, without a loop over images. All are pure.

Resizing and blurring are two matrix products an image, one along each axis: the same on every device, and exact.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_matrix(start: Tensor, length: Tensor, size: int, total: int) -> Tensor:
    """What cuts ``length`` of ``total`` pixels from ``start`` on and resizes them to ``size``, as a matrix for each image.

    The filter is torch's antialiased bilinear one: a triangle as wide as the larger of the two pixels. Pixels outside the cut
    take no part.

    Args:
        start, length: [B], whole numbers.

    Returns:
        [B, size, total], rows sum to 1.
    """
    start, length = start.float()[:, None, None], length.float()[:, None, None]
    scale = length / size
    support = scale.clamp_min(1)
    center = start + (torch.arange(size, device=start.device)[:, None] + 0.5) * scale
    pixel = torch.arange(total, device=start.device)
    weight = (1 - (pixel + 0.5 - center).abs() / support).clamp_min(0)
    weight = weight * ((pixel >= start) & (pixel < start + length))
    return weight / weight.sum(2, keepdim=True)


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ image @ columns^T for each image and channel: matrices [B, h, H] and [B, w, W] -> [B, C, h, w]."""
    return rows[:, None] @ (images @ columns[:, None].mT)


def crop_boxes(tries: Tensor, place: Tensor, height: int, width: int, area: tuple[float, float]) -> Tensor:
    """Random crops as torchvision's ``RandomResizedCrop`` draws them (Szegedy et al. 2015).

    The share of the area is uniform in ``area``, the logarithm of width / height in log(3/4) to log(4/3); the first of ten tries
    that fits into the image counts, else the middle of it.

    Args:
        tries: uniform in [0, 1), [B, T, 2].
        place: uniform in [0, 1), [B, 2].

    Returns:
        top, left, height, width as whole numbers, float [4, B].
    """
    share = area[0] + (area[1] - area[0]) * tries[..., 0].double()
    ratio = torch.exp((2 * tries[..., 1].double() - 1) * torch.log(torch.tensor(4 / 3, dtype=torch.float64)))
    wide = (height * width * share * ratio).sqrt().round()
    high = (height * width * share / ratio).sqrt().round()
    fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
    chosen = fits.int().argmax(1, keepdim=True)  # the first that fits
    high, wide = high.gather(1, chosen)[:, 0], wide.gather(1, chosen)[:, 0]
    # nothing fits: the whole image, cut to a ratio that is allowed
    none = ~fits.any(1)
    high = torch.where(none, min(height, round(width * 4 / 3)), high)
    wide = torch.where(none, min(width, round(height * 4 / 3)), wide)
    top, left = (
        torch.where(none, (room / 2).floor(), (u * (room + 1)).floor())
        for u, room in zip(place.double().unbind(1), (height - high, width - wide))
    )
    return torch.stack([top, left, high, wide]).float()


def luma(images: Tensor) -> Tensor:
    """Brightness (ITU-R 601) of [B, 3, H, W], or the one channel itself: [B, 1, H, W]."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def _each(factor: Tensor) -> Tensor:
    return factor[:, None, None, None]


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """factor * x."""
    return (images * _each(factor)).clamp(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """factor * x + (1 - factor) * mean luma of the image."""
    return torch.lerp(luma(images).mean((1, 2, 3), keepdim=True), images, _each(factor)).clamp(0, 1)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """factor * x + (1 - factor) * luma of the pixel."""
    return torch.lerp(luma(images).expand_as(images), images, _each(factor).expand_as(images)).clamp(0, 1)


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue (of HSV) of [B, 3, H, W] by ``turn`` of a full circle."""
    high, low = images.amax(1), images.amin(1)
    chroma = high - low
    red, green, blue = images.unbind(1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    angle = torch.where(
        high == red, (green - blue) / safe, torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )
    angle = (angle / 6 + turn[:, None, None]) % 1
    # x_n = V - C max(0, min(k, 4 - k, 1)), k = (n + 6 hue) mod 6, for red n = 5, green 3, blue 1
    k = (torch.tensor([5.0, 3.0, 1.0], device=images.device)[:, None, None] + 6 * angle[:, None]) % 6
    return high[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def blur_matrix(sigma: Tensor, size: int, width: int) -> Tensor:
    """Gaussian blur of ``size`` pixels in a window of ``width`` (odd), mirrored at the border, as a matrix for each image.

    Args:
        sigma: standard deviations in pixels [B].

    Returns:
        [B, size, size], rows sum to 1.
    """
    radius = width // 2
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    reached = torch.arange(size, device=sigma.device)[:, None] + offsets
    reached = reached.abs()
    reached = torch.where(reached >= size, 2 * (size - 1) - reached, reached)
    spread = F.one_hot(reached, size).to(kernel.dtype)  # [size, width, size]
    return torch.einsum("bk,ikj->bij", kernel, spread)


def solarize(images: Tensor) -> Tensor:
    """Invert what is at least one half."""
    return torch.where(images >= 0.5, 1 - images, images)
