"""Procedural scenes of shapes: pictures with every dense truth, drawn from (seed, split, index) alone (words: scene_language).

A scene is a layout in units of the image's side (x to the right, y downwards, 0 to 1), rendered at any size:

- stuff: one to three bands (sky, grass, water, sand) with tilted edges. A band is told by its texture; its colour says nothing;
- things: two to six shapes (disc, square, triangle, star) of equal chances and equal areas, rotated, often touching or covering a
  shape of the same class, in named colours that are drawn independently of the class;
- now and then a crowd, a dense cluster of tiny shapes of one class that is annotated as one segment, and a striped void region.

Distance is that of a pinhole camera above a ground plane: 1 in the sky and at the horizon, 1 / (1 + c b) at b below the horizon.
Every shape is an upright plane in front of the ground; the lower it reaches, the nearer and the larger it tends to be. The order
of distance is the order of occlusion everywhere, and the void region is nearer than all.
"""

import math
import random
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from datamodules.loaders import mix
from papermix.errors import UserError, nearest
from papermix.segmentation.segments import VOID, Category

# network order: things first, then stuff
CATEGORIES = (
    Category(1, "disc", True, (228, 26, 28)),
    Category(2, "square", True, (255, 217, 47)),
    Category(3, "triangle", True, (152, 78, 163)),
    Category(4, "star", True, (247, 129, 191)),
    Category(5, "sky", False, (166, 206, 227)),
    Category(6, "grass", False, (77, 175, 74)),
    Category(7, "water", False, (31, 120, 180)),
    Category(8, "sand", False, (191, 140, 80)),
)
CLASSES = tuple(category.name for category in CATEGORIES)
THINGS = tuple(number for number, category in enumerate(CATEGORIES) if category.thing)
STUFF = tuple(number for number, category in enumerate(CATEGORIES) if not category.thing)
SKY = CLASSES.index("sky")
COLORS = {
    "red": (0.80, 0.13, 0.13),
    "orange": (0.92, 0.50, 0.08),
    "yellow": (0.88, 0.80, 0.14),
    "green": (0.14, 0.58, 0.20),
    "blue": (0.14, 0.30, 0.80),
    "purple": (0.54, 0.18, 0.64),
    "white": (0.87, 0.87, 0.87),
    "black": (0.13, 0.13, 0.13),
}
NAMES = tuple(COLORS)
OUTPUTS = ("image", "panoptic", "semantic", "masks", "full", "depth")

BLOB, STRIP = len(CLASSES), len(CLASSES) + 1  # the kinds of void regions
# kind -> sides, distance of the sides and of the farthest point from the centre, for the area of a disc of radius 1
_FORMS: dict[int, tuple[int, float, float]] = {
    0: (0, 1.0, 1.0),
    1: (4, 0.8862, 1.2534),
    2: (3, 0.7776, 1.5552),
    3: (5, 0.5169, 1.6730),
    BLOB: (6, 0.9523, 1.0997),
    STRIP: (1, 1.0, 2.0),
}
_STAR = 3
# stuff -> directions of its waves (from the x axis, +- degrees), waves in the image's width, contrast
_TEXTURES = {
    4: (0.0, 180.0, 0.6, 2.0, 0.10),
    5: (0.0, 16.0, 6.5, 9.5, 0.17),
    6: (90.0, 12.0, 4.0, 7.0, 0.14),
    7: (0.0, 180.0, 8.0, 11.0, 0.13),
}
_SURFACE = (0.0, 180.0, 3.0, 6.0, 0.07)  # of the things
_WAVES = 12  # in a texture
_FALL = 3.0  # c of the ground's distance
_VOID_DEPTH = 0.05
_NOISE = 30  # width of the pixel noise, of 255
REFERENCE = 32  # side of the grid on which visibility is judged, so that a scene is the same at every size
_SEEN = 6  # pixels of that grid, and ...
_SHARE = 0.25  # ... the part of a shape's area that must be seen, or the shape is left out


@dataclass(frozen=True)
class Band:
    """Stuff below a straight edge (and above the next band's).

    Attributes:
        category: class, as the network counts.
        offset, slope: the upper edge is y = offset + slope (x - 1/2).
        rgb: mean colour, 0 to 1.
    """

    category: int
    offset: float
    slope: float
    rgb: tuple[float, float, float]


@dataclass(frozen=True)
class Shape:
    """A thing, a crowd or a void region.

    Attributes:
        kind: class of a thing, as the network counts; ``BLOB`` or ``STRIP`` for void.
        color: place of its colour in ``NAMES``.
        rgb: that colour as it was mixed for this shape, 0 to 1.
        x, y: centre.
        radius: radius of the disc of the same area (of each member, for a crowd; width of a strip).
        angle: rotation in radians.
        depth: distance, 0 to 1.
        members: centres of the tiny shapes of a crowd; the centre itself otherwise.
    """

    kind: int
    color: int
    rgb: tuple[float, float, float]
    x: float
    y: float
    radius: float
    angle: float
    depth: float
    members: tuple[tuple[float, float], ...]

    @property
    def crowd(self) -> bool:
        """Whether it is a cluster that counts as one segment."""
        return len(self.members) > 1

    @property
    def name(self) -> str:
        """Colour and class, such as "red disc"."""
        return f"{NAMES[self.color]} {CLASSES[self.kind]}"


@dataclass(frozen=True)
class Scene:
    """A layout. See the module's text for the units.

    Attributes:
        key: (seed, split, index) from which it was drawn.
        bands: stuff, from the top.
        horizon: (offset, slope) of the line where the ground begins, the sky's lower edge if there is sky.
        shapes: things and crowds, the nearest first.
        void: the unlabelled region, in front of everything, or None.
        light: direction from which the things are lit, in radians.
    """

    key: tuple[int, str, int]
    bands: tuple[Band, ...]
    horizon: tuple[float, float]
    shapes: tuple[Shape, ...]
    void: Shape | None
    light: float

    def render(self, size: int = 64, what: Collection[str] = OUTPUTS) -> dict[str, Tensor]:
        """Return the picture and the truth, ``size`` x ``size`` pixels.

        Segments are the things and crowds from front to back and then the bands from top to bottom, those with pixels (a band
        with fewer than six is void). Masks are exact at the pixels' centres, the image is smoothed at the edges.

        Args:
            size: side in pixels, at least 32.
            what: which of ``OUTPUTS`` to make; ``category`` and ``crowd`` always come along.

        Returns:
            image: uint8 [3, H, W];  panoptic: int32 [H, W], 0 void, s > 0 segment s;  category: int64 [S];  crowd: bool [S];
            semantic: uint8 [H, W], ``VOID`` where there is no class;  masks: bool [S, H, W], what is seen of every segment;
            full: bool [S, H, W], the same with what others hide;  depth: float32 [1, H, W] in (0, 1].

        Raises:
            UserError: for an unknown output or a smaller size.
        """
        for name in what:
            if name not in OUTPUTS:
                raise UserError(f"a scene has no output {name!r}{nearest(name, OUTPUTS)}: use some of {', '.join(OUTPUTS)}")
        if size < REFERENCE:
            raise UserError(f"size={size} is too small for a scene: use at least {REFERENCE}")
        canvas = Canvas(self, size)
        result = {"category": torch.from_numpy(canvas.category), "crowd": torch.from_numpy(canvas.crowd)}
        result.update((name, torch.from_numpy(getattr(canvas, name)())) for name in what)
        return result


def draw_scene(seed: int, split: str, index: int) -> Scene:
    """Return the scene ``index`` of a split: a function of the three numbers alone, on every machine.

    Args:
        seed: of the data set.
        split: "train", "val", ..., any text.
        index: 0, 1, 2, ... without end.
    """
    attempt = 0
    while True:
        # of Python's generator only random() is used: its values are the same in all versions and on all platforms
        draw = random.Random(mix(seed, "scene", split, index, attempt))
        bands, horizon = _draw_bands(draw)
        things = _draw_things(draw, horizon)
        if draw.random() < 0.25:
            things.append(_draw_crowd(draw, horizon))
        void = _draw_void(draw) if draw.random() < 0.35 else None
        shapes = _visible(sorted(things, key=lambda shape: shape.depth), void)
        if sum(not shape.crowd for shape in shapes) >= 2:
            return Scene((seed, split, index), bands, horizon, shapes, void, draw.uniform(-math.pi, math.pi))
        attempt += 1


def _draw_bands(draw: random.Random) -> tuple[tuple[Band, ...], tuple[float, float]]:
    sky = draw.random() < 0.75
    grounds = sorted(STUFF[1:], key=lambda _: draw.random())[: 1 + int(draw.random() * (2 if sky else 3))]
    top = draw.uniform(0.18, 0.45) if sky else draw.uniform(-0.5, -0.15)
    horizon = (top, draw.uniform(-0.2, 0.2))
    bands = [Band(SKY, -2.0, 0.0, _muted(draw))] if sky else []
    start = max(top, 0.0)
    for number, category in enumerate(grounds):
        # the first ground begins at the horizon, the others cut what is left into about equal parts
        edge = start + (1 - start) * (number + draw.uniform(-0.2, 0.2)) / len(grounds)
        offset, slope = (edge, draw.uniform(-0.3, 0.3)) if number else horizon if sky else (-2.0, 0.0)
        bands.append(Band(category, offset, slope, _muted(draw)))
    return tuple(bands), horizon


def _muted(draw: random.Random) -> tuple[float, float, float]:
    """A colour of any hue, of moderate saturation and brightness."""
    value, chroma, hue = draw.uniform(0.42, 0.78), draw.uniform(0.05, 0.4), draw.random()
    weights = [0.5 + 0.5 * math.cos(2 * math.pi * (hue - third / 3)) for third in range(3)]
    return (value * (1 - chroma * weights[0]), value * (1 - chroma * weights[1]), value * (1 - chroma * weights[2]))


def below(line: tuple[float, float], x: float, y: float) -> float:
    return y - line[0] - line[1] * (x - 0.5)


def _depth(draw: random.Random, horizon: tuple[float, float], x: float, y: float, reach: float) -> float:
    """A distance in front of the ground at every point within ``reach`` of (x, y)."""
    lowest = below(horizon, x, y) + reach * math.hypot(1, horizon[1])
    return draw.uniform(0.8, 0.97) / (1 + _FALL * max(0.0, lowest))


def _mixed(draw: random.Random, color: int) -> tuple[float, float, float]:
    red, green, blue = COLORS[NAMES[color]]
    return (red + draw.uniform(-0.05, 0.05), green + draw.uniform(-0.05, 0.05), blue + draw.uniform(-0.05, 0.05))


def _draw_things(draw: random.Random, horizon: tuple[float, float]) -> list[Shape]:
    things: list[Shape] = []
    for _ in range(2 + int(draw.random() * 5)):
        kind, color = int(draw.random() * len(THINGS)), int(draw.random() * len(NAMES))
        x, y = draw.uniform(0.12, 0.88), draw.uniform(0.15, 0.88)
        jitter = draw.uniform(0.7, 1.4)
        if things and draw.random() < 0.55:  # beside or upon another one, mostly of the same class
            other = things[int(draw.random() * len(things))]
            kind = other.kind if draw.random() < 0.75 else kind
            color = other.color if draw.random() < 0.4 else color
            radius = min(max(other.radius * draw.uniform(0.75, 1.3), 0.065), 0.22)
            way, far = draw.uniform(-math.pi, math.pi), (radius + other.radius) * draw.uniform(0.65, 1.05)
            dx, dy = far * math.cos(way), far * math.sin(way)
            if not (0.08 < other.x + dx < 0.92 and 0.08 < other.y + dy < 0.92):
                dx, dy = -dx, -dy
            x, y = min(max(other.x + dx, 0.08), 0.92), min(max(other.y + dy, 0.08), 0.92)
        else:
            radius = min(max(0.062 * jitter * (1 + _FALL * max(0.0, below(horizon, x, y))), 0.065), 0.22)
        depth = _depth(draw, horizon, x, y, radius * _FORMS[kind][2])
        angle = draw.uniform(-math.pi, math.pi)
        things.append(Shape(kind, color, _mixed(draw, color), x, y, radius, angle, depth, ((x, y),)))
    return things


def _draw_crowd(draw: random.Random, horizon: tuple[float, float]) -> Shape:
    kind, color = int(draw.random() * len(THINGS)), int(draw.random() * len(NAMES))
    radius, members = draw.uniform(0.032, 0.042), 9 + int(draw.random() * 7)
    x, y = draw.uniform(0.15, 0.85), draw.uniform(0.2, 0.85)
    centres = []
    for number in range(members):  # a sunflower's seeds: dense and even
        far, way = 1.2 * radius * math.sqrt(number + 0.5), 2.39996 * number + draw.uniform(-0.2, 0.2)
        centres.append((x + far * math.cos(way), y + far * math.sin(way)))
    reach = radius * (1.2 * math.sqrt(members) + _FORMS[kind][2])
    depth, angle = _depth(draw, horizon, x, y, reach), draw.uniform(-math.pi, math.pi)
    return Shape(kind, color, _mixed(draw, color), x, y, radius, angle, depth, tuple(centres))


def _draw_void(draw: random.Random) -> Shape:
    grey = draw.uniform(0.3, 0.6)
    if draw.random() < 0.5:
        kind, x, y, radius = BLOB, draw.uniform(0.05, 0.95), draw.uniform(0.05, 0.95), draw.uniform(0.07, 0.13)
        angle = draw.uniform(-math.pi, math.pi)
    else:  # along one of the four borders
        side = int(draw.random() * 4)
        kind, x, y, radius = STRIP, (0.5, 1.0, 0.5, 0.0)[side], (0.0, 0.5, 1.0, 0.5)[side], draw.uniform(0.05, 0.12)
        angle = math.pi / 2 * (1 + side) + draw.uniform(-0.08, 0.08)
    return Shape(kind, 0, (grey, grey, grey), x, y, radius, angle, _VOID_DEPTH, ((x, y),))


def _visible(shapes: list[Shape], void: Shape | None) -> tuple[Shape, ...]:
    """Those of ``shapes``, from front to back, of which enough is seen; what is left out hides nothing."""
    taken = np.zeros((REFERENCE, REFERENCE), dtype=bool) if void is None else inside_of(void)
    kept = []
    for shape in shapes:
        rows, columns, distance = _patch(shape, REFERENCE)
        full, before = distance < 0, taken[rows, columns]
        if np.count_nonzero(full > before) >= max(_SEEN, _SHARE * np.count_nonzero(full)):
            before |= full
            kept.append(shape)
    return tuple(kept)


@lru_cache(maxsize=8)
def _centres(size: int) -> np.ndarray:
    """Coordinates of the pixels' centres, float32 [size]."""
    return (np.arange(size, dtype=np.float32) + 0.5) / size


@lru_cache(maxsize=8)
def _normals(sides: int) -> np.ndarray:
    """Directions of a regular polygon's sides, complex [sides]."""
    return np.exp(2j * np.pi * np.arange(sides) / sides)


def _patch(shape: Shape, size: int) -> tuple[slice, slice, np.ndarray]:
    """Rows and columns of the window around a shape, and distances from its outline (negative inside), float32 [h, w]."""
    sides, apothem, reach = _FORMS[shape.kind]
    far = shape.radius * reach + 1 / size if shape.kind != STRIP else 2.0
    if shape.crowd:
        xs, ys = zip(*shape.members)
        low_x, high_x, low_y, high_y = min(xs) - far, max(xs) + far, min(ys) - far, max(ys) + far
    else:
        low_x, high_x, low_y, high_y = shape.x - far, shape.x + far, shape.y - far, shape.y + far
    rows = slice(max(0, int(low_y * size)), min(size, int(high_y * size) + 1))
    columns = slice(max(0, int(low_x * size)), min(size, int(high_x * size) + 1))
    grid = _centres(size)
    centres = np.asarray(shape.members, dtype=np.float32)[:, :, None]
    x, y = grid[columns] - centres[:, 0], grid[rows] - centres[:, 1]  # [members, w], [members, h]
    if sides == 0:
        distance = np.sqrt((x * x)[:, None, :] + (y * y)[:, :, None])
    else:
        normals = _normals(sides) * complex(math.cos(shape.angle), math.sin(shape.angle))
        across = normals.real.astype(np.float32)[:, None, None] * x
        down = normals.imag.astype(np.float32)[:, None, None] * y
        heights = across[:, :, None, :] + down[:, :, :, None]  # [sides, members, h, w], above each side's line through the centre
        distance = _second(heights) if shape.kind == _STAR else heights.max(0)
    return rows, columns, distance.min(0) - apothem * shape.radius


def _second(values: np.ndarray) -> np.ndarray:
    """Second largest of [n, ...]: a point is in a five-pointed star when it is inside at least four of the five sides' lines."""
    first, second = np.maximum(values[0], values[1]), np.minimum(values[0], values[1])
    for value in values[2:]:
        second = np.maximum(second, np.minimum(first, value))
        first = np.maximum(first, value)
    return second


def inside_of(shape: Shape) -> np.ndarray:
    """Whether the points of the reference grid are in a shape, hidden or not: bool [32, 32]."""
    mask = np.zeros((REFERENCE, REFERENCE), dtype=bool)
    rows, columns, distance = _patch(shape, REFERENCE)
    mask[rows, columns] = distance < 0
    return mask


def _column(rgb: tuple[float, float, float]) -> np.ndarray:
    return np.array(rgb, dtype=np.float32)[:, None, None]


def _cover(image: np.ndarray, inside: np.ndarray, paint: np.ndarray) -> None:
    """Paint on an image [3, h, w] where ``inside`` [h, w], pixels from an outline, is positive; mixed at the edge."""
    paint -= image
    paint *= np.clip(inside + 0.5, 0, 1)
    image += paint


class Canvas:
    """A scene at one size. Each method makes the output of its name; what they share is made once."""

    def __init__(self, scene: Scene, size: int):
        self.scene, self.size = scene, size
        x, y = _centres(size), _centres(size)[:, None]
        self.edges = [y - (band.offset + band.slope * (x - 0.5)) for band in scene.bands[1:]]
        # from front to back, with the number of the shape: 0 is void
        self.patches = [(number, shape, *_patch(shape, size)) for number, shape in enumerate(scene.shapes, 1)]
        if scene.void is not None:
            self.patches.insert(0, (0, scene.void, *_patch(scene.void, size)))
        things = len(scene.shapes)
        self.ground = np.full((size, size), things + 1, dtype=np.uint8)
        for number, edge in enumerate(self.edges, things + 2):
            self.ground[edge > 0] = number
        self.numbers = self.ground.copy()
        for number, _, rows, columns, distance in reversed(self.patches):
            self.numbers[rows, columns][distance < 0] = number
        category = [shape.kind for shape in scene.shapes] + [band.category for band in scene.bands]
        crowd = [shape.crowd for shape in scene.shapes] + [False] * len(scene.bands)
        areas = np.bincount(self.numbers.ravel(), minlength=len(category) + 1)[1:]
        self.seen = areas > 0
        self.seen[things:] = areas[things:] >= _SEEN
        self.category, self.crowd = np.array(category)[self.seen], np.array(crowd)[self.seen]
        self.segment = np.concatenate([[0], np.cumsum(self.seen) * self.seen]).astype(np.int32)

    def panoptic(self) -> np.ndarray:
        return self.segment[self.numbers]

    def semantic(self) -> np.ndarray:
        return np.append(VOID, self.category).astype(np.uint8)[self.segment][self.numbers]

    def masks(self) -> np.ndarray:
        return self.numbers == (np.flatnonzero(self.seen) + 1).astype(np.uint8)[:, None, None]

    def full(self) -> np.ndarray:
        things = len(self.scene.shapes)
        masks = np.zeros((len(self.seen), self.size, self.size), dtype=bool)
        masks[things:] = self.ground == np.arange(things + 1, len(masks) + 1, dtype=np.uint8)[:, None, None]
        for number, _, rows, columns, distance in self.patches:
            if number:
                masks[number - 1, rows, columns] = distance < 0
        return masks[self.seen]

    def depth(self) -> np.ndarray:
        offset, slope = self.scene.horizon
        grid = _centres(self.size)
        depth = 1 / (1 + _FALL * np.maximum(grid[:, None] - (offset + slope * (grid - 0.5)), 0))
        for _, shape, rows, columns, distance in reversed(self.patches):
            depth[rows, columns][distance < 0] = shape.depth
        return depth[None]

    def image(self) -> np.ndarray:
        draw = np.random.Generator(np.random.PCG64(mix(*self.scene.key, "pixels")))
        *grounds, surface = self._textures(draw.random((len(self.scene.bands) + 1, 3, _WAVES), dtype=np.float32))
        image = _column(self.scene.bands[0].rgb) * grounds[0]
        for band, edge, ground in zip(self.scene.bands[1:], self.edges, grounds[1:]):
            _cover(image, edge * self.size, _column(band.rgb) * ground)
        for _, shape, rows, columns, distance in reversed(self.patches):
            paint = _column(shape.rgb) * self._shade(shape, rows, columns, distance, surface)
            _cover(image[:, rows, columns], distance * -self.size, paint)
        image *= 255
        image -= _NOISE / 2
        image += draw.random(image.shape, dtype=np.float32) * _NOISE
        return np.clip(image, 0, 255, out=image).astype(np.uint8)

    def _textures(self, numbers: np.ndarray) -> np.ndarray:
        """Sums of plane waves of random direction, length and phase around 1, float32 [bands and things, H, W]."""
        kinds = [_TEXTURES[band.category] for band in self.scene.bands] + [_SURFACE]
        middle, spread, low, high, contrast = np.array(kinds, dtype=np.float32).T[:, :, None]
        way = np.deg2rad(middle + spread * (2 * numbers[:, 0] - 1))
        waves = 2 * np.pi * (low + (high - low) * numbers[:, 1])
        grid = _centres(self.size)
        across = (waves * np.cos(way))[:, :, None] * grid + 2 * np.pi * numbers[:, 2, :, None]
        down = (waves * np.sin(way))[:, :, None] * grid
        # cos(a + b) = cos a cos b - sin a sin b: a sum over waves is a product of matrices
        left = np.concatenate([np.cos(down), -np.sin(down)], 1).transpose(0, 2, 1)
        right = np.concatenate([np.cos(across), np.sin(across)], 1)
        right *= (contrast * math.sqrt(2 / _WAVES))[:, :, None]
        textures = np.empty((len(kinds), self.size, self.size), dtype=np.float32)
        # strips so small that OpenBLAS uses one thread: waking others costs far more than the whole product
        strip = max(1, 8192 // self.size)
        for top in range(0, self.size, strip):
            np.matmul(left[:, top : top + strip], right, out=textures[:, top : top + strip])
        textures += 1
        return textures

    def _shade(self, shape: Shape, rows: slice, columns: slice, distance: np.ndarray, surface: np.ndarray) -> np.ndarray:
        """Brightness of a shape's pixels, float32 [h, w]."""
        grid = _centres(self.size)
        x, y = grid[columns] - shape.x, grid[rows, None] - shape.y
        if shape.kind in (BLOB, STRIP):
            return np.where((x + y) * 10 % 1 < 0.5, 0.6, 1.4)
        reach = shape.radius if not shape.crowd else 0.15
        lit = 1 + (x * math.cos(self.scene.light) + y * math.sin(self.scene.light)) * (0.16 / reach)
        rim = np.clip(distance * (-3 / shape.radius), 0, 1)  # 0 at the outline, 1 well inside
        shade = (0.65 + 0.35 * rim) * lit * surface[rows, columns]
        # the mean over a shape says nothing about its outline
        inside = distance < 0
        return shade * (np.count_nonzero(inside) / max(float((shade * inside).sum()), 1e-6))
