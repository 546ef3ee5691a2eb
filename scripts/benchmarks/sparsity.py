"""Training steps of a network under each sparsity beside the dense one: what masks cost."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from papermix.run.build import build
from papermix.run.stage import optimizer_factory
from scripts.benchmarks.harness import Options, Report, Timing, each_round, interleave, timed
from scripts.benchmarks.parts import Config, config_of, device_of, settle

# arm -> overrides; continuous is what the bound is on
ARMS = {
    "dense": ["sparsity=none"],
    "continuous": ["sparsity=continuous"],
    "stochastic": ["sparsity=stochastic"],
    "l0": ["sparsity=l0"],
    "magnitude": ["sparsity=magnitude", "sparsity.start=0", "sparsity.end=0", "sparsity.updates=1"],
}


def looped(config: Config, batch: int, size: int, steps: int) -> Callable[[], Timing]:
    """A loop by hand over one batch: the sparsity's schedule, forward, backward, penalty, optimizer. Times ``steps`` steps."""
    torch.manual_seed(config["seed"])
    device = device_of(config)
    model = build(config["model"]).to(device)
    sparsity = build(config["sparsity"]) if config["sparsity"].get("_target_") else None
    if sparsity is not None:
        sparsity.attach(model)
    optimizer = optimizer_factory(config)(model)
    x, y = torch.randn(batch, 3, size, size, device=device), torch.randint(10, (batch,), device=device)
    done, wait = 0, settle(device)

    def work() -> int:
        nonlocal done
        for _ in range(steps):
            if sparsity is not None:
                sparsity.update(done, 10_000)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            if sparsity is not None:
                sparsity.penalty_backward()
            optimizer.step()
            done += 1
        wait()
        return steps

    return lambda: timed(work)


def run(options: Options) -> Report:
    """ResNet-20 at batch 128."""
    batch, size, steps = (2, 8, 1) if options.smoke else (128, 32, 4)
    before = torch.get_num_threads()
    if options.threads:
        torch.set_num_threads(options.threads)
    common = ["dataset=cifar10", "dataset.fake=true", "model=resnet20", f"hardware={options.device}"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            arms = {
                name: looped(config_of([*common, *own], Path(folder) / name), batch, size, steps) for name, own in ARMS.items()
            }
        timings = interleave(arms, options.repetitions)
    finally:
        threads = torch.get_num_threads()
        torch.set_num_threads(before)
    report = Report("sparsity", "step", {"ResNet-20": timings})
    report.notes.append(f"ResNet-20, batch {batch} of {size}x{size}, {threads} threads; a loop by hand, SGD; all weights under masks.")
    for name in list(ARMS)[1:]:
        bound = {"bound": 1.10, "sense": "<="} if name == "continuous" else {}
        report.checks.append(
            each_round(timings, lambda t, name=name: t[name] / t["dense"], f"{name} / dense, time of a training step", **bound)  # type: ignore[arg-type, misc]
        )
    return report
