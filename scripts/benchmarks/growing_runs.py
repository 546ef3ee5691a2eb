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

# label -> recipe, and the numbers of stages
RECIPES = {"VGG-11": ("cifar100_vgg11", (9,)), "ResNet-20": ("cifar10_resnet20", (9, 3))}
# fewer epochs than stages: these begin at any step, so that their lengths are in the recipe's proportions
EPOCHS, STEPS, ROUNDS = 2, 180, 3


def overrides(recipe: str, epochs: int, images: int, device: str) -> list[str]:
    """The recipe on fake images, trained and nothing else."""
    return [
        f"experiment=growing_variance_transfer/{recipe}", "dataset.fake=true", f"dataset.limit={images}", f"hardware={device}",
        f"trainer.max_epochs={epochs}", "test=none", "trainer.limit_val_batches=0",
    ]  # fmt: skip


def saved_operations(command: list[str], shape: tuple[int, int, int], steps: int) -> float:
    """Share of the operations that the growth of a command saves, which trains for so many steps."""
    with tempfile.TemporaryDirectory() as place:
        config = config_of(command, Path(place) / "run")
    model, growing, device = build(config["model"]), build(config["sparsity"]), device_of(config)
    growing.attach(model.to(device), example(shape, device)[0])
    return 1 - cost(growing.lengths(steps), growing.flops)


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
    epochs, batch, steps = (2, 8, 9) if options.smoke else (EPOCHS, 128, STEPS)
    for label, (recipe, growths) in RECIPES.items():
        _, _, _, classes, size = NETWORKS[label]
        common = [*overrides(recipe, epochs, batch * steps, options.device), f"dataset.batch_size={batch}"]
        commands = {f"{n} stages": [*common, f"sparsity.stages={n}"] for n in growths}
        arms = {
            name: lambda c=command: trained(c, epochs * steps, options.threads)
            for name, command in {**commands, "stock": [*common, "sparsity.stages=1"]}.items()
        }
        timings = report.timings[label] = interleave(arms, min(options.repetitions, ROUNDS), warmup=0)  # type: ignore[arg-type]
        for name, command in commands.items():
            saved = saved_operations(command, (batch, classes, size), epochs * steps)
            # CPU time has the start of Python, too, and tells nothing here
            shares = [(1 - growing.wall / whole.wall) / saved for growing, whole in zip(timings[name], timings["stock"])]
            report.checks.append(Check(f"{label}, {name}: share of time saved / share of operations saved", shares, 0.7, ">="))
            report.notes.append(f"{label}: `python train.py {' '.join(command)}` saves {saved:.3f} of the operations.")
    report.notes.append(
        "The stock network has `sparsity.stages=1`. From the data to the result: growths, checkpoints and pictures count, the start of Python does not."
    )
    return report
