"""Maps: spirals, walls, walks, views and what is asked, against slow code that does the same cell by cell."""

import numpy as np
import pytest
import torch

from datamodules.sequences.maps import MapData, mazes, spiral, walk
from papermix.errors import UserError


def data(**changes) -> MapData:
    view, grid = changes.get("view", 3), changes.get("grid", 12)
    settings = {"map_size": 9, "grid": 12, "density": 0.5, "complexity": 0.1, "batch_size": 3, "seq_len": 20}
    settings |= {"in_shape": [4, view, view], "query_shape": [4, view, view], "out_shape": [1, grid, grid]}
    made = MapData(**settings | {"train_episodes": 6, "val_episodes": 4, "test_episodes": 3} | changes)
    made.setup()
    return made


def walked(made: MapData, split: str = "val") -> dict[str, torch.Tensor]:
    """The first batch of episodes, segments joined."""
    loader = made.loader(split)
    batches, names = [], ("frames", "query", "target", "position", "asked")
    for batch in loader:
        if batches and batch["fresh"].any():
            break
        batches.append(batch)
    return {name: torch.cat([batch[name] for batch in batches], 1) for name in names}


@pytest.mark.parametrize(("size", "cells"), [(25, 529), (9, 49), (5, 9)])
def test_a_spiral_visits_every_inner_cell_once(size: int, cells: int) -> None:
    path = spiral(size - 2)
    assert len(path) == cells and len({tuple(p) for p in path.tolist()}) == cells
    assert (np.abs(np.diff(path, axis=0)).sum(1) == 1).all() and path[0].tolist() == [0, 0]
    # every ring is finished before the next begins
    rings = np.abs(path).max(1)
    assert (np.diff(rings) >= 0).all() and rings[-1] == (size - 3) // 2


def test_the_published_walk() -> None:
    made = data(map_size=25, grid=48, origin=25, density=0.2, complexity=0.05, batch_size=2)
    assert made.walks["train"]["length"] == 529 and len(made.loader("val")) == 2 * 27
    whole = walked(made)
    assert whole["frames"].shape == (2, 529, 4, 3, 3) and whole["target"].shape == (2, 529, 1, 48, 48)
    assert (whole["position"][:, 0] == 25).all() and whole["position"].amin() == 14 and whole["position"].amax() == 36
    assert data().walks["train"]["length"] == 49


def test_walls_leave_all_free_cells_connected() -> None:
    walls = mazes(np.random.default_rng(0), 50, 15, 0.75, 0.2)
    assert walls[:, [0, -1]].all() and walls[:, :, [0, -1]].all() and not walls[:, 1::2, 1::2].any()
    inner = walls[:, 1:-1, 1:-1].mean()
    assert 0.15 < inner < 0.5
    for one in ~walls:
        reached = np.zeros_like(one)
        reached[1, 1] = True
        for _ in range(one.size):
            grown = reached.copy()
            for axis in (0, 1):
                for step in (-1, 1):
                    grown |= np.roll(reached, step, axis) & one
            if (grown == reached).all():
                break
            reached = grown
        assert (reached == one).all()
    assert not mazes(np.random.default_rng(0), 2, 9, 0.0, 0.5)[:, 1:-1, 1:-1].any()


def test_random_walks_go_to_free_neighbours() -> None:
    walls = mazes(np.random.default_rng(1), 20, 11, 0.6, 0.2)
    path = walk(np.random.default_rng(2), walls, 5, 200)
    assert (path[:, 0] == 5).all() and (np.abs(np.diff(path, axis=1)).sum(2) == 1).all()
    assert not walls[np.arange(20)[:, None], path[..., 0], path[..., 1]].any()
    assert len({p.tobytes() for p in path}) == 20
    # each of the free neighbours is taken
    first = {tuple(p[1] - p[0]) for p in walk(np.random.default_rng(3), np.zeros((200, 11, 11), bool), 5, 2)}
    assert first == {(-1, 0), (1, 0), (0, -1), (0, 1)}


@pytest.mark.parametrize(
    "changes", [{}, {"motion": "random", "steps": 70}, {"query": "present"}, {"view": 5, "motion": "random"}, {"view": 1}]
)
def test_targets_hold_every_place_where_the_pattern_was_seen(changes: dict) -> None:
    made = data(**changes)
    whole = walked(made)
    rows, steps = whole["frames"].shape[:2]
    asked_past = set()
    several = 0
    for row in range(rows):
        seen: dict[bytes, set[tuple[int, int]]] = {}
        when: dict[bytes, list[int]] = {}
        for step in range(steps):
            walls = whole["frames"][row, step, 1].numpy().tobytes()
            place = tuple(whole["position"][row, step].tolist())
            seen.setdefault(walls, set()).add(place)
            when.setdefault(walls, []).append(step)
            query = whole["query"][row, step]
            asked = query[1].numpy().tobytes()
            assert asked in seen and not query[2:].any() and torch.equal(query[0], 1 - query[1])
            target = {tuple(p) for p in whole["target"][row, step, 0].nonzero().tolist()}
            assert target == seen[asked]
            several += len(target) > 1
            asked_past.add(asked == walls)
            if changes.get("query") == "present":
                assert asked == walls and place in target
    assert several and (asked_past == {True} or changes.get("query") != "present")
    assert whole["asked"].all()


def test_views_show_the_map_around_the_agent_and_where_it_is() -> None:
    made = data(motion="random", steps=60)
    source = made.sources["val"]
    whole = walked(made)
    origin = made.walks["val"]["origin"]
    offset = (whole["position"] - origin) * 2 / 12
    assert torch.equal(whole["frames"][:, :, 2], offset[..., 0, None, None].expand(-1, -1, 3, 3))
    assert torch.equal(whole["frames"][:, :, 3], offset[..., 1, None, None].expand(-1, -1, 3, 3))
    # views of the same place agree where they overlap: together they are one map
    for row in range(3):
        known: dict[tuple[int, int], float] = {}
        for step in range(60):
            y, x = whole["position"][row, step].tolist()
            assert whole["frames"][row, step, 0, 1, 1] == 1, "the agent stands on a free cell"
            for dy in range(3):
                for dx in range(3):
                    wall = float(whole["frames"][row, step, 1, dy, dx])
                    assert known.setdefault((y + dy, x + dx), wall) == wall
        assert 0 < sum(known.values()) < len(known)
    assert source.length == 60


def test_larger_maps_at_test() -> None:
    made = data(test_map_size=11)
    assert walked(made, "val")["frames"].shape[1] == 49 and walked(made, "test")["frames"].shape[1] == 81
    with pytest.raises(UserError, match=r"test_map_size=15 does not fit dataset.grid=12"):
        data(test_map_size=15)
    # the largest that fits
    assert data(test_map_size=13).walks["test"]["length"] == 121


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"map_size": 8}, "must be odd"),
        ({"view": 2}, "must be 1, 3, 5 or 7"),
        ({"density": 2.0}, r"lie in \[0, 1\]"),
        ({"steps": 50}, "between 1 and the 49 cells"),
        ({"origin": 1}, "does not fit dataset.grid=12 with the start at 1"),
    ],
)
def test_refusals(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        data(**changes)
