"""Images per second of the in-memory pipeline beside torchvision's CIFAR10 with per-sample transforms and two workers."""

import multiprocessing
import os
import pickle
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.benchmarks.harness import Options, Report, Timing, Window, each_round, interleave
from scripts.benchmarks.parts import config_of, data_of

BATCH = 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
FILES = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]


def write_cifar10(folder: Path, images_a_file: int) -> None:
    """Random bytes in CIFAR-10's layout: five training files, one test file, the names of the classes."""
    random = np.random.default_rng(0)
    place = folder / "cifar-10-batches-py"
    place.mkdir(parents=True)
    for name in FILES:
        data = random.integers(0, 256, (images_a_file, 3072), np.uint8)
        content = {"data": data, "labels": (np.arange(images_a_file) % 10).tolist()}
        (place / name).write_bytes(pickle.dumps(content))
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {n}" for n in range(10)]}))


def theirs(folder: Path) -> Any:
    """torchvision's data set as its users load it: crop, flip, to tensor, normalise, image by image, in two workers."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import CIFAR10

    class Unchecked(CIFAR10):
        """Random bytes have no checksum."""

        train_list = [[name, None] for name in FILES[:5]]
        test_list = [[FILES[5], None]]
        meta = {"filename": "batches.meta", "key": "label_names", "md5": None}

    steps = [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    data = Unchecked(str(folder), transform=transforms.Compose(steps))
    return DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=2)


def family_cpu() -> float:
    """CPU seconds of this process and of its workers that are still at work."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        try:
            fields = Path(f"/proc/{child.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def speed(loader: Iterable[Any], skip: int, batches: int) -> Timing:
    """Time the batches after the first ``skip``; whatever workers there are end here."""
    window = Window(skip, batches, cpu=family_cpu)
    for number, _ in enumerate(window.watch(loader)):
        if number == skip + batches:
            break
    timing = window.timing()
    return Timing(timing.wall, timing.cpu, timing.count * BATCH)


def run(options: Options) -> Report:
    """Both pipelines over the same files."""
    files = 3 * BATCH if options.smoke else 10_000
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or before)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cifar10(folder, files)
        overrides = ["dataset=cifar10", f"dataset.data_dir={folder}", f"dataset.batch_size={BATCH}", "dataset.val_fraction=0"]
        ours = data_of(config_of(overrides, folder / "run")).loader("train")
        other = theirs(folder)
        # the slow one needs fewer batches for the same time
        few, many = ((1, 1), (1, 2)) if options.smoke else ((20, 60), (20, 280))
        arms = {
            "torchvision, DataLoader, 2 workers": lambda: speed(other, *few),
            "papermix, in memory": lambda: speed(ours, *many),
        }
        timings = interleave(arms, options.repetitions, warmup=0 if options.smoke else 1)
    torch.set_num_threads(before)
    report = Report("data", "image", {"CIFAR-10, crop, flip, normalise, 32x32": timings})
    what = "images per second, papermix over torchvision"
    slow, fast = arms
    report.checks.append(each_round(timings, lambda s: s[slow] / s[fast], what, 10))
    report.notes.append(f"random bytes in CIFAR-10's layout, batch {BATCH}, on the CPU; both only deliver batches")
    return report
