"""A hundred tiny runs in one sweep: what each costs beyond its training, and whether memory grows from run to run."""

import json
import tempfile
from pathlib import Path

from scripts.benchmarks.harness import Check, Options, Report, Timing
from scripts.benchmarks.startup import start

# train.py in this process; the outermost loop of every fit and test is timed, and after each fit the resident memory is read
WATCHED = """
import importlib.abc, json, os, runpy, sys, time
from pathlib import Path

log = Path(sys.argv.pop(1))

def watch():
    from pytorch_lightning.loops.evaluation_loop import _EvaluationLoop
    from pytorch_lightning.loops.fit_loop import _FitLoop
    state = {"inside": False}
    page = os.sysconf("SC_PAGE_SIZE")

    def timed(cls, kind):
        run = cls.run
        def wrapped(self):
            if state["inside"]:
                return run(self)
            state["inside"], began = True, time.perf_counter()
            try:
                return run(self)
            finally:
                state["inside"] = False
                seconds = time.perf_counter() - began
                memory = page * int(Path("/proc/self/statm").read_text().split()[1])
                entry = {"kind": kind, "seconds": seconds, "memory": memory}
                with log.open("a") as f:
                    f.write(json.dumps(entry) + "\\n")
        cls.run = wrapped

    timed(_FitLoop, "fit")
    timed(_EvaluationLoop, "test")

class Found(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "datamodules.base":
            sys.meta_path.remove(self)
            watch()

sys.meta_path.insert(0, Found())
sys.path[0] = os.getcwd()
runpy.run_path("train.py", run_name="__main__")
"""
RUNS, EARLY = 100, 10
TINY = ["dataset=digits", "model=mlp", "trainer.max_epochs=1", "hardware=cpu"]


def sweep(runs: int, threads: int) -> tuple[Timing, list[dict[str, float]]]:
    """A sweep over so many seeds: its time from the shell to its end, and what was seen of each loop."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "loops.jsonl"
        overrides = [*TINY, f"hardware.threads={threads}", f"seed=range(1,{runs + 1})", f"hydra.sweep.dir={folder}/sweep"]
        timing = start(["-c", WATCHED, str(log), "-m", *overrides], 0)
        return timing, [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def run(options: Options) -> Report:
    """Seconds of each run beyond its loops of training and test, the start of Python included; memory late over memory early."""
    runs, early = (3, 1) if options.smoke else (RUNS, EARLY)
    report = Report("sweep", "run", {})
    whole, loops = sweep(runs, options.threads or 1)
    fits = [loop for loop in loops if loop["kind"] == "fit"]
    if len(fits) != runs:
        raise RuntimeError(f"{len(fits)} of {runs} runs were seen to train")
    inside = sum(loop["seconds"] for loop in loops)
    report.timings["sweep"] = {
        "all": [Timing(whole.wall, whole.cpu, runs)],
        "loops of training and test": [Timing(inside, inside, runs)],
    }
    report.checks.append(Check("seconds of a run beyond its loops", [(whole.wall - inside) / runs], 0.5, "<="))
    memory = [loop["memory"] for loop in fits]
    report.checks.append(Check(f"memory after run {runs} / after run {early}", [memory[-1] / memory[early - 1]], 1.1, "<="))
    report.notes.append(
        f"one sweep of {runs} runs in one process: `{' '.join(TINY)}`, {memory[early - 1] / 2**20:.0f} MB after run {early}, "
        f"{memory[-1] / 2**20:.0f} MB after run {runs}."
    )
    return report
