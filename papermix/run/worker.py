"""One rank of a run of several processes: ``python -m papermix.run.worker FOLDER`` computes the stage frozen there."""

import sys
from pathlib import Path

from papermix.run.launch import as_rank

if __name__ == "__main__":
    with as_rank(Path(sys.argv[1])):
        from papermix.run.stage import run_stage

        run_stage(Path(sys.argv[1]))
