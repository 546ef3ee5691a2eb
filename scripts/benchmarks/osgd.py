"""A step of Orthogonalized SGD beside one of the sum of the losses, and what its backward passes cost in theory."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from papermix.metrics.exits import exit_flops
from papermix.run.build import build
from scripts.benchmarks.harness import Check, Options, Report, each_round, interleave
from scripts.benchmarks.overhead import long
from scripts.benchmarks.parts import Config, config_of, fit

NETS: dict[str, list[str]] = {
    "nested_width, 4 exits, CIFAR-10, batch 128": ["dataset=cifar10", "dataset.batch_size=128", "model=nested_width"],
    "nested_mlp, 4 exits, Fashion-MNIST, batch 64": ["dataset=fashion_mnist", "dataset.batch_size=64", "model=nested_mlp"],
}
COMMON = ["dataset.fake=true", "callbacks=[]", "logger=[]", "test=none"]
SMOKE = ["dataset.batch_size=4", "model.exits=2", "model.width=2"]


def theory(config: Config) -> tuple[float, int]:
    """Step of OSGD over step of the sum, in operations, and the exits: a backward pass is twice the forward pass to its exit.

    Both go forward once through the whole network; the sum goes back once through all of it, OSGD once from each exit.
    """
    model: Any = build(config["model"])
    data = config["dataset"]
    costs = exit_flops(model, torch.zeros(1, data["in_chans"], data["image_size"], data["image_size"]))
    return (costs[-1] + 2 * sum(costs)) / (3 * costs[-1]), len(costs)


def backward_passes(config: Config) -> int:
    """Calls of torch's backward engine for losses in one step of OSGD."""
    calls = 0
    original = torch.autograd.grad

    def counting(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += not isinstance(inputs, torch.Tensor)  # the one that asks for the scale stops at the sum itself
        return original(outputs, inputs, *args, **kwargs)

    torch.autograd.grad = counting  # type: ignore[assignment]
    try:
        fit(config, 1, 0, lambda loader: long(loader, 2))
    finally:
        torch.autograd.grad = original
    return calls // 2  # fit takes one step more than it times


def run(options: Options) -> Report:
    """Both methods over the same batches, through train.py's own machinery."""
    report = Report("osgd", "step", notes=["fake data; forward and backward passes, projection, update, no callbacks"])
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or before)
    steps, skip = (1, 1) if options.smoke else (10, 3) if options.device == "cpu" else (300, 100)
    with tempfile.TemporaryDirectory() as folder:
        for place, (name, net) in enumerate(NETS.items()):
            overrides = [*net, *COMMON, f"hardware={options.device}", *(SMOKE if options.smoke else [])]
            own = {
                method: config_of([*overrides, f"method={method}"], Path(folder) / f"{place}{method}")
                for method in ("multi_exit", "orthogonalized")
            }
            many = steps * (20 if "mlp" in name and not options.smoke else 1)

            def arm(config: Config, many: int = many) -> Any:
                return lambda: fit(config, many, skip, lambda loader: long(loader, many + skip + 1))

            timings = interleave({m: arm(c) for m, c in own.items()}, options.repetitions, warmup=0 if options.smoke else 1)
            report.timings[name] = timings
            ratio, exits = theory(own["multi_exit"])
            what = f"{name}: step of OSGD over step of the sum, over the {ratio:.2f} of theory"
            bound = 1.25 if "width" in name else None
            formula = lambda s, ratio=ratio: s["orthogonalized"] / s["multi_exit"] / ratio  # noqa: E731
            report.checks.append(each_round(timings, formula, what, bound, "<="))
            passes = backward_passes(own["orthogonalized"])
            what = f"{name}: backward passes of a step, over the number of exits"
            report.checks.append(Check(what, [passes / exits], 1.0, "<="))
    torch.set_num_threads(before)
    return report
