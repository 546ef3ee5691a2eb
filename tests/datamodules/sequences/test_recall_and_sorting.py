"""Associative recall and priority sort: what is asked, and what the answer is."""

from itertools import pairwise

import pytest
import torch

from datamodules.images import SmallImages
from datamodules.sequences.recall import RecallData
from datamodules.sequences.sorting import SortData
from papermix.errors import UserError


def recall(**changes) -> RecallData:
    shape = [1, changes.get("image_size", 6)] * 1 + [changes.get("image_size", 6)]
    settings = {"images": "digits", "image_size": 6, "length": 5, "batch_size": 16, "seq_len": 5}
    settings |= {"in_shape": shape, "query_shape": shape, "out_shape": [10]}
    made = RecallData(**settings | {"train_episodes": 64, "val_episodes": 16, "test_episodes": 16} | changes)
    made.setup()
    return made


def test_the_answer_is_the_class_of_the_next_image() -> None:
    made = recall()
    images, labels = made.sources["train"].image, made.sources["train"].label
    places = set()
    for batch in made.train_dataloader():
        assert batch["asked"].tolist() == [[False] * 4 + [True]] * 16 and batch["fresh"].all()
        assert not batch["query"][:, :4].any() and not batch["target"][:, :4].any()
        for row in range(16):
            frames = batch["frames"][row]
            numbers = [int((images == frame).flatten(1).all(1).nonzero()[0, 0]) for frame in frames]
            place = [torch.equal(frame, batch["query"][row, 4]) for frame in frames].index(True)
            assert place < 4 and batch["target"][row, 4] == labels[numbers[place + 1]]
            assert len(set(numbers)) == 5
            places.add(place)
    assert places == {0, 1, 2, 3}


def test_images_are_the_nearest_pixels_and_splits_do_not_mix() -> None:
    made = recall(image_size=3)
    whole = SmallImages("digits", num_classes=10, in_chans=1, image_size=8, mean=[0.0], std=[1.0], batch_size=1)
    whole.load()
    for split in ("train", "val", "test"):
        image = whole.tensors[split]["image"].float() / 255
        assert torch.equal(made.sources[split].image, image[:, :, [0, 2, 5]][..., [0, 2, 5]])
        assert torch.equal(made.sources[split].label, whole.tensors[split]["label"])


def test_rows_of_few_images_have_no_image_twice() -> None:
    made = recall(fake=True, length=5)
    made.sources["train"].image = made.sources["train"].image[:6]
    made.sources["train"].label = torch.arange(6)
    drawn = made.sources["train"].episodes(torch.arange(64))["images"]
    assert all(len(set(row.tolist())) == 5 for row in drawn) and len(drawn.unique(dim=0)) > 50


def test_a_row_cut_into_segments_is_the_same_row() -> None:
    whole, cut = next(iter(recall().train_dataloader())), list(recall(seq_len=2).train_dataloader())[:3]
    for name in ("frames", "query", "target", "asked"):
        assert torch.equal(whole[name], torch.cat([part[name] for part in cut], 1)), name


def test_recall_refusals() -> None:
    with pytest.raises(UserError, match=r"images=mnis is not known .did you mean 'mnist'"):
        recall(images="mnis")
    with pytest.raises(UserError, match="length=1 must be at least 2"):
        recall(length=1)
    with pytest.raises(UserError, match="needs as many images, but the val split has"):
        recall(length=200)
    with pytest.raises(UserError, match=r"in_shape=\[1, 8, 8\] must be \[1, 6, 6\]"):
        recall(in_shape=[1, 8, 8])


def test_vectors_go_out_by_priority() -> None:
    made = SortData(
        in_shape=[9],
        query_shape=None,
        out_shape=[8],
        batch_size=8,
        seq_len=36,
        train_episodes=16,
        val_episodes=0,
        test_episodes=0,
    )
    made.setup()
    for batch in made.train_dataloader():
        assert batch["frames"].shape == (8, 36, 9) and batch["target"].shape == (8, 36, 8) and "query" not in batch
        assert not batch["asked"][:, :20].any() and batch["asked"][:, 20:].all() and not batch["frames"][:, 20:].any()
        for row in range(8):
            vectors = sorted(batch["frames"][row, :20].tolist(), key=lambda v: -v[-1])
            assert batch["target"][row, 20:].tolist() == [v[:-1] for v in vectors[:16]]
            assert all(a[-1] > b[-1] for a, b in pairwise(vectors)) and -1 <= vectors[-1][-1] <= vectors[0][-1] < 1
        assert set(batch["frames"][:, :20, :-1].unique().tolist()) == {0.0, 1.0}
    with pytest.raises(UserError, match=r"top=5 must lie between 1 and dataset.items=4"):
        SortData(
            items=4,
            top=5,
            in_shape=[9],
            query_shape=None,
            out_shape=[8],
            batch_size=8,
            seq_len=9,
            train_episodes=8,
            val_episodes=0,
            test_episodes=0,
        )
