"""Drawn figures: the same everywhere, with left and right where the head says."""

import math

import numpy as np
import pytest
import torch

from datamodules.dense.figures import BODY, GROUND, HEAD, LEFT, RIGHT, DrawnFigures, Figures, layout
from papermix.errors import UserError

FACTS = {"num_classes": 5, "mean": [0.5], "std": [0.2], "batch_size": 4}


def middle(classes: np.ndarray, part: int) -> np.ndarray:
    return np.argwhere(classes == part).mean(0)[::-1]  # x, y


@pytest.mark.parametrize("angle", [0.0, 1.0, 2.5, 4.0, 6.0])
def test_legs_lie_behind_the_body_to_the_left_and_right_of_where_the_head_looks(angle: float) -> None:
    classes = layout(64, 0.5, 0.5, angle, 0.15)
    assert set(np.unique(classes)) == {GROUND, BODY, HEAD, LEFT, RIGHT}
    body = middle(layout(64, 0.5, 0.5, angle, 0.15), BODY)
    ahead = np.array([math.cos(angle), math.sin(angle)])
    right = np.array([-math.sin(angle), math.cos(angle)])  # y counts downwards
    assert (middle(classes, HEAD) - body) @ ahead > 5
    for part, side in ((LEFT, -1), (RIGHT, 1)):
        away = middle(classes, part) - body
        assert away @ ahead < -3 and side * (away @ right) > 3
    counts = np.bincount(classes.ravel())
    assert abs(int(counts[LEFT]) - int(counts[RIGHT])) <= 0.25 * counts[LEFT]


def test_a_figure_is_a_function_of_its_number_and_legs_look_alike() -> None:
    drawn = DrawnFigures(0, "train", 300, 32, contrast=16.0, noise=0.0)
    a, b = drawn.read(7), DrawnFigures(0, "train", 9, 32, contrast=16.0, noise=0.0).read(7)
    assert torch.equal(a["image"], b["image"]) and torch.equal(a["semantic"], b["semantic"])
    assert not torch.equal(a["semantic"], DrawnFigures(0, "test", 9, 32, 16.0, 0.0).read(7)["semantic"])
    assert a["image"].dtype == a["semantic"].dtype == torch.uint8 and a["image"].shape == (3, 32, 32)
    colors = [set(map(tuple, a["image"][:, a["semantic"] == part].T.tolist())) for part in range(5)]
    assert all(len(c) == 1 for c in colors) and colors[LEFT] == colors[RIGHT]
    assert len({*map(frozenset, colors)}) == 4
    seen = torch.stack([drawn.read(i)["semantic"] for i in range(40)])
    assert all(0.01 < float((seen == part).float().mean()) < 0.2 for part in (BODY, HEAD, LEFT, RIGHT))


def test_the_data_hold_them() -> None:
    data = Figures(**FACTS, train_figures=12, test_figures=6, val_fraction=0.0)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 32, 32) and batch["semantic"].shape == (4, 32, 32)
    assert data.class_names == ("ground", "body", "head", "left leg", "right leg")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"augment": {"flip": True}}, "left and right"),
        ({"image_size": 8}, "too small"),
        ({"noise": -1.0}, "dataset.noise"),
        ({"num_classes": 4}, "leave them"),
        ({"test_figures": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_is_refused(options: dict, part: str) -> None:
    with pytest.raises(UserError, match=part):
        Figures(**{**FACTS, **options})
