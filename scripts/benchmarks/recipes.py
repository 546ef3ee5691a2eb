"""Step time and peak memory of recipes at the papers' scale on fake data, each in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts.benchmarks.harness import Check, Options, Report, Timing

ROOT = Path(__file__).resolve().parents[2]
# name -> the command line; the batch is what one device would have
RECIPES: dict[str, list[str]] = {
    "R-50 FPN, panoptic COCO, 2 whole images (800x1067)": [
        "experiment=pixels/coco_panoptic_fpn",
        "dataset.batch_size=2",
        "dataset.resize=800",
        "dataset.augment.scale=null",
        "dataset.augment.crop=null",
    ],
    "R-50 DeepLabv3+, VOC, 4 crops (512x512)": ["experiment=pixels/voc_deeplabv3", "dataset.batch_size=4"],
    "ResNet-50, ImageNet, 32 images (224x224)": ["experiment=foundation/imagenet_resnet50", "dataset.batch_size=32"],
}
COMMON = ["dataset.fake=true", "dataset.workers=0", "callbacks=[]", "logger=[]", "test=none", "scheduler._target_=null"]


def child(overrides: list[str], steps: int) -> dict[str, Any]:
    """Take steps, the first of which does not count; times of the others and the process's peak memory in bytes."""
    import tempfile

    from papermix.run.stage import peak_memory
    from scripts.benchmarks.parts import config_of, fit

    with tempfile.TemporaryDirectory() as folder:
        timing = fit(config_of(overrides, Path(folder)), steps, 1)
    return {"wall": timing.wall, "cpu": timing.cpu, "count": timing.count, "memory": peak_memory()}


def run(options: Options) -> Report:
    """Each recipe in turn; a round is one step."""
    report = Report("recipes", "step", notes=["fake data of the true size, no worker processes; one step of warm-up"])
    steps = 1 if options.smoke else max(2, options.repetitions // 2)
    hardware = "hardware=cpu" if options.device == "cpu" else "hardware=gpu"
    chosen = dict(list(RECIPES.items())[-1:]) if options.smoke else RECIPES
    for name, recipe in chosen.items():
        overrides = [*recipe, *COMMON, hardware, *(["dataset.image_size=32", "dataset.batch_size=2"] if options.smoke else [])]
        if options.threads:
            overrides.append(f"hardware.threads={options.threads}")
        command = [sys.executable, "-m", "scripts.benchmarks.recipes", str(steps), *overrides]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        report.timings.setdefault("recipe", {})[name] = [Timing(found["wall"], found["cpu"], found["count"])]
        report.checks.append(Check(f"peak memory of {name}, GB", [found["memory"] / 1e9]))
    return report


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[2:], int(sys.argv[1]))))
