"""Images with a truth for every pixel: joint augmentation, padding, splits, bad examples, position, processes."""

import pytest
import torch
from torch import Tensor

from datamodules.dense.augment import DenseTransform, checked, collate, paint
from datamodules.dense.base import DenseData, FakeScenes
from datamodules.loaders import Damaged
from papermix.errors import UserError
from papermix.segmentation.segments import VOID, Category, Segments


class Grid:
    """Images whose pixels say where they are: red is the row, green the column, blue the segment; sizes differ."""

    def __init__(self, count: int = 12, bad: tuple[int, ...] = (), kind: str = "panoptic"):
        self.count, self.bad, self.kind = count, bad, kind

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> dict | Damaged:
        if index in self.bad:
            return Damaged(f"{index}.png", "segment 7 is not in its JSON")
        height, width = 40 + 2 * (index % 3), 50 + 4 * (index % 2)
        panoptic = torch.zeros(height, width, dtype=torch.int32)
        panoptic[:, : width // 2] = 1
        panoptic[5:20, 5:15] = 2
        panoptic[25:35, 30:45] = 3
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        image = torch.stack([rows.expand(height, width) * 4, columns.expand(height, width) * 4, panoptic * 50]).to(torch.uint8)
        example = {"image": image, "image_id": 100 + index}
        category, crowd = torch.tensor([3, 0, 1]), torch.tensor([False, False, True])
        if self.kind == "instance":
            masks = panoptic == torch.tensor([2, 3, 2])[:, None, None]
            return example | {"masks": masks, "category": torch.tensor([0, 1, 1]), "crowd": torch.tensor([False, True, False])}
        if self.kind == "semantic":
            return example | {"semantic": Segments.of(panoptic.long(), category).semantic().to(torch.uint8)}
        if self.kind == "depth":
            return example | {"depth": panoptic[None].float()}
        return example | {"panoptic": panoptic, "category": category, "crowd": crowd}


class Grids(DenseData):
    categories = tuple(Category(10 * n, f"class {n}", n < 2, (n, n, n)) for n in range(4))

    def __init__(self, kind: str = "panoptic", bad: tuple[int, ...] = (), count: int = 12, **settings):
        settings = {"num_classes": 4, "mean": [0.5], "std": [0.25], "batch_size": 4, "val_fraction": 4, **settings}
        super().__init__(**settings)
        self.kind, self.bad, self.count = kind, bad, count

    def sources(self):
        return {"train": Grid(self.count, self.bad, self.kind), "test": Grid(5, self.bad, self.kind)}


def ready(**settings) -> Grids:
    data = Grids(**settings)
    data.setup()
    return data


ALL = {"scale": [0.5, 2.0], "crop": [32, 40], "flip": True, "color": 0.0}


def test_image_and_truth_move_together() -> None:
    data = ready(augment=ALL, count=40)
    flips = 0
    for batch in data.loader("train"):
        image = (batch["image"] * 0.25 + 0.5) * 255  # the normalisation undone
        for place in range(len(image)):
            height, width = batch["size"][place].tolist()
            assert batch["size"][place].tolist() == batch["truth_size"][place].tolist()
            segments = batch["panoptic"][place, :height, :width]
            blue = image[place, 2, :height, :width]
            category = batch["category"][place]
            # blue is 50 times the publisher's number, which the category tells: stuff 3 -> 1, thing 0 -> 2, thing 1 -> 3
            publisher = torch.tensor([2, 3, 0, 1])
            wanted = torch.where(segments > 0, publisher[category[segments.clamp_min(1) - 1]], 0) * 50
            inside = torch.nn.functional.max_pool2d(wanted[None].float(), 3, 1, 1) == -torch.nn.functional.max_pool2d(
                -wanted[None].float(), 3, 1, 1
            )
            # away from borders, where antialiasing mixes
            assert ((blue - wanted).abs()[inside[0]] < 12).float().mean() > 0.97
            green = image[place, 1, height // 2, :width]
            flips += int(green[-1] < green[0])
    assert 8 < flips < 28  # of 36


def test_padding_is_void_and_zero() -> None:
    batch = next(iter(ready(augment={"scale": [0.5, 0.5], "crop": [64, 64]}).loader("train")))
    assert batch["image"].shape == (4, 3, 64, 64) and batch["semantic"].shape == (4, 64, 64)
    for place in range(4):
        height, width = batch["size"][place].tolist()
        assert height < 32 and width < 32
        assert not batch["image"][place, :, height:].any() and not batch["image"][place, :, :, width:].any()
        assert (batch["semantic"][place, height:] == VOID).all() and (batch["semantic"][place, :, width:] == VOID).all()
        assert not batch["panoptic"][place, height:].any() and batch["image"][place, :, :height, :width].any()


def test_evaluation_keeps_the_publishers_truth() -> None:
    data = ready(resize=20, max_size=23)
    for batch in data.loader("test"):
        for place, index in enumerate(batch["index"].tolist()):
            raw = Grid().read(index)
            height, width = batch["truth_size"][place].tolist()
            assert (height, width) == raw["panoptic"].shape
            assert torch.equal(batch["panoptic"][place, :height, :width], raw["panoptic"].long())
            assert batch["image_id"][place] == 100 + index
            factor = min(20 / height, 23 / width)
            assert batch["size"][place].tolist() == [round(height * factor), round(width * factor)]
        assert batch["image"].shape[-2:] == (32, 32)  # a multiple of the networks' stride
    assert len(data.loader("test")) == 2


def test_segments_that_the_crop_removes_are_gone() -> None:
    data = ready(augment={"crop": [12, 12]}, count=60)
    counts = set()
    for batch in data.loader("train"):
        for place in range(4):
            category = batch["category"][place]
            real = category[category >= 0]
            counts.add(len(real))
            present = batch["panoptic"][place].unique()
            assert present[present > 0].tolist() == list(range(1, len(real) + 1))
            expected = torch.where(batch["panoptic"][place] > 0, category[batch["panoptic"][place].clamp_min(1) - 1], VOID)
            assert torch.equal(batch["semantic"][place], expected)
    assert {1, 2} <= counts


def test_instances_the_first_in_front_and_the_background_last() -> None:
    raw = Grid(kind="instance").read(0)
    out = paint(raw, background=3)
    assert out["category"].tolist() == [0, 1, 1, 3]  # the third mask hides behind the first, and stays
    assert (out["panoptic"] == 3).sum() == 0 and torch.equal(out["masks"][2], raw["masks"][2])
    assert out["boxes"].tolist()[0] == [5, 5, 15, 20] and out["boxes"].tolist()[1] == [30, 25, 45, 35]
    assert torch.equal(out["panoptic"] == 4, ~raw["masks"].any(0)) and not (out["panoptic"] == 0).any()
    batch = next(iter(ready(kind="instance", augment=ALL).loader("train")))
    real = batch["category"] >= 0
    assert batch["masks"][real].flatten(1).any(1).all() and not batch["masks"][~real].any()


def test_depth_is_padded_by_what_is_no_number() -> None:
    batch = next(iter(ready(kind="depth").loader("test")))
    sizes = batch["truth_size"]
    for depth, (height, width) in zip(batch["depth"], sizes.tolist()):
        assert depth[:, :height, :width].isfinite().all() and depth.isfinite().sum() == height * width


def test_splits_are_parts_of_the_official_ones() -> None:
    data = ready()
    rows = {split: set(r.tolist()) for split, r in data.rows.items()}
    assert len(rows["val"]) == 4 and len(rows["train"]) == 8 and not rows["val"] & rows["train"]
    assert rows["test"] == set(range(5))
    assert ready(seed=5).rows["val"].tolist() == data.rows["val"].tolist() != ready(split_seed=1).rows["val"].tolist()
    assert len(ready(limit=3).rows["test"]) == 3 and ready(val_fraction=0).loader("val") is None


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_position_change_nothing(workers: int) -> None:
    reference = ready(augment=ALL).loader("train")
    whole = [*reference, *reference]
    loader = ready(augment=ALL, workers=workers).loader("train")
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    again = ready(augment=ALL, workers=workers).loader("train")
    again.load_state_dict(state)
    rest = [*again, *again]
    assert len(rest) == 3
    for expected, batch in zip(whole[1:], rest):
        assert all(torch.equal(expected[k], batch[k]) for k in expected)
    assert not torch.equal(whole[0]["image"], whole[2]["image"])


def test_two_processes_share_the_batch() -> None:
    data = ready(augment=ALL, count=20, val_fraction=0)
    one = next(iter(data.loader("train")))

    class Rank(Grids):
        rank, world = 1, 2

    half = Rank(augment=ALL, count=20, val_fraction=0)
    half.load()
    mine = next(iter(half.loader("train")))
    assert mine["index"].tolist() == one["index"][2:].tolist()
    for place in range(2):
        height, width = mine["size"][place].tolist()
        assert torch.equal(mine["image"][place, :, :height, :width], one["image"][2 + place, :, :height, :width])


def test_bad_examples_are_named_or_left_out_and_counted() -> None:
    with pytest.raises(UserError, match=r"^3\.png cannot be used \(segment 7 is not in its JSON\): restore the file or set dataset"):
        list(ready(bad=(3,)).loader("test"))
    data = ready(bad=(3,), skip_bad=True)
    with pytest.warns(UserWarning, match="damaged examples skipped so far: 1, such as 3.png"):
        seen = torch.cat([batch["index"] for batch in data.loader("test")])
    assert seen.tolist() == [0, 1, 2, 4] and data.damaged == {"3.png": "segment 7 is not in its JSON"}


@pytest.mark.parametrize("kind", ["semantic", "panoptic", "instance", "depth"])
def test_fake_data_has_the_true_form(kind: str) -> None:
    data = ready(kind=kind, fake=True, image_size=48, augment=ALL)
    for split in ("train", "val", "test"):
        batch = next(iter(data.loader(split)))
        assert batch["image"].shape == (4, 3, *((32, 64) if split == "train" else (64, 64)))
        if kind in ("panoptic", "instance"):
            for place in range(4):
                categories = batch["category"][place]
                stuff = [c for c in categories.tolist() if c >= 2]
                assert len(stuff) == len(set(stuff)), "a class of stuff has one segment"
    assert not (set(data.rows["train"].tolist()) & set(data.rows["val"].tolist()))
    assert torch.equal(FakeScenes(3, kind=kind, num_classes=4, things=[True] * 4, shape=(3, 8, 8)).read(1)["image"],
                       FakeScenes(9, kind=kind, num_classes=4, things=[True] * 4, shape=(3, 8, 8)).read(1)["image"])  # fmt: skip


def test_collate_keeps_equal_sizes_as_they_are() -> None:
    transform = DenseTransform(train=False)
    examples = [transform(Grid().read(0)), transform(Grid().read(6))]
    batch = collate(examples)
    assert batch["image"].shape == (2, 3, 40, 50) and isinstance(batch["image"], Tensor) and batch["image"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        ({"scales": [1, 2]}, "no 'scales' (did you mean 'scale'?)"),
        ({"scale": [2, 1]}, "two growing factors"),
        ({"scale": 1.5}, "two growing factors"),
        ({"crop": [32]}, "a side in pixels"),
        ({"flip": 1.5}, "true or false"),
        ({"color": -1}, "from 0 to 1"),
    ],
)
def test_wrong_augmentation_is_refused(augment: dict, words: str) -> None:
    with pytest.raises(UserError) as error:
        checked(augment)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_classes": 255}, "from 1 to 254"),
        ({"resize": 0}, "dataset.resize=0"),
        ({"in_chans": 2}, "1 (gray) or 3"),
        ({"workers": -1}, "at least 0"),
        ({"mean": [0.5, 0.5]}, "dataset.mean has 2 numbers"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(UserError) as error:
        Grids(**settings)
    assert words in str(error.value)
