"""Batched augmentation against loops over single images."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as V

from datamodules import augment as A
from datamodules.loaders import Draw, Share
from papermix.errors import UserError
from papermix.views import randaugment as R


def pictures(count=6, channels=3, size=9):
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def draw(*key, size=6, low=0, high=None):
    return Draw(key, Share(0, size, low, size if high is None else high))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pad, mirrored", [(0, True), (2, False), (3, True)])
def test_crop_and_flip_equal_a_loop(channels, pad, mirrored):
    images = pictures(40, channels)
    random = torch.Generator().manual_seed(0)
    top, left = torch.randint(0, 2 * pad + 1, (2, 40), generator=random)
    top[:2], left[:2] = torch.tensor([0, 2 * pad]), torch.tensor([0, 2 * pad])
    flip = torch.rand(40, generator=random) < 0.5
    result = A.crop_flip(images, pad, top, left, flip if mirrored else None)
    for image, y, x, mirror, got in zip(images, top, left, flip, result):
        padded = F.pad(image.flip(-1) if mirror and mirrored else image, (pad,) * 4)
        assert torch.equal(got, padded[:, y : y + 9, x : x + 9])
    assert result.is_contiguous() and result.dtype == torch.uint8


def test_crop_takes_every_offset_and_flip_half_of_the_images():
    augment = A.make_augment({"crop": 1, "flip": True}, (0.0,), (1.0,), 2, 4)
    image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4) + 1
    batch = augment({"image": image.expand(3000, -1, -1, -1)}, draw(0, size=3000))
    kinds, counts = (batch["image"] * 255).round().flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 18 and counts.min() > 110, "9 offsets x 2, each about 167 times"


def test_normalize_is_the_formula():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    images = pictures()
    expected = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    batch = A.Normalize(mean, std)({"image": images}, draw(0))
    torch.testing.assert_close(batch["image"], expected)
    torch.testing.assert_close(A.Normalize((0.4,), (0.2,)).normalize(images), (images / 255 - 0.4) / 0.2)
    floats = torch.ones(1, 1, 2, 2)
    A.Normalize((0.5,), (0.5,)).normalize(floats)
    assert floats.eq(1).all(), "the input is left alone"


@pytest.mark.parametrize("size", [1, 4, 5])
def test_cutout_equals_a_loop(size):
    images = torch.rand(20, 2, 9, 9) + 1
    row, column = torch.randint(0, 9, (2, 20))
    row[:2], column[:2] = torch.tensor([0, 8]), torch.tensor([0, 8])
    expected = images.clone()
    for image, y, x in zip(expected, row.tolist(), column.tolist()):
        y, x = y - size // 2, x - size // 2
        image[:, max(y, 0) : max(y + size, 0), max(x, 0) : max(x + size, 0)] = 0
    assert torch.equal(A.cutout(images.clone(), row, column, size), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_equals_torchvision_image_by_image(channels):
    images = pictures(8, channels)
    factors = 1 + 0.8 * (2 * torch.rand(8, 3) - 1)
    result = A.jitter(images.float(), factors) / 255
    for image, (b, c, s), got in zip(images, factors.tolist(), result):
        expected = V.adjust_contrast(V.adjust_brightness(image / 255, b), c)
        torch.testing.assert_close(got, V.adjust_saturation(expected, s), atol=2e-4, rtol=0)


def test_randaugment_equals_one_image_at_a_time():
    images = pictures(28, size=12)
    ops = torch.stack([torch.arange(28) % 14, torch.arange(28).flip(0) % 14], 1)
    signs = torch.stack([torch.arange(28) // 14, torch.arange(28) % 2], 1)
    before = images.clone()
    result = A.randaugment(images, ops, signs, 9)
    for image, op, sign, got in zip(images, ops.tolist(), signs.tolist(), result):
        alone = image[None]
        for code, reverse in zip(op, sign):
            alone = R.randaugment_op(alone, R.RANDAUGMENT_OPS[code], 9, 1 - 2 * reverse)
        assert torch.equal(got, alone[0])
    assert torch.equal(images, before) and result.dtype == torch.uint8


def test_every_randaugment_operation_does_something_and_only_the_signed_ones_have_a_direction():
    images = pictures(2, size=16)
    images[:, :, :4] //= 2
    for name in R.RANDAUGMENT_OPS:
        there, back = (R.randaugment_op(images // 2 + 40, name, 20, sign) for sign in (1, -1))
        assert torch.equal(there, images // 2 + 40) == (name == "identity"), name
        assert torch.equal(there, back) == (name in ("identity", "posterize", "solarize", "autocontrast", "equalize")), name
    with pytest.raises(ValueError, match="unknown operation"):
        R.randaugment_op(images, "blur", 1, 1)


@pytest.mark.parametrize("count", [6, 7])
def test_mixup_equals_a_loop(count):
    images, soft = torch.rand(count, 3, 4, 4), torch.eye(7)[:count]
    mixed, labels = A.mixup(images, soft, 0.3)
    for i in range(count):
        j = min(i ^ 1, count - 1)
        torch.testing.assert_close(mixed[i], 0.3 * images[i] + 0.7 * images[j])
        torch.testing.assert_close(labels[i], 0.3 * soft[i] + 0.7 * soft[j])


@pytest.mark.parametrize("lam, row, column", [(0.36, 0.5, 0.5), (0.36, 0.0, 0.95), (0.0, 0.5, 0.5), (1.0, 0.2, 0.7)])
def test_cutmix_pastes_a_box_and_weighs_labels_by_its_area(lam, row, column):
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 10, 10).contiguous()
    mixed, labels = A.cutmix(images, torch.eye(4), lam, row, column)
    assert images[0].eq(0).all(), "the input is left alone"
    for i in range(4):
        own, other = (mixed[i] == i).double().mean().item(), (mixed[i] == i ^ 1).double().mean().item()
        assert own + other == pytest.approx(1)
        expected = torch.zeros(4)
        expected[i], expected[i ^ 1] = own, other
        torch.testing.assert_close(labels[i], expected)
    if (row, column) == (0.5, 0.5):
        assert own == pytest.approx(lam)


def test_mixing_gives_soft_labels_and_both_kinds_take_turns():
    labels = torch.arange(6)
    augment = A.make_augment({"mixup": 0.5, "cutmix": 1.0}, (0.5,), (0.5,), 6, 9)
    kinds = set()
    for number in range(20):
        batch = augment({"image": pictures(), "label": labels.clone()}, draw(number))
        torch.testing.assert_close(batch["label_soft"].sum(1), torch.ones(6))
        assert torch.equal(batch["label"], labels)
        whole = A.Normalize((0.5,), (0.5,)).normalize(pictures())
        kinds.add(bool((batch["image"] == whole).flatten(1).any(1).all()))
    assert kinds == {True, False}, "CutMix keeps pixels as they were, mixup none"


def test_the_same_key_gives_the_same_batch_and_another_key_another():
    augment = A.make_augment({"crop": 3, "flip": True, "jitter": 0.3, "cutout": 4}, (0.5,), (0.5,), 6, 9)
    a, b, c = (augment({"image": pictures()}, draw(*key))["image"] for key in [(1, 0, 0), (1, 0, 0), (1, 0, 1)])
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("off", [None, {}, {"crop": 0, "flip": False, "cutout": None, "mixup": 0.0, "randaugment": False}])
def test_what_is_off_leaves_only_normalisation(off):
    batch = A.make_augment(off, (0.5,), (0.5,), 6, 9)({"image": pictures(), "label": torch.zeros(6)}, draw(0))
    assert set(batch) == {"image", "label"}
    assert torch.equal(batch["image"], A.Normalize((0.5,), (0.5,)).normalize(pictures()))


@pytest.mark.parametrize(
    "config, words",
    [
        ({"crops": 4}, "dataset.augment has no 'crops' (did you mean 'crop'?): it knows crop, flip"),
        ({"crop": 9}, "dataset.augment.crop=9 must be a whole number from 0 to 8 (0: off)"),
        ({"crop": 1.5}, "dataset.augment.crop=1.5 must be a whole number"),
        ({"crop": True}, "dataset.augment.crop=True must be a whole number"),
        ({"cutout": -1}, "dataset.augment.cutout=-1 must be a whole number from 0 to 17"),
        ({"jitter": 1.1}, "dataset.augment.jitter=1.1 must be a number from 0 to 1"),
        ({"randaugment": 31}, "dataset.augment.randaugment=31 must be a whole number from 0 to 30"),
        ({"mixup": -0.1}, "dataset.augment.mixup=-0.1 must be a number of at least 0"),
        ({"cutmix": "a"}, "dataset.augment.cutmix=a must be a number of at least 0"),
        ({"flip": 2}, "dataset.augment.flip=2 must be true or false"),
    ],
)
def test_bad_settings_are_refused(config, words):
    with pytest.raises(UserError) as error:
        A.make_augment(config, (0.5,), (0.5,), 6, 9)
    assert words in str(error.value)


def test_a_standard_deviation_of_zero_is_refused():
    with pytest.raises(UserError, match="must be above 0"):
        A.Normalize((0.5,), (0.0,))
