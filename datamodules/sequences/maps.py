"""Mapping and localisation: an agent walks through a map, sees what is around it, and is asked where it saw a pattern.

Huynh, Maire & Walter 2020, section 4.1, in the settings of the authors' code.
"""

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.loaders import Batch
from datamodules.sequences.base import Drawn, DrawnData, Source, at
from papermix.errors import UserError

Bits = NDArray[np.bool_]
Places = NDArray[np.int64]

# up, left, down, right: row and column
DIRECTIONS = np.array([[-1, 0], [0, -1], [1, 0], [0, 1]])


def mazes(random: np.random.Generator, count: int, size: int, density: float, complexity: float) -> Bits:
    """Walls of ``count`` maps, bool [count, size, size]: the border, and pieces of wall that grow from random crossings.

    Crossings are the cells with even row and column. ``density`` times their number (those of one half of the border aside) of
    pieces are begun, and each tries ``10 * size * complexity`` times to grow by two cells in a random direction, onto a crossing
    that is free. Walls thus never close a circle: all free cells are connected.

    Args:
        size: odd.
        density, complexity: see above; a density of 0 leaves the map empty.
    """
    walls = np.zeros((count, size, size), bool)
    walls[:, [0, -1]] = walls[:, :, [0, -1]] = True
    every = np.arange(count)
    for _ in range(int(density * (size // 2) ** 2)):
        place = 2 * random.integers(0, size // 2 + 1, (count, 2))
        walls[every, place[:, 0], place[:, 1]] = True
        for _ in range(int(10 * size * complexity)):
            step = DIRECTIONS[random.integers(0, 4, count)]
            far = place + 2 * step
            free = ((far >= 0) & (far < size)).all(1)
            free[free] = ~walls[every[free], far[free, 0], far[free, 1]]
            for cell in (place + step, far):
                walls[every[free], cell[free, 0], cell[free, 1]] = True
            place = np.where(free[:, None], far, place)
    return walls


def spiral(side: int) -> Places:
    """All cells of a square of odd ``side`` from its centre outwards, each next to the one before: offsets [side * side, 2]."""
    turns = [DIRECTIONS[3], DIRECTIONS[2], DIRECTIONS[1], DIRECTIONS[0]]
    steps = [turn for run in range(2 * side) for turn in [turns[run % 4]] * (run // 2 + 1)]
    return np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(steps, 0)])[: side * side]


def walk(random: np.random.Generator, walls: Bits, start: int, steps: int) -> Places:
    """Random walks through free cells from (start, start), each step to one of the free neighbours: [count, steps, 2]."""
    count = len(walls)
    place = np.full((count, 2), start)
    path = [place]
    draws = random.random((steps - 1, count, 4))
    for draw in draws:
        near = place[:, None] + DIRECTIONS
        free = ~walls[np.arange(count)[:, None], near[..., 0], near[..., 1]]
        choice = (draw + free).argmax(1)
        there = free[np.arange(count), choice]
        place = np.where(there[:, None], near[np.arange(count), choice], place)
        path.append(place)
    return np.stack(path, 1)


class Walks(Drawn):
    """Walks through maps. Of an episode are kept: `walls` [L, view, view] around the agent, the `cell` [L] of the output grid that it
    stands on, the number `pattern` [L] of what it sees, and which earlier step is asked about, `asked_step` [L].

    Args:
        size, density, complexity: of the maps, see :func:`mazes`.
        motion: ``spiral`` through all cells, walls or not, or ``random`` through the free ones.
        view: side of what is seen, odd.
        grid, origin: side of the output grid, and the row and column there of the cell where the agent starts.
        query: ``past`` (an earlier step or this one, drawn evenly) or ``present`` (this one).
        others: see :class:`datamodules.sequences.base.Drawn`.
    """

    def __init__(
        self,
        *,
        size: int,
        density: float,
        complexity: float,
        motion: str,
        view: int,
        grid: int,
        origin: int,
        query: str,
        **others: Any,
    ):
        super().__init__(**others)
        self.size, self.density, self.complexity, self.motion = size, density, complexity, motion
        self.view, self.grid, self.origin, self.query = view, grid, origin, query

    @property
    def start(self) -> int:
        """Row and column of the map's cell where the agent starts: the centre, or a cell beside it that is no crossing of walls."""
        centre = self.size // 2
        return centre if self.motion == "spiral" else centre + (centre + 1) % 2

    def draw(self, random: np.random.Generator, count: int) -> Batch:
        """See :class:`datamodules.sequences.base.Drawn`."""
        walls = mazes(random, count, self.size, self.density, self.complexity)
        if self.motion == "spiral":
            path = np.broadcast_to(self.start + spiral(self.size - 2), (count, (self.size - 2) ** 2, 2))[:, : self.length]
        else:
            path = walk(random, walls, self.start, self.length)
        # what lies outside the map is wall
        reach = self.view // 2
        padded = np.pad(walls, ((0, 0), (reach, reach), (reach, reach)), constant_values=True)
        around = np.arange(self.view)
        rows, columns = path[..., 0, None, None] + around[:, None], path[..., 1, None, None] + around
        seen = padded[np.arange(count)[:, None, None, None], rows, columns]
        pattern = seen.reshape(count, self.length, -1) @ (1 << np.arange(self.view**2, dtype=np.int64))
        place = path - self.start + self.origin
        steps = np.arange(self.length)
        asked = (
            (random.random((count, self.length)) * (steps + 1)).astype(np.int64)
            if self.query == "past"
            else np.tile(steps, (count, 1))
        )
        arrays = {"walls": seen, "cell": place[..., 0] * self.grid + place[..., 1], "pattern": pattern, "asked_step": asked}
        return {name: torch.from_numpy(values) for name, values in arrays.items()}

    def segment(self, held: Batch, steps: Tensor) -> Batch:
        """`frames` [rows, T, 4, view, view]: free, wall, and the agent's row and column from the start in halves of the grid, the same
        in all pixels; `query` likewise, without row and column; `target` float32 [rows, T, 1, grid, grid]: 1 where the queried
        pattern was seen, this step included; `position` int64 [rows, T, 2], the agent's row and column in the grid."""
        walls, cell = at(held["walls"], steps), at(held["cell"], steps)
        position = torch.stack([cell // self.grid, cell % self.grid], -1)
        place = ((position - self.origin) * 2 / self.grid)[..., None, None].expand(-1, -1, -1, self.view, self.view)
        frames = torch.cat([torch.stack([~walls, walls], 2).float(), place], 2)
        queried = at(held["asked_step"], steps)
        wanted = at(held["walls"], queried)
        query = torch.cat([torch.stack([~wanted, wanted], 2).float(), torch.zeros_like(place)], 2)
        same = held["pattern"][:, None] == at(held["pattern"], queried)[:, :, None]
        same &= torch.arange(same.shape[2], device=steps.device) <= steps[..., None]
        row, step, past = same.nonzero(as_tuple=True)
        target = torch.zeros(*steps.shape, self.grid**2, device=steps.device)
        target[row, step, held["cell"][row, past]] = 1
        return {
            "frames": frames,
            "query": query,
            "target": target.view(*steps.shape, 1, self.grid, self.grid),
            "position": position,
            "asked": torch.ones_like(steps, dtype=torch.bool),
        }


class MapData(DrawnData):
    """Maps to be remembered; the batch is that of :meth:`Walks.segment`.

    Args:
        map_size: side of the maps in cells with their border, odd.
        test_map_size: the same for the test part; None: as in training.
        density, complexity: see :func:`mazes`; density 0: empty maps.
        motion: spiral or random.
        steps: of a walk; None: as many as the map has cells inside its border (the whole spiral).
        view: side of what the agent sees, odd, at most 7.
        query: past (mapping) or present (localisation: where have I seen what I see now?).
        grid: side of the output grid.
        origin: row and column there of the cell where the agent starts; None: grid / 2.
        others: see :class:`datamodules.sequences.base.DrawnData`.

    Raises:
        UserError: values out of range, a map that does not fit the grid.
    """

    def __init__(
        self,
        *,
        map_size: int = 25,
        test_map_size: int | None = None,
        density: float = 0.2,
        complexity: float = 0.05,
        motion: Literal["spiral", "random"] = "spiral",
        steps: int | None = None,
        view: int = 3,
        query: Literal["past", "present"] = "past",
        grid: int = 48,
        origin: int | None = None,
        **others: Any,
    ):
        super().__init__(**others)
        for key, size in (("map_size", map_size), ("test_map_size", test_map_size or map_size)):
            if size < 5 or size % 2 == 0:
                raise UserError(f"dataset.{key}={size} must be odd and at least 5: walls stand on every second cell")
        if view not in (1, 3, 5, 7):
            raise UserError(f"dataset.view={view} must be 1, 3, 5 or 7")
        if not 0 <= density <= 1 or not 0 <= complexity <= 1:
            raise UserError(f"dataset.density={density} and dataset.complexity={complexity} must lie in [0, 1]")
        self.check_shapes(in_shape=(4, view, view), query_shape=(4, view, view), out_shape=(1, grid, grid))
        self.walks: dict[str, dict[str, Any]] = {}
        origin = grid // 2 if origin is None else origin
        for split in self.counts:
            key, size = ("test_map_size", test_map_size) if split == "test" and test_map_size else ("map_size", map_size)
            most = (size - 2) ** 2
            if steps is not None and (steps < 1 or (motion == "spiral" and steps > most)):
                raise UserError(
                    f"dataset.steps={steps} must lie between 1 and the {most} cells of the spiral of dataset.{key}={size}"
                )
            facts = {"size": size, "density": density, "complexity": complexity, "motion": motion, "view": view, "grid": grid}
            self.walks[split] = {**facts, "origin": origin, "query": query, "length": steps or most}
            start = Walks(**self.walks[split], key=(), count=0, endless=False).start
            if not 0 <= origin - start + 1 <= origin - start + size - 2 < grid:
                raise UserError(
                    f"dataset.{key}={size} does not fit dataset.grid={grid} with the start at {origin}: "
                    f"use a grid of at least {size} (and its middle as origin), or smaller maps"
                )

    def source(self, split: str, key: tuple[int | str, ...], count: int, endless: bool) -> Source:
        return Walks(**self.walks[split], key=key, count=count, endless=endless)
