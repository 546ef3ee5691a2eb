"""One rank of a run of several processes: ``python -m papermix.run.worker FOLDER`` computes the stage frozen there."""

import sys
from pathlib import Path

from papermix.run.explain import explain
from papermix.run.stage import run_stage

if __name__ == "__main__":
    try:
        run_stage(Path(sys.argv[1]))
    except Exception as error:
        print(explain(error), file=sys.stderr)
        raise
