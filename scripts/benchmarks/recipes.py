"""Step time and peak memory of recipes at the papers' scale on fake data, and what drawn scenes cost beside their training."""

import json
import subprocess
import sys
import tempfile
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
    "R-50 FPN, pixel consensus voting (grid of 233 cells), COCO, 2 whole images": [
        "experiment=pixel_consensus_voting/coco",
        "dataset.batch_size=2",
        "dataset.augment.scale=null",
    ],
    "pixel consensus voting, R-50 FPN, Cityscapes, 2 crops (512x1024)": [
        "experiment=pixel_consensus_voting/cityscapes",
        "dataset.batch_size=2",
    ],
    "R-50 DeepLabv3+, VOC, 4 crops (512x512)": ["experiment=pixels/voc_deeplabv3", "dataset.batch_size=4"],
    "R-101 DeepLabv3+ with label structure, VOC, 4 crops (512x512)": [
        "experiment=label_structure/voc_deeplabv3",
        "stages=null",
        "callbacks=[label_structure]",
        "callbacks.label_structure.autoencoder={before}",
        "dataset.batch_size=4",
    ],
    "R-101 DeepLabv3+ without label structure, VOC, 4 crops": [
        "experiment=label_structure/voc_deeplabv3",
        "stages=null",
        "dataset.batch_size=4",
    ],
    "R-50 FPN with label structure, VOC, 4 crops": [
        "experiment=label_structure/voc_fpn",
        "stages=null",
        "callbacks=[label_structure]",
        "callbacks.label_structure.autoencoder={before}",
        "dataset.batch_size=4",
    ],
    "U-Net with label structure, VOC, 4 crops": [
        "experiment=label_structure/voc_unet",
        "stages=null",
        "callbacks=[label_structure]",
        "callbacks.label_structure.autoencoder={before}",
        "dataset.batch_size=4",
    ],
    "ResNet-50, ImageNet, 32 images (224x224)": ["experiment=foundation/imagenet_resnet50", "dataset.batch_size=32"],
    "nested network of ALERT, ImageNet, 32 images": ["experiment=alert/imagenet_nested", "dataset.batch_size=32"],
    "false negative cancellation, ResNet-50, ImageNet, 4 images in ten views, queue of 65,536": [
        "experiment=false_negative_cancellation/imagenet_resnet50",
        "stages=null",
        "dataset.batch_size=4",
    ],
    "SimCLR, ResNet-50, ImageNet, 16 images in two views": [
        "experiment=false_negative_cancellation/imagenet_simclr",
        "stages=null",
        "dataset.batch_size=16",
    ],
    "MoCo v2, ResNet-50, ImageNet, 16 images": [
        "experiment=false_negative_cancellation/imagenet_moco",
        "stages=null",
        "dataset.batch_size=16",
    ],
    "false negative cancellation, WRN-16-8, CIFAR-10, 64 images in four views": [
        "experiment=false_negative_cancellation/cifar10",
        "stages=null",
        "dataset.batch_size=64",
    ],
    "linear probe of a ResNet-50, ImageNet, 32 images": [
        "experiment=false_negative_cancellation/imagenet_labels",
        "dataset.batch_size=32",
    ],
    "multigrid memory, mazes of 25x25, 32 walks of 20 steps": ["experiment=multigrid_memory/mapping_spiral25"],
    "multigrid memory, recall, 32 rows of 10 images": ["experiment=multigrid_memory/recall_mnist"],
    "multigrid memory, priority sort, 32 rows": ["experiment=multigrid_memory/priority_sort"],
    "multigrid memory, bAbI, 32 stories of 100 words": ["experiment=multigrid_memory/babi"],
}
SCENES = "U-Net, 16 drawn scenes (64x64)"
SHAPES = ["experiment=pixels/shapes_panoptic"]
FAKE = ["dataset.fake=true", "dataset.limit=400"]
SMALL = ["dataset.image_size=32", "dataset.batch_size=2"]
COMMON = ["logger=[]", "test=none", "scheduler._target_=null"]


def child(overrides: list[str], steps: int) -> dict[str, Any]:
    """Take steps, the first of which does not count; their times, that of their batches alone, and the peak memory in bytes."""
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


def overrides_of(recipe: list[str], folder: str) -> list[str]:
    """The command line of a recipe that is only timed; ``folder`` is the run of its first stage, if it has one."""
    recipe = [o.replace("{before}", f"{folder}/autoencoder") for o in recipe]
    return ["callbacks=[]", *COMMON, *alone(recipe), *recipe]


def alone(recipe: list[str]) -> list[str]:
    """No worker processes, for data that may have some."""
    from papermix.run.compose import compose

    return ["dataset.workers=0"] if "workers" in compose(recipe, with_hydra=True).dataset else []


def called(command: list[str]) -> str:
    """What a command prints. Raises RuntimeError, with all it printed, when it fails."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def run(options: Options) -> Report:
    """Each recipe in turn; a round is one step."""
    report = Report("recipes", "step", notes=["fake data of the true size, no worker processes; one step of warm-up"])
    steps = 1 if options.smoke else max(2, options.repetitions // 2)
    hardware = "hardware=cpu" if options.device == "cpu" else "hardware=gpu"
    chosen = {} if options.smoke else {name: [*recipe, *FAKE] for name, recipe in RECIPES.items()}
    for name, recipe in {**chosen, SCENES: SHAPES}.items():
        count = 20 * steps if name == SCENES and not options.smoke else steps
        with tempfile.TemporaryDirectory() as folder:
            overrides = [*overrides_of(recipe, folder), hardware, *(SMALL if options.smoke else [])]
            if options.threads:
                overrides.append(f"hardware.threads={options.threads}")
            if any("{before}" in o for o in recipe):
                # its first stage alone
                before = [recipe[0], "~stages.segmentation", "dataset.batch_size=4", "debug=two_steps"]
                called(["train.py", *before, *FAKE, *alone(recipe[:1]), hardware, f"hydra.run.dir={folder}"])
            found = json.loads(called(["-m", "scripts.benchmarks.recipes", str(count), *overrides]).strip().splitlines()[-1])
        report.timings.setdefault("recipe", {})[name] = [Timing(found["wall"], found["cpu"], found["count"])]
        report.checks.append(Check(f"peak memory of {name}, GB", [found["memory"] / 1e9]))
        print(f"{name}: {found['memory'] / 1e9:.2f} GB, {found['wall'] / found['count']:.2f} s a step", file=sys.stderr, flush=True)
        if name == SCENES:
            report.checks.append(Check("drawing and augmenting scenes over the whole step", [found["data"]], 0.25, "<="))
    return report


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[2:], int(sys.argv[1]))))
