"""One of two processes of ``test_two_processes``: a whole run, one stopped by a signal to the second process, its continuation."""

import os
import random
import sys
from pathlib import Path

import numpy as np
import torch

from callbacks.checkpoints import Checkpoints, Preempted
from callbacks.ema import EMA
from callbacks.rng import RandomState
from papermix.run.checkpoint_io import VerifiedCheckpointIO, find_last
from papermix.run.loggers import csv
from papermix.run.worker import leave
from tests.callbacks.world import Points, Small, trainer


class Share(Points):
    """This process's half of every batch."""

    def batches(self, epoch: int, first: int):
        rank = int(os.environ["LOCAL_RANK"])
        for batch in super().batches(epoch, first):
            yield {name: tensor[rank::2] for name, tensor in batch.items()}


def run(folder: Path, module: Small) -> EMA:
    rank = int(os.environ["LOCAL_RANK"])
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(100 + rank)  # the processes draw different numbers
    ema = EMA(0.9)
    callbacks = [ema, RandomState(), Checkpoints(str(folder / "checkpoints"), every_minutes=60)]
    plugins = [VerifiedCheckpointIO()]
    runner = trainer(
        folder, callbacks, [csv(str(folder))], devices=2, strategy="ddp", plugins=plugins, max_epochs=6, log_every_n_steps=4
    )
    found = find_last(folder / "checkpoints")
    runner.fit(module, Share(), Share(16, seed=1, shuffle=False), ckpt_path=None if found is None else str(found.path))
    return ema


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(os.environ["LOCAL_RANK"])
    torch.set_num_threads(1)
    whole = Small()
    ema = run(folder / "whole", whole)
    stopped = None
    try:
        run(folder / "cut", Small(signal_at=20 if rank == 1 else None))
    except Preempted as error:
        stopped = error.step
    torch.distributed.barrier()
    second = Small()
    again = run(folder / "cut", second)
    torch.save(
        {"whole": whole.state_dict(), "cut": second.state_dict(), "ema": [ema.average, again.average], "stopped": stopped},
        folder / f"result-{rank}.pt",
    )


if __name__ == "__main__":
    main()
    leave()
