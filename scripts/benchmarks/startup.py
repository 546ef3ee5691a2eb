"""From the shell to the first training step, beside Python importing torch and Lightning; and how fast bad input is refused."""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from scripts.benchmarks.harness import Check, Options, Report, Timing, interleave

ROOT = Path(__file__).resolve().parents[2]

# train.py up to the end of its first optimizer step; torch is imported at the same moment as without this
FIRST_STEP = """
import importlib.abc, os, runpy, sys

class Found(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "datamodules.base":
            sys.meta_path.remove(self)
            from torch.optim.optimizer import register_optimizer_step_post_hook
            register_optimizer_step_post_hook(lambda *_: os._exit(0))

sys.meta_path.insert(0, Found())
sys.argv = ["train.py", *sys.argv[1:]]
sys.path[0] = os.getcwd()
runpy.run_path("train.py", run_name="__main__")
sys.exit("no optimizer step was taken")
"""
REFUSED = {
    "refused: unknown key": "optimizer.learning_rate=0.1",
    "refused: unknown option": "model=resnet_20",
    "refused: impossible mix": "model=lstm_lm",
}


def start(command: list[str], code: int) -> Timing:
    """Run a command line to its end. Raises RuntimeError, with what it printed, when it exits with another code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != code:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return Timing(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def first_step(*overrides: str) -> Timing:
    """From the shell to the end of the first optimizer step of train.py."""
    with tempfile.TemporaryDirectory() as folder:
        return start(["-c", FIRST_STEP, *overrides, f"hydra.run.dir={folder}/run"], 0)


def run(options: Options) -> Report:
    """Time the default experiment's start and three refusals."""
    arms: dict[str, Callable[[], Timing]] = {
        "import torch, pytorch_lightning": lambda: start(["-c", "import torch, pytorch_lightning"], 0),
        "train.py to its first step": first_step,
        **{name: lambda o=override: start(["train.py", o], 1) for name, override in REFUSED.items()},  # type: ignore[misc]
    }
    report = Report("startup", "start", notes=["from the shell, files in the page cache; train.py is the digits default"])
    timings = report.timings["start"] = interleave(arms, options.repetitions, warmup=0 if options.smoke else 1)
    imports, training = (timings[name] for name in list(arms)[:2])
    # the bound of 1.3 imports and one second, as one number
    ratios = [t.wall / (1.3 * i.wall + 1) for t, i in zip(training, imports)]
    report.checks.append(Check("first step over (1.3 x imports + 1 s)", ratios, 1.0, "<="))
    report.checks.append(Check("first step over imports", [t.wall / i.wall for t, i in zip(training, imports)]))
    for name in REFUSED:
        report.checks.append(Check(f"{name}, seconds", [t.wall for t in timings[name]], 1.0, "<="))
    return report
