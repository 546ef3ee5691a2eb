"""Random views against torchvision's functions, image by image."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as V

from papermix.errors import UserError
from papermix.views import changes
from papermix.views.views import _PARTS, NUMBERS, Views, draw

OFF = {"crop": (1.0, 1.0), "flip": False, "jitter": 0.0, "gray": 0.0, "blur": 0.0}


def pictures(count: int = 5, channels: int = 3, height: int = 14, width: int = 14) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(1))


def draws(count: int, **values: float) -> torch.Tensor:
    """The same numbers for all images: 1/2, unless said otherwise."""
    return torch.cat([torch.full((count, n), values.get(name, 0.5)) for name, n in _PARTS.items()], 1)[:, None]


def test_cut_and_resize_is_torchs_antialiased_bilinear() -> None:
    x = pictures(4, 3, 20, 30)
    boxes = [(0, 0, 20, 30), (3, 5, 7, 9), (10, 0, 9, 28), (19, 29, 1, 1)]
    top, left, high, wide = torch.tensor(boxes, dtype=torch.float32).T
    made = changes.separable(x, changes.resize_matrix(top, high, 12, 20), changes.resize_matrix(left, wide, 15, 30))
    for image, result, (t, le, h, w) in zip(x, made, boxes):
        alone = F.interpolate(image[None, :, t : t + h, le : le + w], (12, 15), mode="bilinear", antialias=True)[0]
        assert torch.allclose(result, alone, atol=1e-5)


def test_crops_are_distributed_as_torchvisions() -> None:
    from torchvision.transforms.v2 import RandomResizedCrop

    torch.manual_seed(0)
    theirs = RandomResizedCrop(8, (0.08, 1.0))
    blank = [torch.zeros(3, 30, 50)]
    drawn = [theirs.make_params(blank) for _ in range(4000)]
    uniform = torch.rand(4000, 22)
    ours = changes.crop_boxes(uniform[:, :20].view(-1, 10, 2), uniform[:, 20:], 30, 50, (0.08, 1.0))
    for row, name in zip(ours, ("top", "left", "height", "width")):
        other = torch.tensor([float(p[name]) for p in drawn])
        assert (
            abs(row.mean() - other.mean()) < 0.06 * other.mean() + 0.1 and abs(row.std() - other.std()) < 0.06 * other.std() + 0.1
        )
    top, left, high, wide = ours
    assert (top >= 0).all() and (left >= 0).all() and (top + high <= 30).all() and (left + wide <= 50).all()
    assert (high * wide >= 0.07 * 1500).all()
    # a strip into which no crop fits: the middle of it, in an allowed ratio
    box = changes.crop_boxes(torch.rand(2, 10, 2), torch.rand(2, 2), 4, 40, (1.0, 1.0))
    assert box[:, 0].tolist() == [0, 17, 4, 5]


def test_colours_are_torchvisions() -> None:
    x = pictures()
    factors = torch.tensor([0.0, 0.4, 1.0, 1.3, 1.9])
    turns = torch.tensor([-0.5, -0.13, 0.0, 0.2, 0.41])
    for ours, theirs, numbers in (
        (changes.brightness, V.adjust_brightness, factors),
        (changes.contrast, V.adjust_contrast, factors),
        (changes.saturation, V.adjust_saturation, factors),
        (changes.hue, V.adjust_hue, turns),
    ):
        alone = torch.stack([theirs(image, float(n)) for image, n in zip(x, numbers)])
        assert torch.allclose(ours(x, numbers), alone, atol=1e-5), ours.__name__
    grey = torch.full((1, 3, 2, 2), 0.3)
    assert torch.allclose(changes.hue(grey, torch.tensor([0.2])), grey)
    assert torch.equal(changes.solarize(x), V.solarize(x, 0.5))


def test_blur_is_torchvisions() -> None:
    x = pictures(3, 2, 16, 16)
    sigma = torch.tensor([0.1, 0.8, 2.0])
    m = changes.blur_matrix(sigma, 16, 5)
    for image, result, s in zip(x, changes.separable(x, m, m), sigma.tolist()):
        assert torch.allclose(result, V.gaussian_blur(image, [5, 5], [s, s]), atol=1e-5)


def test_a_view_is_made_of_its_parts_in_their_order() -> None:
    """One image, whose draws are known, by torchvision alone; normalisation is undone before and done again after."""
    x = pictures(1, 3, 40, 40)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    normal = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    views = Views(mean, std, size=32, crop=(0.5, 0.5), jitter=1.0, gray=1.0, blur=[0.0, 1.0], solarize=[0.0, 1.0])
    numbers = torch.rand(1, 2, NUMBERS, generator=torch.Generator().manual_seed(3))
    part = dict(zip(_PARTS, numbers[:, 1].split(list(_PARTS.values()), 1)))
    t, le, h, w = (int(v) for v in changes.crop_boxes(part["tries"].view(1, 10, 2), part["place"], 40, 40, (0.5, 0.5))[:, 0])
    y = F.interpolate(x[:, :, t : t + h, le : le + w], (32, 32), mode="bilinear", antialias=True)
    if float(part["flip"]) < 0.5:
        y = y.flip(-1)
    b, c, s, u = part["strength"][0].tolist()
    todo = [
        lambda y: V.adjust_brightness(y, 0.2 + 1.6 * b),
        lambda y: V.adjust_contrast(y, 0.2 + 1.6 * c),
        lambda y: V.adjust_saturation(y, 0.2 + 1.6 * s),
        lambda y: V.adjust_hue(y, -0.2 + 0.4 * u),
    ]
    for k in part["order"][0].argsort().tolist():
        y = todo[k](y)
    y = V.rgb_to_grayscale(y, 3)
    sigma = 0.1 + 1.9 * float(part["blur"][0, 1])
    y = V.solarize(V.gaussian_blur(y, [3, 3], [sigma, sigma]), 0.5)
    made = views(normal, numbers)
    assert made.shape == (2, 1, 3, 32, 32)
    pixels = made[1] * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    assert torch.allclose(pixels, y, atol=2e-3)  # luma's weights differ in the fourth digit
    assert not torch.allclose(made[0], made[1], atol=0.1)


def test_every_image_has_draws_of_its_own_and_shares_of_a_batch_are_cut_from_it() -> None:
    x = pictures(6, 3, 20, 20)
    views = Views()
    numbers = draw(6, 3, 7, "views", 0, 4)
    whole = views(x, numbers)
    alone = torch.cat([views(x[i : i + 1], numbers[i : i + 1]) for i in range(6)], 1)
    assert torch.allclose(whole, alone, atol=1e-6)
    assert torch.equal(draw(6, 3, 7, "views", 0, 4, rows=slice(2, 5)), numbers[2:5])
    assert not torch.equal(draw(6, 3, 7, "views", 0, 5), numbers)
    same = views(x[:1].expand(6, -1, -1, -1), numbers)[0]
    assert len({tuple(v.flatten()[:20].tolist()) for v in same}) == 6
    state = torch.get_rng_state()
    draw(2, 2, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_off_leaves_images_as_they_are() -> None:
    x = pictures()
    assert torch.allclose(Views(**OFF)(x, draws(5))[0], x, atol=1e-6)
    mirrored = Views(**{**OFF, "flip": True})(x, draws(5, flip=0.2))[0]
    assert torch.allclose(mirrored, x.flip(-1), atol=1e-6)


def test_gray_images_keep_their_one_channel() -> None:
    x = pictures(4, 1, 12, 12)
    made = Views(crop=(0.3, 1.0), jitter=1.0, gray=1.0, blur=1.0, solarize=0.5)(x, draw(4, 2, 0))
    assert made.shape == (2, 4, 1, 12, 12) and torch.isfinite(made).all()
    # saturation and hue have nothing to change: brightness and contrast by 1 leave it
    assert torch.allclose(Views(**{**OFF, "jitter": 1.0, "gray": 1.0})(x, draws(4))[0], x, atol=1e-6)


def test_randaugment_changes_pixels() -> None:
    x = pictures(8, 3, 16, 16)
    made = Views(**OFF, randaugment=21)(x, draw(8, 1, 3))[0]
    assert made.shape == x.shape and (made - x).abs().amax() > 0.2


def test_half_precision_does_not_reach_the_pixels() -> None:
    x = pictures()
    with torch.autocast("cpu", torch.bfloat16):
        made = Views()(x, draw(5, 1, 0))
    assert made.dtype == torch.float32 and torch.equal(made, Views()(x, draw(5, 1, 0)))


@pytest.mark.parametrize(
    "options",
    [{"crop": (0.5,)}, {"crop": (0.0, 1.0)}, {"jitter": 1.5}, {"blur": []}, {"solarize": [0.1, math.nan]}, {"hue": 0.6}, {"gray": -1},
     {"brightness": -0.1}, {"randaugment": 31}, {"size": 0}],
)  # fmt: skip
def test_bad_settings_are_named(options) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        Views(**options)
