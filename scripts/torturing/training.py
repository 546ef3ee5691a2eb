"""The training that is tortured, and processes that run it: forks of this one, which has imported torch and has one thread."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

ROOT = Path(__file__).resolve().parents[2]
# rich in state: workers, random changes of the images, batch norm, Adam's moments, masks, an average of the weights, two stages
STAGES = """stages={first: ["sparsity=magnitude", "sparsity.updates=4", "trainer.max_epochs=2"],
 second: ["init_from=first", "sparsity=continuous", "sparsity.penalty=1e-6", "trainer.max_epochs=3"]}""".replace("\n", "")
SETTINGS = (
    "dataset=imagenet", "dataset.num_classes=10", "dataset.in_chans=1", "dataset.image_size=8", "dataset.resize=8",
    "dataset.mean=[0.3]", "dataset.std=[0.35]", "dataset.batch_size=16", "dataset.val_fraction=0.2",
    "dataset.augment.crop=1", "dataset.augment.cutout=2", "dataset.augment.mixup=0.2",
    "model=small_cnn", "model.widths=[4,8]", "model.convs=[1,1]", "optimizer=adamw", "optimizer.lr=0.01",
    "callbacks=[rng,progress,nonfinite,learning_rate,curves,checkpoints,ema]", "callbacks.ema.decay=0.9",
    "callbacks.checkpoints.every_n_steps=3", "trainer.log_every_n_steps=1", "hardware=cpu", "hardware.threads=1",
)  # fmt: skip
SWEPT = ("sparsity=magnitude", "sparsity.updates=4", "trainer.max_epochs=1", "dataset.workers=0", "-m", "seed=1,2,3")


def write_digits(folder: Path, count: int = 200) -> None:
    """Write the first ``count`` images of scikit-learn's digits as files in ``train/<class>`` and ``val/<class>``, one of five in val."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images[:count], digits.target)):
        place = folder / ("val" if number % 5 == 4 else "train") / f"digit{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8)).save(place / f"{number:04d}.png")


@dataclass
class Command:
    """A command line of train.py and the folder it works in.

    Attributes:
        folder: the run's or the sweep's.
        arguments: what follows ``python train.py``.
        parts: run folders in ``folder`` with their own checkpoints and result, in the order in which they are finished.
    """

    folder: Path
    arguments: list[str]
    parts: list[Path] = field(default_factory=list)


def stages(data: Path, folder: Path) -> Command:
    """The training of two stages that is tortured."""
    arguments = [*SETTINGS, f"dataset.data_dir={data}", "dataset.workers=2", STAGES, f"hydra.run.dir={folder}"]
    return Command(folder, arguments, [folder / "first", folder / "second"])


def sweep(data: Path, folder: Path) -> Command:
    """A sweep of three runs of one epoch."""
    members = [folder / f"seed-{seed}" for seed in (1, 2, 3)]
    naming = "hydra.sweep.subdir='seed-${seed}'"
    return Command(folder, [*SETTINGS, f"dataset.data_dir={data}", f"hydra.sweep.dir={folder}", naming, *SWEPT], members)


def warm_up() -> None:
    """Import what a training imports, and see that no thread was started by it."""
    for name in ("matplotlib.pyplot", "papermix.run.cli", "papermix.run.stage", "papermix.run.sweep"):
        import_module(name)
    for package in ("callbacks", "datamodules", "lightning_modules", "papermix.models", "papermix.optimizers", "papermix.sparsity"):
        for module in iter_modules([str(ROOT / package.replace(".", "/"))], f"{package}."):
            import_module(module.name)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"this process has {threads} threads: what is forked from it could hang")


class Training:
    """``python train.py ARGUMENTS`` in a process of its own, its output in a file.

    Args:
        command: what runs.
        log: file for all that it prints.
        fault: called in the new process before anything else.
    """

    def __init__(self, command: Command, log: Path, fault: Callable[[], None] | None = None) -> None:
        self.log, self.started = log, time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _child(command.arguments, log, fault)

    def signal(self, number: int) -> None:
        """Send a signal to the training alone."""
        os.kill(self.pid, number)

    def poll(self) -> int | None:
        """Its exit code when it has ended, negative for a signal; else None."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def wait(self, limit: float = 120.0) -> int:
        """Wait for its end; returns its exit code. Raises TimeoutError after ``limit`` seconds, when it is killed."""
        deadline = time.monotonic() + limit
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"it hung: no end after {limit:.0f} s, see {self.log}")
            time.sleep(0.005)
        return code

    def children(self) -> list[int]:
        """Process ids of its children: the workers of its data loader."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                text = stat.read_text()
            except OSError:
                continue  # it has ended meanwhile
            if int(text.rpartition(")")[2].split()[1]) == self.pid:
                found.append(int(stat.parent.name))
        return found


def _child(arguments: list[str], log: Path, fault: Callable[[], None] | None) -> None:
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for standard, descriptor in enumerate((nothing, output, output)):
            os.dup2(descriptor, standard)
        os.chdir(ROOT)
        sys.argv = ["train.py", *arguments]
        if fault is not None:
            fault()
        from papermix.run.cli import main

        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
