"""Two processes on halves of the batch equal one process on the whole."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.machine import prepare, run, weights
from tests.settings import smallest

# no batch statistics and no dropout: these differ between shares by design
PLAIN = ["model.norm=false"]
CASES: dict[str, list[str]] = {
    "supervised": [*smallest(model="mlp"), *PLAIN],
    "linear_probe": [*smallest(method="linear_probe", model="mlp"), *PLAIN, "method.normalize=false"],
    "finetune": [*smallest(method="finetune", model="mlp"), *PLAIN],
    "magnitude": [*smallest(sparsity="magnitude", model="mlp"), *PLAIN],
    "continuous": [*smallest(sparsity="continuous", model="mlp"), *PLAIN],
    "growing": [*smallest(sparsity="growing", model="mlp"), *PLAIN],
    "structured": [*smallest(sparsity="structured", model="mlp"), *PLAIN],
    "multi_exit": [*smallest(method="multi_exit"), *PLAIN],
    "orthogonalized": [*smallest(method="orthogonalized"), *PLAIN],
    "avagrad": [*smallest(optimizer="avagrad", model="mlp"), *PLAIN],
    "adam": [*smallest(optimizer="adam", model="mlp"), *PLAIN],
    "unet": [*smallest(model="unet"), "model.norm=group", "model.levels=2"],
    "center_offset": [*smallest(method="center_offset"), "model.norm=group", "model.levels=2"],
    "pixel_consensus": [*smallest(method="pixel_consensus"), "model.norm=group", "model.levels=2"],
    "lstm_memory": smallest(model="lstm_memory"),
    "lstm_lm": smallest(model="lstm_lm"),
    "transformer_lm": [*smallest(model="transformer_lm"), "model.dropout=0.0"],
}
STEPS = ["trainer.max_epochs=2", "trainer.limit_train_batches=10"]


def overrides(case: str, processes: int) -> list[str]:
    """Twenty steps of a case on one or two processes, with the same global batch."""
    if processes == 1:
        return CASES[case] + STEPS
    return [*CASES[case], *STEPS, "hardware=ddp_cpu", "hardware.threads=1"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases run by one pair of processes (starting them is what costs)."""
    root = tmp_path_factory.mktemp("two")
    for case in CASES:
        prepare(overrides(case, 2), root / case)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.test_two_processes", str(root)],
            env=os.environ
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0", "RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for r in range(2)
    ]
    for rank in ranks:
        out, _ = rank.communicate()
        assert rank.returncode == 0, out
    return root


@pytest.mark.parametrize("case", list(CASES))
def test_equal_weights_after_20_steps(case: str, two: Path, tmp_path: Path) -> None:
    result = run(overrides(case, 1), tmp_path)
    assert result["steps"] == 20
    one, both = weights(tmp_path), weights(two / case)
    assert one.keys() == both.keys()
    moved = 0.0
    for key, value in one.items():
        assert torch.allclose(value.double(), both[key].double(), atol=1e-5), key
        moved += float(value.double().abs().sum())
    assert moved > 0


if __name__ == "__main__":
    from papermix.run.stage import run_stage
    from papermix.run.worker import leave

    for name in CASES:
        run_stage(Path(sys.argv[1]) / name)
    leave()
