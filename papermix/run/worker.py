"""One rank of a run of several processes: ``python -m papermix.run.worker FOLDER`` computes the stage frozen there."""

import os
import sys
from pathlib import Path

from papermix.run.cluster.srun import become_rank
from papermix.run.launch import as_rank


def leave() -> None:
    """End this rank in good order, when all of them are done.

    The communication threads are ended here: left to the interpreter's own end, they now and then abort a process that has finished its work.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.environ.get("RANK", "0") != "0":
        os._exit(0)  # the first rank has loggers to close, the others have nothing left to do


if __name__ == "__main__":
    become_rank(Path(sys.argv[1]))
    with as_rank(Path(sys.argv[1])):
        from papermix.run.stage import run_stage

        run_stage(Path(sys.argv[1]))
        leave()
