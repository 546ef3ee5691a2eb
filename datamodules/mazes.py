"""Floods and shortest paths on grids with walls: tasks that a loop solves (Savarese & Maire 2019).

Everything is a function of (seed, part, number of the example). A step leads from a free cell to a free one of its four
neighbours.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.dense.augment import Example
from datamodules.dense.base import DenseData
from datamodules.loaders import mix
from papermix.errors import UserError, nearest
from papermix.segmentation.segments import Category

Bits = NDArray[np.bool_]
Steps = NDArray[np.int16]

CATEGORIES = {
    "flood": (Category(0, "elsewhere", False, (38, 38, 58)), Category(1, "flooded", False, (86, 180, 233))),
    "path": (Category(0, "elsewhere", False, (38, 38, 58)), Category(1, "on a shortest path", False, (240, 190, 60))),
}
# examples that are made at once; draws until one has a cell at the distance asked for
CHUNK, MOST = 128, 1000


def around(cells: Bits) -> Bits:
    """The cells [N, H, W] that have one of ``cells`` as a neighbour."""
    out = np.zeros_like(cells)
    out[:, 1:] |= cells[:, :-1]
    out[:, :-1] |= cells[:, 1:]
    out[:, :, 1:] |= cells[:, :, :-1]
    out[:, :, :-1] |= cells[:, :, 1:]
    return out


def distances(free: Bits, start: Bits) -> Steps:
    """Steps from the nearest cell of ``start`` to every cell, int16 [N, H, W]; -1 where none leads to.

    Args:
        free: the cells [N, H, W] that can be entered.
        start: where paths begin, free ones.
    """
    steps = np.full(free.shape, -1, np.int16)
    front, count = start & free, 0
    while front.any():
        steps[front] = count
        front = around(front) & free & (steps < 0)
        count += 1
    return steps


class Mazes:
    """The examples ``0 ... count - 1`` of a part, made in chunks when one of them is read, and kept.

    Args:
        seed, part: what the examples are a function of, besides their number.
        count: how many.
        kind: ``flood`` or ``path``.
        size: side of the grid in cells.
        walls: probability that a cell is a wall.
        distance: lowest and highest number of steps: from the source to the farthest cell of a flood, from end to end of a path.
    """

    def __init__(self, seed: int, part: str, count: int, kind: str, size: int, walls: float, distance: tuple[int, int]):
        self.seed, self.part, self.count, self.kind = seed, part, count, kind
        self.size, self.walls, self.distance = size, walls, distance
        self.made: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Example:
        """Example ``index``: `image` uint8 [3, H, W], 255 for source or ends of the path (red: one, green: the other), blue: free
        cells; `semantic` uint8 [H, W], 1 for what is flooded or on a shortest path."""
        chunk, place = divmod(index, CHUNK)
        if chunk not in self.made:
            self.made[chunk] = self._make(range(chunk * CHUNK, min((chunk + 1) * CHUNK, self.count)))
        images, truths = self.made[chunk]
        return {"image": images[place], "semantic": truths[place], "image_id": index}

    def _make(self, numbers: range) -> tuple[Tensor, Tensor]:
        shape = (len(numbers), self.size, self.size)
        generators = [np.random.default_rng(mix("maze", self.seed, self.part, n)) for n in numbers]
        low, high = self.distance
        free, start, steps = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, np.int16)
        # how far is drawn first: redrawing only the walls keeps it uniform
        far = np.array([draw.integers(low, high + 1) for draw in generators])
        missing = np.arange(len(numbers))
        for _ in range(MOST):
            for n in map(int, missing):
                free[n] = generators[n].random(shape[1:]) >= self.walls
                row, column = generators[n].integers(0, self.size, 2)
                start[n] = False
                start[n, row, column] = free[n, row, column] = True
            steps[missing] = distances(free[missing], start[missing])
            missing = missing[(steps[missing].max((1, 2)) < far[missing])]
            if not len(missing):
                break
        else:
            raise UserError(
                f"dataset.walls={self.walls} on {self.size}x{self.size} cells leaves no two cells "
                f"{int(far[missing[0]])} steps apart: use fewer walls, a larger dataset.image_size or a shorter dataset.distance"
            )
        limit = far[:, None, None]
        image = np.zeros((len(numbers), 3, *shape[1:]), np.uint8)
        image[:, 0] = start
        if self.kind == "flood":
            # a wall around what is reached in so many steps: the flood ends there, other free cells lie behind
            truth = (steps >= 0) & (steps <= limit)
            free &= steps != limit + 1
        else:
            goal = np.zeros(shape, bool)
            for n, draw in enumerate(generators):
                goal[n].flat[draw.choice(np.flatnonzero(steps[n] == far[n]))] = True
            back = distances(free, goal)
            truth = (steps >= 0) & (back >= 0) & (steps + back == limit)
            image[:, 1] = goal
        image[:, 2] = free
        return torch.from_numpy(image * np.uint8(255)), torch.from_numpy(truth.astype(np.uint8))


class MazeData(DenseData):
    """Grids with random walls as images of three channels; the truth is a class for every cell, 0 or 1.

    ``flood``: all cells that the water from one source reaches. The task is the same at every distance, so a network can be asked
    for farther floods than it was trained on. ``path``: all cells on a shortest path between two ends.

    Args:
        kind: flood or path.
        image_size: side of the grid in cells.
        walls: probability that a cell is a wall, in [0, 1).
        distance: lowest and highest number of steps, drawn evenly: to the farthest cell of the flood, from end to end of the
            path.
        test_distance: the same for the test part; None: as in training.
        train_mazes, test_mazes: how many grids the parts have; the val split is cut from the training part.
        maze_seed: another one, other grids; the order and the augmentation have ``seed``.
        others: see :class:`datamodules.dense.base.DenseData`.

    Raises:
        UserError: values out of range; walls that leave no path of the length asked for (while reading).
    """

    # cells are never padded
    multiple = 1

    def __init__(
        self,
        kind: str,
        *,
        image_size: int = 16,
        walls: float = 0.3,
        distance: tuple[int, int] = (1, 6),
        test_distance: tuple[int, int] | None = None,
        train_mazes: int = 2000,
        test_mazes: int = 500,
        maze_seed: int = 0,
        **others: Any,
    ):
        if kind not in CATEGORIES:
            raise UserError(f"dataset.kind={kind} is not known{nearest(kind, CATEGORIES)}: use flood or path")
        super().__init__(image_size=image_size, **others)
        if image_size < 2:
            raise UserError(f"dataset.image_size={image_size} is too small for a maze: use at least 2")
        if not 0 <= walls < 1:
            raise UserError(f"dataset.walls={walls} must lie in [0, 1)")
        if train_mazes < 1 or test_mazes < 1:
            raise UserError("dataset.train_mazes and dataset.test_mazes must be at least 1")
        for key, steps in (("distance", distance), ("test_distance", test_distance or distance)):
            if len(steps) != 2 or not 1 <= steps[0] <= steps[1]:
                raise UserError(f"dataset.{key}={list(steps)} must be the lowest and the highest number of steps, such as [1, 6]")
        if self.num_classes != 2 or self.in_chans != 3:
            raise UserError("mazes have dataset.num_classes=2 and dataset.in_chans=3: leave them as they are")
        self.kind_of_maze, self.walls, self.maze_seed, self.side = kind, walls, maze_seed, image_size
        farther = test_distance or distance
        self.steps = {"train": (distance[0], distance[1]), "test": (farther[0], farther[1])}
        self.counts = {"train": train_mazes, "test": test_mazes}
        self.categories = CATEGORIES[kind]

    def sources(self) -> dict[str, Any]:
        facts = (self.kind_of_maze, self.side, self.walls)
        return {part: Mazes(self.maze_seed, part, self.counts[part], *facts, steps) for part, steps in self.steps.items()}
