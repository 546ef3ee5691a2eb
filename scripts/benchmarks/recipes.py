"""Step time and peak memory of recipes at the papers' scale on fake data, and what drawn scenes cost beside their training."""

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
    "the same by pixel consensus voting (grid of 233 cells)": [
        "experiment=pixel_consensus_voting/coco",
        "dataset.batch_size=2",
        "dataset.augment.scale=null",
    ],
    "R-50 DeepLabv3+, VOC, 4 crops (512x512)": ["experiment=pixels/voc_deeplabv3", "dataset.batch_size=4"],
    "ResNet-50, ImageNet, 32 images (224x224)": ["experiment=foundation/imagenet_resnet50", "dataset.batch_size=32"],
}
SCENES = "U-Net, 16 drawn scenes (64x64)"
SHAPES = ["experiment=pixels/shapes_panoptic"]
FAKE = ["dataset.fake=true", "dataset.limit=200"]
SMALL = ["dataset.image_size=32", "dataset.batch_size=2"]
COMMON = ["dataset.workers=0", "callbacks=[]", "logger=[]", "test=none", "scheduler._target_=null"]


def child(overrides: list[str], steps: int) -> dict[str, Any]:
    """Take steps, the first of which does not count; their times, that of their batches alone, and the peak memory in bytes."""
    import tempfile
    from itertools import islice

    from papermix.run.stage import peak_memory
    from scripts.benchmarks.harness import timed
    from scripts.benchmarks.parts import config_of, data_of, fit

    with tempfile.TemporaryDirectory() as folder:
        config = config_of(overrides, Path(folder))
        timing = fit(config, steps, 1)
        memory = peak_memory()
        loader = data_of(config).loader("train")
        data = timed(lambda: sum(1 for _ in islice(loader, steps)))
    return {"wall": timing.wall, "cpu": timing.cpu, "count": timing.count, "memory": memory, "data": data.each / timing.each}


def run(options: Options) -> Report:
    """Each recipe in turn; a round is one step."""
    report = Report("recipes", "step", notes=["fake data of the true size, no worker processes; one step of warm-up"])
    steps = 1 if options.smoke else max(2, options.repetitions // 2)
    hardware = "hardware=cpu" if options.device == "cpu" else "hardware=gpu"
    chosen = {} if options.smoke else {name: [*recipe, *FAKE] for name, recipe in RECIPES.items()}
    for name, recipe in {**chosen, SCENES: SHAPES}.items():
        count = 20 * steps if name == SCENES and not options.smoke else steps
        overrides = [*recipe, *COMMON, hardware, *(SMALL if options.smoke else [])]
        if options.threads:
            overrides.append(f"hardware.threads={options.threads}")
        command = [sys.executable, "-m", "scripts.benchmarks.recipes", str(count), *overrides]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        report.timings.setdefault("recipe", {})[name] = [Timing(found["wall"], found["cpu"], found["count"])]
        report.checks.append(Check(f"peak memory of {name}, GB", [found["memory"] / 1e9]))
        if name == SCENES:
            report.checks.append(Check("drawing and augmenting scenes over the whole step", [found["data"]], 0.25, "<="))
    return report


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[2:], int(sys.argv[1]))))
