"""Training steps of a network at every stage of its growth, and of one cut to a structure: the time that fewer operations save."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from papermix.run.build import build
from papermix.run.stage import optimizer_factory
from papermix.sparsity.widening import cost, lengths
from scripts.benchmarks.harness import Options, Report, Timing, each_round, interleave, timed
from scripts.benchmarks.parts import Config, config_of, device_of, settle

# overrides, channels of each layer in the cut network, batch, classes, pixels on a side
NETWORKS = {
    "ResNet-20": (["dataset=cifar10", "model=resnet20"], 8, 128, 10, 32),
    "VGG-11": (["dataset=cifar10", "model=vgg11"], 128, 128, 10, 32),
    "ResNet-50": (["dataset=imagenet", "model=timm", "model.name=resnet50"], 64, 32, 1000, 224),
}
EPOCHS = 160
# growths: in nine stages, and in three of them, the first, the fifth and the last, whose widths double
GROWTHS = {"in nine stages": range(9), "in three stages, widths doubling": range(0, 9, 4)}


def grown(config: Config, stage: int, shape: tuple[int, int, int], steps: int) -> tuple[Callable[[], Timing], int]:
    """A loop by hand at a stage, rates adapted; and the stage's operations."""
    torch.manual_seed(config["seed"])
    device = device_of(config)
    model = build(config["model"]).to(device)
    growing = build(config["sparsity"])
    x, y = example(shape, device)
    growing.attach(model, x)
    for _ in range(stage):
        growing.grow()
    optimizer = optimizer_factory(config)(model)
    growing.watch(optimizer)
    return loop(model, optimizer, x, y, steps), growing.flops[stage]


def stock(config: Config, shape: tuple[int, int, int], steps: int) -> Callable[[], Timing]:
    """The network that nothing is done to."""
    torch.manual_seed(config["seed"])
    model = build(config["model"]).to(device_of(config))
    return loop(model, optimizer_factory(config)(model), *example(shape, device_of(config)), steps)


def cut(config: Config, shape: tuple[int, int, int], steps: int) -> tuple[Callable[[], Timing], float]:
    """The same within one interval of structured sparsity, at its first structure; and its operations as a share of the whole."""
    torch.manual_seed(config["seed"])
    device = device_of(config)
    model = build(config["model"]).to(device)
    sparsity = build(config["sparsity"])
    x, y = example(shape, device)
    sparsity.attach(model, x)
    optimizer = optimizer_factory(config)(model)
    sparsity.watch(optimizer)
    return loop(model, optimizer, x, y, steps, sparsity.penalty_backward), sparsity.structure.cost("flops")


def example(shape: tuple[int, int, int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images and labels of a batch, given its size, the classes and the pixels on a side."""
    batch, classes, size = shape
    return torch.randn(batch, 3, size, size, device=device), torch.randint(classes, (batch,), device=device)


def loop(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    steps: int,
    penalty: Callable[[], object] = lambda: None,
) -> Callable[[], Timing]:
    """Forward, backward, penalty, optimizer."""
    wait = settle(x.device)

    def work() -> int:
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            penalty()
            optimizer.step()
        wait()
        return steps

    return lambda: timed(work)


def run(options: Options) -> Report:
    """Stages from a quarter of the width, and a structure of the same number of channels in all layers."""
    steps = 1
    before = torch.get_num_threads()
    if options.threads:
        torch.set_num_threads(options.threads)
    report = Report("growing", "step", {})
    try:
        for label, (overrides, channels, batch, classes, size) in NETWORKS.items():
            if options.smoke:
                batch, size = 2, 32 if size == 224 else 8
            shape = (batch, classes, size)
            common = [*overrides, "dataset.fake=true", f"hardware={options.device}"]
            with tempfile.TemporaryDirectory() as folder:
                config = config_of([*common, "sparsity=growing"], Path(folder) / "growing")
                rate = config["sparsity"]["epoch_rate"]
                whole = stock(config, shape, steps)
                made = [grown(config, stage, shape, steps) for stage in range(config["sparsity"]["stages"])]
                config = config_of(
                    [*common, "sparsity=structured", f"sparsity.seed_channels={channels}"], Path(folder) / "structured"
                )
                structured, used = cut(config, shape, steps)
            arms = {f"stage {stage + 1}": arm for stage, (arm, _) in enumerate(made)}
            timings = interleave({**arms, "cut": structured, "stock": whole}, options.repetitions)
            report.timings[label] = timings
            for how, stages in GROWTHS.items():
                weights = lengths(EPOCHS, len(stages), rate)
                share = cost(weights, [made[k][1] for k in stages])
                report.notes.append(f"{label}, {how}: {share:.3f} of the operations.")

                def saved(
                    t: dict[str, float], stages: range = stages, weights: list[int] = weights, share: float = share
                ) -> float:
                    time = sum(n * t[f"stage {k + 1}"] for n, k in zip(weights, stages)) / (sum(weights) * t["stock"])
                    return (1 - time) / (1 - share)

                what = f"{label}, growing {how}: share of time saved / share of operations saved"
                report.checks.append(each_round(timings, saved, what, bound=0.7, sense=">="))
            report.notes.append(
                f"{label}, cut to {channels} channels a layer: {used:.3f} of the operations; batch {batch} of {size}x{size}."
            )

            def saved_by_cut(t: dict[str, float], used: float = used) -> float:
                return (1 - t["cut"] / t["stock"]) / (1 - used)

            report.checks.append(
                each_round(timings, saved_by_cut, f"{label}, structured: share of time saved / share of operations saved")
            )
        report.notes.append(
            f"{torch.get_num_threads()} threads; a loop by hand, SGD; {EPOCHS} epochs over the stages as in the recipes."
        )
    finally:
        torch.set_num_threads(before)
    return report
