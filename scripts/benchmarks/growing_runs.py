"""Whole runs of train.py with and without growth: the share of the operations saved that comes back as time."""

import tempfile
from pathlib import Path

from papermix.run import folder
from papermix.run.build import build
from papermix.sparsity.widening import cost
from scripts.benchmarks.growing import NETWORKS, example
from scripts.benchmarks.harness import Check, Options, Report, Timing, interleave
from scripts.benchmarks.parts import config_of, device_of
from scripts.benchmarks.startup import start

RECIPES = {"VGG-11": "cifar100_vgg11", "ResNet-20": "cifar10_resnet20"}
# the nine stages' lengths in the proportions of 160 epochs; steps of an epoch
EPOCHS, STEPS, ROUNDS = 45, 4, 3


def overrides(recipe: str, epochs: int, images: int, device: str) -> list[str]:
    """The recipe on fake images, trained and nothing else."""
    return [
        f"experiment=growing_variance_transfer/{recipe}", "dataset.fake=true", f"dataset.limit={images}", f"hardware={device}",
        f"trainer.max_epochs={epochs}", "test=none", "trainer.limit_val_batches=0",
    ]  # fmt: skip


def saved_operations(command: list[str], shape: tuple[int, int, int]) -> float:
    """Share of the operations that the growth of a command saves."""
    with tempfile.TemporaryDirectory() as place:
        config = config_of(command, Path(place) / "run")
    model, growing, device = build(config["model"]), build(config["sparsity"]), device_of(config)
    growing.attach(model.to(device), example(shape, device)[0])
    return 1 - cost(growing.lengths(config["trainer"]["max_epochs"]), growing.flops)


def trained(command: list[str], count: int, threads: int | None) -> Timing:
    """Seconds of a run from its data to its result, start of Python excluded; CPU time has it."""
    with tempfile.TemporaryDirectory() as place:
        more = [f"hardware.threads={threads}"] if threads else []
        whole = start(["train.py", *command, *more, f"hydra.run.dir={place}/run"], 0)
        result = folder.read_json(Path(place) / "run" / "result.json")
    assert result is not None
    return Timing(result["wall_seconds"], whole.cpu, count)


def run(options: Options) -> Report:
    """The recipes of two networks, a few minutes each, with `sparsity.stages=1` (the stock network) beside them."""
    report = Report("growing_runs", "step", {})
    epochs, batch, steps = (9, 8, 1) if options.smoke else (EPOCHS, 128, STEPS)
    for label, recipe in RECIPES.items():
        _, _, _, classes, size = NETWORKS[label]
        command = [*overrides(recipe, epochs, batch * steps, options.device), f"dataset.batch_size={batch}"]
        saved = saved_operations(command, (batch, classes, size))
        arms = {
            "growing": lambda c=command: trained(c, epochs * steps, options.threads),
            "the stock network throughout": lambda c=command: trained([*c, "sparsity.stages=1"], epochs * steps, options.threads),
        }
        timings = report.timings[label] = interleave(arms, min(options.repetitions, ROUNDS), warmup=0)  # type: ignore[arg-type]
        # CPU time has the start of Python, too, and tells nothing here
        shares = [(1 - growing.wall / whole.wall) / saved for growing, whole in zip(*timings.values())]
        report.checks.append(Check(f"{label}: share of time saved / share of operations saved", shares, 0.7, ">="))
        report.notes.append(f"{label}: `python train.py {' '.join(command)}` saves {saved:.3f} of the operations.")
    report.notes.append("From the data to the result: growths, checkpoints and pictures count, the start of Python does not.")
    return report
