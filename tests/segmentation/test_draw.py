"""Segmentations as pictures: the right colour at chosen pixels."""

import numpy as np
import torch

from papermix.segmentation import draw
from papermix.segmentation.segments import VOID, Category, Segments

SKY = Category(21, "sky", False, (10, 90, 200))
CAT = Category(3, "cat", True, (40, 160, 40))
PALE = Category(7, "sheep", True, (250, 240, 200))
NIGHT = Category(9, "bat", True, (10, 0, 30))
CATEGORIES = (SKY, CAT, PALE, NIGHT)


def touching() -> Segments:
    """Sky above two cats that touch, 8x12: the left one is the larger; void in the last column."""
    map = torch.ones(8, 12, dtype=torch.int64)
    map[3:, :7], map[3:, 7:] = 2, 3
    map[:, 11] = 0
    return Segments.of(map, torch.tensor([0, 1, 1]))


def test_classes_have_their_colours_and_void_is_grey() -> None:
    picture = draw.paint(torch.tensor([[0, 1], [VOID, 3]]), CATEGORIES)
    assert picture.dtype == np.uint8
    assert picture.tolist() == [[[10, 90, 200], [40, 160, 40]], [list(draw.GREY), [10, 0, 30]]]


def test_instances_of_a_class_differ_and_stuff_has_the_colour_of_its_class() -> None:
    table = draw.shades(touching(), CATEGORIES)
    assert table[0].tolist() == list(draw.GREY)
    assert table[1].tolist() == list(SKY.color)
    assert table[2].tolist() == list(CAT.color), "the largest has the colour of the class"
    assert table[3].tolist() == [137, 203, 137], "45 % towards white"
    many = Segments.of(torch.arange(1, 8)[None], torch.ones(7, dtype=torch.int64))
    assert len(np.unique(draw.shades(many, CATEGORIES), axis=0)) == 8


def test_shades_of_bright_and_dark_colours_stay_apart_from_them() -> None:
    for number, brighter in ((2, False), (3, True)):
        segments = Segments.of(torch.arange(1, 7)[None], torch.full((6,), number))
        brightness = draw.luminance(draw.shades(segments, CATEGORIES)[1:])
        assert (np.diff(np.sort(brightness)) > 5).all()
        assert (brightness[1:] > brightness[0]).all() == brighter
        assert (brightness[1:] < brightness[0]).all() != brighter


def test_borders_where_two_instances_touch_and_only_inside_framed_segments() -> None:
    segments = touching()
    edge = draw.borders(segments.map, torch.tensor([False, True, True]))
    expected = np.zeros((8, 12), bool)
    expected[3, :11] = True  # towards the sky
    expected[3:, 6:8] = True  # between the two
    expected[3:, 10] = True  # towards void
    np.testing.assert_array_equal(edge, expected)
    assert not draw.borders(segments.map, torch.zeros(3, dtype=torch.bool)).any()


def test_panoptic_picture() -> None:
    segments = touching()
    picture = draw.panoptic(segments, CATEGORIES)
    table = draw.shades(segments, CATEGORIES)
    assert picture[2, 5].tolist() == list(SKY.color), "stuff has no border"
    assert picture[6, 2].tolist() == table[2].tolist()
    assert picture[6, 9].tolist() == table[3].tolist()
    assert picture[6, 6].tolist() == list(draw.LIGHT), "the dark one's border is white"
    assert picture[6, 7].tolist() == list(draw.DARK), "the bright one's is dark"
    assert picture[6, 11].tolist() == list(draw.GREY)


def test_panoptic_over_an_image() -> None:
    image = np.full((8, 12, 3), 100, np.uint8)
    picture = draw.panoptic(touching(), CATEGORIES, image, opacity=0.5)
    assert picture[1, 1].tolist() == [55, 95, 150]
    assert picture[1, 11].tolist() == [100, 100, 100], "void shows the image"
    assert picture[6, 6].tolist() == list(draw.LIGHT), "borders stay"


def test_crowds_are_striped() -> None:
    map = torch.ones(20, 20, dtype=torch.int64)
    crowd = draw.panoptic(Segments.of(map, torch.tensor([1]), torch.tensor([True])), CATEGORIES)
    white = (crowd == 255).all(-1)
    assert 0.4 < white.mean() < 0.6
    assert (crowd[~white] == CAT.color).all()
    assert white[0].any() and not white[0].all() and white[:, 0].any() and not white[:, 0].all()
    assert not (draw.panoptic(Segments.of(map, torch.tensor([1])), CATEGORIES) == 255).all(-1).any()


def test_errors_are_red_and_void_is_grey() -> None:
    image = np.zeros((1, 4, 3), np.uint8)
    image[0, 1] = 255
    truth, predicted = torch.tensor([[0, 1, 1, VOID]]), torch.tensor([[0, 1, 0, 1]])
    picture = draw.errors(image, predicted, truth)
    assert picture[0, 0].tolist() == [178, 178, 178], "black becomes pale"
    assert picture[0, 1].tolist() == [255, 255, 255]
    assert picture[0, 2].tolist() == list(draw.RED)
    assert picture[0, 3].tolist() == list(draw.GREY)
    assert draw.errors(image, torch.full((1, 4), VOID), truth)[0, 0].tolist() == list(draw.RED), "no class where there is one"


def test_numbers_in_colours() -> None:
    from matplotlib import colormaps

    picture = draw.heat(torch.tensor([[1.0, 3.0, 2.0, 99.0, float("nan")]]), 1.0, 3.0)
    ends = [[round(255 * v) for v in colormaps["viridis"](part)[:3]] for part in (0.0, 1.0, 0.5)]
    assert picture[0, :3].tolist() == ends
    assert picture[0, 3].tolist() == ends[1], "beyond the range its end"
    assert picture[0, 4].tolist() == list(draw.GREY)
    assert (draw.heat(torch.ones(2, 2), 1.0, 1.0) == ends[0]).all(), "a range of nothing"
