"""Segmentations as pictures: arrays of bytes [H, W, 3], for whatever shows or saves them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from papermix.segmentation.segments import VOID, Category, Segments

Picture = np.ndarray  # uint8 [H, W, 3]

GREY = (150, 150, 150)  # void
RED = (206, 17, 38)  # wrong
LIGHT, DARK = (255, 255, 255), (20, 20, 20)
# the instances of a class, the largest first: towards white above 0, towards black below
SHADES = (0.0, 0.45, -0.35, 0.25, -0.2, 0.6, -0.5)
_STRIPE = 4  # pixels, width of a crowd's stripes


@dataclass(frozen=True)
class View:
    """What a method shows of an image besides the segments that it found.

    Attributes:
        title: for people.
        values: float [h, w], drawn as a heat map from 0 to the highest; or int64 [h, w], numbers of regions, 0 for none.
        frames: int64 [N, 4], first row, first column, last row, last column of what is framed.
    """

    title: str
    values: Tensor
    frames: Tensor


def luminance(color: np.ndarray) -> np.ndarray:
    """Perceived brightness of colours [..., 3] in 0 to 255 (ITU-R BT.601)."""
    return np.asarray(color, np.float64) @ (0.299, 0.587, 0.114)


def palette(categories: Sequence[Category]) -> np.ndarray:
    """Colour of every class, uint8 [256, 3]; grey for ``VOID`` and for numbers that are no class."""
    table = np.full((VOID + 1, 3), GREY, np.uint8)
    table[: len(categories)] = [category.color for category in categories]
    return table


def paint(semantic: Tensor, categories: Sequence[Category]) -> Picture:
    """Classes [H, W] (``VOID`` for none) in their colours."""
    return palette(categories)[semantic.cpu().numpy()]


def shades(segments: Segments, categories: Sequence[Category]) -> np.ndarray:
    """Colour of every segment, uint8 [S + 1, 3], void first: instances of a class differ in brightness by their place in area.

    Stuff, and the largest instance of a class, have the colour of the class itself. Dark colours only become brighter and bright
    ones only darker. Beyond seven instances the shades come again.
    """
    classes, areas = segments.category.cpu().numpy(), segments.areas().cpu().numpy()
    colors = palette(categories)[classes].astype(np.float64)
    for number in np.unique(classes):
        members = np.flatnonzero(classes == number)
        members = members[np.argsort(-areas[members], kind="stable")]
        steps = np.resize(SHADES, len(members))
        brightness = luminance(colors[members[0]])
        if not 64 <= brightness < 192:
            steps = np.abs(steps) if brightness < 64 else -np.abs(steps)
        goal = np.where(steps[:, None] > 0, 255.0, 0.0)
        colors[members] += np.abs(steps)[:, None] * (goal - colors[members])
    return np.concatenate([np.array([GREY]), colors.round()]).astype(np.uint8)


def borders(map: Tensor, framed: Tensor) -> np.ndarray:
    """Pixels of ``framed`` segments that touch another segment or void to the left, right, above or below, bool [H, W].

    Args:
        map: segment numbers [H, W], 0 is void.
        framed: bool [S], which segments have a border.
    """
    numbers = map.cpu().numpy()
    edge = np.zeros(numbers.shape, bool)
    across, down = numbers[:, 1:] != numbers[:, :-1], numbers[1:] != numbers[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge & np.concatenate([[False], framed.cpu().numpy()])[numbers]


def panoptic(segments: Segments, categories: Sequence[Category], image: Picture | None = None, opacity: float = 0.6) -> Picture:
    """Segments in shades of their classes' colours; things have a border of one pixel, white on dark and dark on bright colours.

    Crowds are striped with white. Void is grey, or shows the image.

    Args:
        segments: of a map [H, W].
        categories: of the data, in the network's order.
        image: uint8 [H, W, 3] to lie beneath; None: nothing.
        opacity: of the colours over the image, 0 to 1.
    """
    numbers, table = segments.map.cpu().numpy(), shades(segments, categories)
    picture = table[numbers].astype(np.float64)
    crowd = np.concatenate([[False], segments.crowd.cpu().numpy()])
    if crowd.any():
        rows, columns = (np.arange(side) for side in numbers.shape)
        stripes = (rows[:, None] + columns) // _STRIPE % 2 == 0
        picture[crowd[numbers] & stripes] = LIGHT
    if image is not None:
        picture = np.where(numbers[..., None] > 0, opacity * picture + (1 - opacity) * image, image)
    things = np.array([category.thing for category in categories], bool)[segments.category.cpu().numpy()]
    edge = borders(segments.map, segments.category.new_tensor(things).bool())
    bright = (luminance(table) >= 140)[numbers]
    picture[edge & bright], picture[edge & ~bright] = DARK, LIGHT
    return picture.round().astype(np.uint8)


def errors(image: Picture, predicted: Tensor, truth: Tensor) -> Picture:
    """Wrong pixels red on the pale, grey image; void (which no prediction is judged by) grey.

    Args:
        image: uint8 [H, W, 3].
        predicted, truth: classes [H, W].
    """
    pale = 255 - 0.3 * (255 - luminance(image))
    picture = np.repeat(pale[..., None], 3, -1)
    said, true = predicted.cpu().numpy(), truth.cpu().numpy()
    picture[said != true] = RED
    picture[true == VOID] = GREY
    return picture.round().astype(np.uint8)


def heat(values: Tensor, low: float, high: float, colors: str = "viridis") -> Picture:
    """Numbers [H, W] in the colours of a matplotlib colour map that runs from ``low`` to ``high``; grey where not finite."""
    from matplotlib import colormaps

    numbers = values.float().cpu().numpy()
    good = np.isfinite(numbers)
    part = np.clip((np.where(good, numbers, low) - low) / max(high - low, 1e-12), 0, 1)
    picture = (colormaps[colors](part)[..., :3] * 255).round().astype(np.uint8)
    picture[~good] = GREY
    return picture


def regions(numbers: Tensor, image: Picture) -> Picture:
    """Numbered regions [H, W] in colours that have no meaning (ten, then again), on the pale, grey image where the number is 0."""
    from matplotlib import colormaps

    map = numbers.cpu().numpy()
    colors = np.array([colormaps["tab10"](n)[:3] for n in range(10)]) * 255
    pale = 255 - 0.3 * (255 - luminance(image))
    return np.where(map[..., None] > 0, colors[(map - 1) % 10], pale[..., None]).round().astype(np.uint8)


def framed(picture: Picture, frames: Tensor, size: Sequence[int]) -> Picture:
    """The picture with a white and a dark line, of one pixel each, around ``frames`` [N, 4] (see :class:`View`).

    Args:
        picture: uint8 [H, W, 3].
        frames: in positions of a map of this ``size`` (height, width), which the picture shows enlarged or reduced.
    """
    picture, (height, width) = picture.copy(), picture.shape[:2]
    for away, color in ((2, DARK), (1, LIGHT)):
        for top, left, bottom, right in frames.tolist():
            # the lines lie around what is framed, at the picture's border within it
            first, last = top * height // size[0] - away, (bottom + 1) * height // size[0] + away - 1
            start, stop = left * width // size[1] - away, (right + 1) * width // size[1] + away - 1
            y, x = np.clip([first, last], 0, height - 1), np.clip([start, stop], 0, width - 1)
            picture[y[0] : y[1] + 1, x] = color
            picture[y, x[0] : x[1] + 1] = color
    return picture
