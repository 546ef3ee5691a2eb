"""Floods and shortest paths: distances against a search cell by cell, what an example shows, determinism, bad input."""

import pickle
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.mazes import MazeData, Mazes, around, distances
from papermix.errors import UserError

SIZE = 11


def search(free: np.ndarray, start: tuple[int, int]) -> np.ndarray:
    """Breadth-first, one cell after the other."""
    steps = np.full(free.shape, -1)
    steps[start] = 0
    queue = deque([start])
    while queue:
        y, x = queue.popleft()
        for cell in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            if 0 <= cell[0] < free.shape[0] and 0 <= cell[1] < free.shape[1] and free[cell] and steps[cell] < 0:
                steps[cell] = steps[y, x] + 1
                queue.append(cell)
    return steps


def mazes(kind: str, part: str = "train", count: int = 150, distance: tuple[int, int] = (2, 6), walls: float = 0.3) -> Mazes:
    return Mazes(0, part, count, kind, SIZE, walls, distance)


def data(kind: str = "flood", **others: Any) -> MazeData:
    given = {
        "image_size": SIZE,
        "num_classes": 2,
        "mean": [0.0],
        "std": [1.0],
        "batch_size": 8,
        "train_mazes": 40,
        "test_mazes": 10,
    }
    return MazeData(kind, **{**given, **others})


def test_distances_are_those_of_a_search() -> None:
    draw = np.random.default_rng(0)
    free = draw.random((20, 7, 9)) > 0.35
    start = np.zeros_like(free)
    for n in range(20):
        start[n, n % 7, n % 9] = free[n, n % 7, n % 9] = True
    found = distances(free, start)
    for n in range(20):
        assert (found[n] == search(free[n], (n % 7, n % 9))).all()
    assert around(np.eye(3, dtype=bool)[None])[0].tolist() == [[False, True, False], [True, False, True], [False, True, False]]


def test_a_flood_is_what_the_source_reaches_and_ends_at_the_distance_drawn() -> None:
    source, farthest = mazes("flood"), []
    for n in range(len(source)):
        example = source.read(n)
        image, truth = example["image"].numpy(), example["semantic"].numpy()
        assert set(np.unique(image)) <= {0, 255} and image[0].astype(bool).sum() == 1 and not image[1].any()
        steps = search(image[2] > 0, tuple(np.argwhere(image[0])[0]))
        assert ((steps >= 0) == truth).all()
        farthest.append(int(steps.max()))
    assert set(farthest) == set(range(2, 7))
    assert max(np.bincount(farthest)) < 2.5 * min(np.bincount(farthest)[2:])


def test_a_path_has_all_cells_on_shortest_ways_between_its_ends() -> None:
    source, lengths = mazes("path"), []
    for n in range(len(source)):
        example = source.read(n)
        image, truth = example["image"].numpy(), example["semantic"].numpy()
        one, other = (tuple(np.argwhere(image[c])[0]) for c in (0, 1))
        there, back = search(image[2] > 0, one), search(image[2] > 0, other)
        length = there[other]
        assert ((there >= 0) & (there + back == length) == truth.astype(bool)).all()
        assert truth[one] and truth[other]
        lengths.append(int(length))
    assert set(lengths) == set(range(2, 7))


@pytest.mark.parametrize("kind", ["flood", "path"])
def test_examples_are_a_function_of_seed_part_and_number(kind: str) -> None:
    first, second, short = mazes(kind), pickle.loads(pickle.dumps(mazes(kind))), mazes(kind, count=131)
    for n in (130, 3, 127):
        for name in ("image", "semantic"):
            assert torch.equal(first.read(n)[name], second.read(n)[name]) and torch.equal(
                first.read(n)[name], short.read(n)[name]
            )
    assert not torch.equal(first.read(3)["image"], first.read(4)["image"])
    assert not torch.equal(first.read(3)["image"], mazes(kind, "test").read(3)["image"])


def test_batches_hold_unpadded_cells_and_the_test_part_has_its_own_distance() -> None:
    module = data(distance=[1, 2], test_distance=[5, 6])
    module.setup()
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (8, 3, SIZE, SIZE) and batch["semantic"].dtype == torch.int64
    assert set(batch["image"].unique().tolist()) == {0.0, 1.0}
    assert len(module.rows["val"]) == 4 and module.class_names == ("elsewhere", "flooded")
    sums = {
        split: [int(e) for b in module.loader(split, evaluate=True) for e in b["semantic"].sum((1, 2))]
        for split in ("train", "test")
    }
    assert len(sums["test"]) == 10 and max(sums["train"]) <= 13 and min(sums["test"]) >= 6
    fake = data(fake=True)
    fake.setup()
    assert next(iter(fake.train_dataloader()))["image"].shape == (8, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ({"kind": "flod"}, "did you mean 'flood'"),
        ({"walls": 1.0}, "walls=1.0"),
        ({"distance": [3, 2]}, r"distance=\[3, 2\]"),
        ({"test_distance": [0, 2]}, r"test_distance=\[0, 2\]"),
        ({"train_mazes": 0}, "at least 1"),
        ({"image_size": 1}, "at least 2"),
        ({"num_classes": 3}, "num_classes=2"),
        ({"in_chans": 1}, "in_chans=3"),
    ],
)
def test_bad_settings_are_one_sentence(others: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        data(**others)


def test_walls_that_leave_no_way_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.mazes.MOST", 5)
    with pytest.raises(UserError, match="30 steps apart"):
        mazes("flood", count=4, distance=(30, 30), walls=0.9).read(0)
