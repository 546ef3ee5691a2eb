"""Memory of each of two processes that share out the weights (hardware=fsdp_cpu) against two that each have all (hardware=ddp_cpu)."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from papermix.run.folder import adopt, make
from papermix.run.launch import as_rank, launch
from scripts.benchmarks.harness import Check, Options, Report, Timing

MODEL = ["model=transformer_lm", "dataset=pydocs_char", "dataset.fake=true", "dataset.limit=20000", "optimizer=adamw"]
MODEL += ["model.dropout=0.0", "dataset.batch_size=4", "dataset.seq_len=16", "callbacks=[]", "logger=[]", "test=none"]
LARGE = ["model.width=768", "model.layers=10", "model.heads=12"]
SMALL = ["model.width=32", "model.layers=2", "model.heads=2"]
STEPS = 3
MIB = 2**20


def measure(hardware: str, size: list[str], threads: int) -> list[dict[str, Any]]:
    """What each process of a short training found, see :func:`work`."""
    from scripts.benchmarks.parts import config_of

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / hardware
        more = [f"hardware={hardware}", f"hardware.threads={threads}", f"trainer.max_steps={STEPS}", "trainer.limit_val_batches=0"]
        config = config_of([*MODEL, *size, *more], place)
        make(place)
        adopt(place, config)
        launch(place, 2, command=[sys.executable, "-m", "scripts.benchmarks.sharded", str(place)])
        return [json.loads((place / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def work(place: Path) -> None:
    """One process: train, and note its own bytes of parameters, gradients and optimizer state, its peak memory, its seconds a step."""
    import pytorch_lightning as pl
    import torch

    from papermix.run import stage
    from papermix.run.machine import resident_memory
    from papermix.sharding import local

    before = resident_memory()

    class Watch(pl.Callback):
        times: list[tuple[float, float]] = []

        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            self.times.append((time.perf_counter(), time.process_time()))

        def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer) -> None:
            if not optimizer.state:
                return
            weights = list(pl_module.parameters())
            moments = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor) and v.ndim]
            self.count = sum(p.numel() for p in weights)
            self.own = sum(local(t).numel() * t.element_size() for t in [*weights, *moments])

        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            found: dict[str, float] = {"parameters": self.count, "own": self.own, "peak": resident_memory() - before}
            for key, first, last in zip(("seconds", "cpu"), self.times[0], self.times[-1]):
                found[key] = (last - first) / (len(self.times) - 1)
            (place / f"rank-{trainer.global_rank}.json").write_text(json.dumps(found), encoding="utf-8")

    callbacks = stage.build_callbacks
    stage.build_callbacks = lambda config: [*callbacks(config), Watch()]
    stage.run_stage(place)


def run(options: Options) -> Report:
    """Parameters and optimizer state, peak memory and seconds a step, of a transformer of 71 million parameters under AdamW."""
    report = Report("sharded", "step", {"two processes on the CPU": {"ddp_cpu": [], "fsdp_cpu": []}})
    size = SMALL if options.smoke else LARGE
    # once: bytes do not vary
    found = {hardware: measure(hardware, size, options.threads or 1) for hardware in ("ddp_cpu", "fsdp_cpu")}
    worst = {hardware: {key: max(rank[key] for rank in ranks) for key in ranks[0]} for hardware, ranks in found.items()}
    for hardware, numbers in worst.items():
        report.timings["two processes on the CPU"][hardware].append(Timing(numbers["seconds"], numbers["cpu"]))
    all_of_it, share = worst["ddp_cpu"], worst["fsdp_cpu"]
    own, peak = share["own"] / all_of_it["own"], share["peak"] / all_of_it["peak"]
    report.checks.append(Check("parameters and optimizer state of a process, sharded over not", [own], 0.55, "<="))
    report.checks.append(Check("peak memory of a process beyond its imports, sharded over not", [peak], 0.8, "<="))
    report.notes.append(
        f"{all_of_it['parameters'] / 1e6:.1f} million parameters in 32 bits, AdamW: parameters and optimizer state "
        f"{all_of_it['own'] / MIB:.0f} MB in each of two processes, sharded {share['own'] / MIB:.0f} MB; "
        f"peak memory beyond the imports {all_of_it['peak'] / MIB:.0f} MB, sharded {share['peak'] / MIB:.0f} MB."
    )
    return report


if __name__ == "__main__":
    with as_rank(Path(sys.argv[1])):
        from papermix.run.worker import leave

        work(Path(sys.argv[1]))
        leave()
