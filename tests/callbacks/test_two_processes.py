"""Two processes save as one: a signal to either stops both at the same step, and both draw on from their own random states."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from tests.callbacks.world import same


def test_signal_to_one_stops_both_and_the_continued_run_is_exact(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    processes = []
    for rank in range(2):
        own = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-W", "ignore", "-m", "tests.callbacks.ranks", str(tmp_path)]
        env = {**os.environ, **own, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        with open(tmp_path / f"log-{rank}", "w") as log:
            processes.append(subprocess.Popen(command, env=env, cwd=root, stdout=log, stderr=subprocess.STDOUT))
    for rank, process in enumerate(processes):
        assert process.wait(timeout=600) == 0, (tmp_path / f"log-{rank}").read_text()[-3000:]
    zero, one = (torch.load(tmp_path / f"result-{rank}.pt", weights_only=True) for rank in range(2))
    assert zero["stopped"] == one["stopped"]
    assert 20 < zero["stopped"] < 36
    for result in (zero, one):
        assert same(result["whole"], result["cut"])
        assert same(*result["ema"])
    assert (tmp_path / "cut/metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()
    names = [sorted(p.name for p in (tmp_path / run / "checkpoints").iterdir()) for run in ("whole", "cut")]
    assert names[0] == names[1]
    assert "last.ckpt" in names[0]
