"""Whole runs on episodes: a memory that is carried from segment to segment, resumed in mid-episode, shared by two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from papermix.errors import UserError
from papermix.run.check import check_mix
from papermix.run.checkpoint_io import read
from papermix.run.compose import compose
from tests.machine import Killed, Losses, StopBefore, prepare, run, states_equal, weights
from tests.settings import TINY

MODEL = ["model=lstm_memory", "model.width=8", "optimizer=adam", "optimizer.lr=0.01", "trainer.max_epochs=2"]
CASES: dict[str, list[str]] = {
    "maps": [
        "dataset=maze_maps", "dataset.map_size=7", "dataset.grid=9", "dataset.seq_len=9", "dataset.limit=12", "dataset.task.reduction=sum"
    ],
    "recall": ["dataset=digits_recall", "dataset.limit=40", "dataset.length=3"],
    "sort": ["dataset=priority_sort", "dataset.items=4", "dataset.top=3", "dataset.limit=40", "dataset.seq_len=4"],
    "babi": ["dataset=babi", "dataset.vocab_size=12", "dataset.limit=10", "dataset.seq_len=15", "dataset.tasks=[1,2]"],
}  # fmt: skip


def overrides(case: str, *more: str) -> list[str]:
    return [*TINY, *CASES[case], "dataset.batch_size=4", *MODEL, *more]


@pytest.mark.parametrize("case", list(CASES))
def test_resumes_in_mid_episode(case: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    never = run(overrides(case), whole)
    for stop in (4, 10):
        # checkpoints of the steps 2 and 8: with three segments an episode the second one is due
        with pytest.raises(Killed):
            run(overrides(case), cut, StopBefore(stop))
    stopped = run(overrides(case), cut)
    a, b = read(whole / "checkpoints/last.ckpt"), read(cut / "checkpoints/last.ckpt")
    for part in ("state_dict", "optimizer_states", "papermix_carried", "papermix_record"):
        assert states_equal(a[part], b[part]), part
    assert never["metrics"] == stopped["metrics"] and never["steps"] == 12


def test_the_state_is_carried_and_the_episode_starts_from_zeros(tmp_path: Path) -> None:
    """Cut into segments, an episode gives the losses that it gives in one piece (as long as no weight moves)."""
    still = ["optimizer=sgd", "optimizer.lr=0", "trainer.max_epochs=1", "dataset.limit=8", "trainer.limit_train_batches=null"]
    still += ["dataset.task.reduction=sum", "test=none"]
    losses = {}
    for seq_len in (25, 5):
        kept = Losses()
        run(overrides("maps", *still, f"dataset.seq_len={seq_len}"), tmp_path / str(seq_len), kept)
        losses[seq_len] = torch.tensor(kept.values).view(2, -1)
    assert losses[25].shape == (2, 1) and losses[5].shape == (2, 5)
    assert torch.allclose(losses[25][:, 0], losses[5].sum(1), rtol=1e-5)


def test_a_memory_learns_to_recall(tmp_path: Path) -> None:
    result = run(
        [*TINY, "dataset=digits_recall", "dataset.fake=false", "dataset.image_size=6", "dataset.length=2", "dataset.train_episodes=3200",
         "dataset.val_episodes=64", "dataset.test_episodes=1000", "model=lstm_memory", "model.width=48", "optimizer=adam",
         "optimizer.lr=0.01", "trainer.max_epochs=3", "trainer.limit_train_batches=null", "trainer.limit_test_batches=null"],
        tmp_path,
    )  # fmt: skip
    # two images, the first is asked for: the class of the second
    assert result["metrics"]["test/accuracy"] > 0.7


def test_mixes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match="dataset=maze_maps needs 'memory'"):
        check_mix(compose(["dataset=maze_maps", "model=mlp"], with_hydra=True))
    with pytest.raises(UserError, match="model=lstm_memory needs 'sequence'"):
        check_mix(
            compose(["model=lstm_memory", "model.in_shape=[1]", "model.query_shape=null", "model.out_shape=[1]"], with_hydra=True)
        )
    with pytest.raises(UserError, match=r"callbacks\.map_pictures needs 'maps'"):
        check_mix(compose(["dataset=priority_sort", "model=lstm_memory", "callbacks=[default,map_pictures]"], with_hydra=True))


TWO = ("maps", "babi")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases run by one pair of processes."""
    root = tmp_path_factory.mktemp("two")
    for case in TWO:
        prepare(overrides(case, "hardware=ddp_cpu", "hardware.threads=1"), root / case)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.methods.test_sequences", str(root)],
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for rank in ranks:
        out, _ = rank.communicate()
        assert rank.returncode == 0, out
    return root


@pytest.mark.parametrize("case", TWO)
def test_two_processes_equal_one(case: str, two: Path, tmp_path: Path) -> None:
    result = run(overrides(case), tmp_path)
    one, both = weights(tmp_path), weights(two / case)
    assert all(torch.allclose(value, both[key], atol=1e-5) for key, value in one.items())
    import json

    metrics = json.loads((two / case / "result.json").read_text())["metrics"]
    assert metrics.keys() == result["metrics"].keys()
    for name, value in result["metrics"].items():
        assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


if __name__ == "__main__":
    from papermix.run.stage import run_stage
    from papermix.run.worker import leave

    for name in TWO:
        run_stage(Path(sys.argv[1]) / name)
    leave()
