"""Segments of episodes: every step once and in order, rows that go on, resume in mid-episode, shares, all drawn by number."""

import numpy as np
import pytest
import torch

from datamodules.sequences.base import CHUNK, Drawn, SegmentLoader, at
from datamodules.sequences.sorting import SortData
from papermix.errors import UserError


class Numbers:
    """Episodes of given lengths; a frame is episode * 1000 + step."""

    def __init__(self, lengths: list[int], shuffle: bool = False) -> None:
        self.sizes, self.shuffle = torch.tensor(lengths), shuffle

    def order(self, epoch: int) -> torch.Tensor:
        count = len(self.sizes)
        return torch.randperm(count, generator=torch.Generator().manual_seed(epoch)) if self.shuffle else torch.arange(count)

    def lengths(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.sizes[numbers]

    def episodes(self, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"all": numbers[:, None] * 1000 + torch.arange(int(self.sizes.max()))}

    def segment(self, held: dict[str, torch.Tensor], steps: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"frames": at(held["all"], steps), "asked": torch.ones_like(steps, dtype=torch.bool)}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def read(loader: SegmentLoader) -> dict[int, list[int]]:
    """Episode -> the steps that were asked, in order; rows must go on where they were."""
    seen: dict[int, list[int]] = {}
    for batch in loader:
        for row, episode in enumerate(batch["index"].tolist()):
            steps = batch["frames"][row][batch["asked"][row]]
            assert bool(batch["fresh"][row]) == (episode < 0 or episode not in seen)
            if episode < 0:
                assert not len(steps)
                continue
            assert (steps // 1000 == episode).all()
            seen.setdefault(episode, []).extend((steps % 1000).tolist())
    return seen


@pytest.mark.parametrize("lengths", [[7] * 5, [9, 1, 4, 12, 3, 3, 8], [2]])
@pytest.mark.parametrize("seq_len", [1, 4, 50])
def test_evaluation_reads_every_step_once(lengths: list[int], seq_len: int) -> None:
    loader = SegmentLoader(Numbers(lengths), 3, seq_len, whole=True)
    assert read(loader) == {episode: list(range(length)) for episode, length in enumerate(lengths)}
    assert len(list(loader)) == len(loader)


def test_training_leaves_out_what_fills_no_batch() -> None:
    assert sorted(read(SegmentLoader(Numbers([7] * 5), 2, 3))) == [0, 1, 2, 3]
    loader = SegmentLoader(Numbers([9, 1, 4, 12, 3, 3, 8], shuffle=True), 3, 4)
    assert len(loader) == (3 + 1 + 1 + 3 + 1 + 1 + 2) // 3
    epochs = [read(loader) for _ in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert all(steps == list(range(len(steps))) for epoch in epochs for steps in epoch.values())


@pytest.mark.parametrize("stop", [1, 2, 4, 6])
def test_resumes_in_the_middle_of_an_episode(stop: int) -> None:
    def fresh() -> SegmentLoader:
        return SegmentLoader(Numbers([9, 1, 4, 12, 3, 3, 8], shuffle=True), 2, 4)

    loader = fresh()
    whole = [batch for _ in range(2) for batch in loader]
    loader = fresh()
    begun = []
    for batch in loader:
        begun.append(batch)
        if len(begun) == stop:
            break
    state = loader.state_dict()
    loader = fresh()
    loader.load_state_dict(state)
    rest = [batch for _ in range(2 if stop < len(loader) else 1) for batch in loader]
    assert len(begun + rest) == len(whole) and all(map(same, begun + rest, whole))


def test_processes_share_the_batch() -> None:
    def loader(rank: int, world: int) -> SegmentLoader:
        return SegmentLoader(Numbers([9, 1, 4, 12, 3, 3, 8]), 4, 3, rank=rank, world=world)

    shares = zip(loader(0, 1), loader(0, 2), loader(1, 2), strict=True)
    for whole, *parts in shares:
        joined = {name: torch.cat([part[name] for part in parts]) for name in whole}
        asked = whole["asked"]
        assert all(torch.equal(whole[k], joined[k]) for k in ("asked", "fresh", "index"))
        assert torch.equal(whole["frames"][asked], joined["frames"][asked])


def test_refusals() -> None:
    with pytest.raises(UserError, match="batch_size=8 is larger than the train split of 5 episodes"):
        SegmentLoader(Numbers([3] * 5), 8, 2)
    with pytest.raises(UserError, match="cannot be shared by 2 processes"):
        SegmentLoader(Numbers([3] * 5), 3, 2, world=2)


class Draws(Drawn):
    def draw(self, random: np.random.Generator, count: int) -> dict[str, torch.Tensor]:
        return {"x": torch.from_numpy(random.random((count, 3)))}


def test_episodes_are_a_function_of_their_number() -> None:
    source = Draws(("key", 1), 10, 3, endless=True)
    numbers = torch.tensor([700, 3, CHUNK, 3, CHUNK - 1, 9 * CHUNK, 700])
    together = source.episodes(numbers)["x"]
    one_by_one = [Draws(("key", 1), 10, 3, endless=True).episodes(numbers[i : i + 1])["x"][0] for i in range(len(numbers))]
    assert torch.equal(together, torch.stack(one_by_one))
    assert len(together.unique(dim=0)) == 5
    assert not torch.equal(together, Draws(("key", 2), 10, 3, endless=True).episodes(numbers)["x"])
    assert source.order(2).tolist() == list(range(20, 30)) and source.episodes(torch.tensor([]).long())["x"].shape == (0, 3)


def data(**changes) -> SortData:
    settings = {"items": 4, "top": 3, "in_shape": [9], "query_shape": None, "out_shape": [8], "batch_size": 4, "seq_len": 3}
    made = SortData(**settings | {"train_episodes": 8, "val_episodes": 6, "test_episodes": 5} | changes)
    made.setup()
    return made


def test_training_is_new_every_epoch_and_evaluation_never() -> None:
    def frames(loader) -> torch.Tensor:
        return torch.cat([batch["frames"].flatten(1) for batch in loader], 1)

    train = data().train_dataloader()
    assert not torch.equal(frames(train), frames(train))
    assert not torch.equal(frames(data().train_dataloader()), frames(data(seed=1).train_dataloader()))
    for split in ("val", "test"):
        loader = data().loader(split)
        first = frames(loader)
        assert torch.equal(first, frames(loader)) and torch.equal(first, frames(data(seed=1).loader(split)))
        assert not torch.equal(first, frames(data(data_seed=1).loader(split)))
    assert not torch.equal(frames(data(val_episodes=4).loader("val")), frames(data(test_episodes=4).loader("test")))


def test_fake_and_limit() -> None:
    assert [data(fake=True).sources[split].count for split in ("train", "val")] == [16, 4]
    assert [data(limit=4).sources[split].count for split in ("train", "val", "test")] == [4, 4, 4]
    assert data(val_episodes=0).val_dataloader() == []
    with pytest.raises(UserError, match="train_episodes=0 must be at least 1"):
        data(train_episodes=0)
    with pytest.raises(UserError, match=r"dataset.out_shape=\[7\] must be \[8\]"):
        data(out_shape=[7])
