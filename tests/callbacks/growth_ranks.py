"""One of two processes of ``test_growth``: a whole run, one killed after a growth, its continuation."""

import contextlib
import sys
from pathlib import Path

from papermix.run import stage
from papermix.run.worker import leave
from tests.machine import Killed, StopBefore

if __name__ == "__main__":
    whole, cut = Path(sys.argv[1]) / "whole", Path(sys.argv[1]) / "cut"
    stage.run_stage(whole)
    original = stage.build_callbacks
    stage.build_callbacks = lambda config: [*original(config), StopBefore(13)]
    with contextlib.suppress(Killed):
        stage.run_stage(cut)
    stage.build_callbacks = original
    stage.run_stage(cut)
    leave()
