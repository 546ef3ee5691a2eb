"""The kinds of disturbance. Each one disturbs a training once, at a moment drawn from a seeded generator."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from papermix.errors import UserError
from papermix.run.checkpoint_io import verify
from scripts.torturing.training import Command, Training


@dataclass
class Scene:
    """Where a disturbance takes place.

    Attributes:
        command: what is disturbed.
        log: file for what the training prints.
        seconds: how long an undisturbed one takes.
        size: bytes that it leaves.
        draw: the round's own generator.
    """

    command: Command
    log: Path
    seconds: float
    size: int
    draw: random.Random

    def moment(self) -> float:
        """Seconds after the start, anywhere in the training."""
        return self.draw.uniform(0.0, self.seconds)

    def start(self, fault: Callable[[], None] | None = None) -> Training:
        """Start the training."""
        return Training(self.command, self.log, fault)


class Wrong(Exception):
    """What a disturbed training must not do."""


def killed(scene: Scene) -> str:
    """SIGKILL at any moment."""
    return _signalled(scene, signal.SIGKILL)


def told(scene: Scene) -> str:
    """SIGTERM at any moment: it saves, says so in a sentence, and ends with 143; before training it ends at once."""
    moment = _signalled(scene, signal.SIGTERM)
    text = scene.log.read_text(errors="replace")
    if "error: " in text and "the same command continues" not in text:
        raise Wrong(f"told to stop, it said: {last_line(text)}")
    return moment


def _signalled(scene: Scene, number: int) -> str:
    training, moment = scene.start(), scene.moment()
    while (code := training.poll()) is None and time.monotonic() - training.started < moment:
        time.sleep(0.001)
    if code is None:
        training.signal(number)
        code = training.wait()
    if code not in (0, -number, 128 + number):
        raise Wrong(f"it ended with {code}: {last_line(scene.log.read_text(errors='replace'))}")
    return f"{signal.Signals(number).name} after {moment:.2f} s"


def killed_while_saving(scene: Scene) -> str:
    """SIGKILL at one of the system calls that write a checkpoint, or up to 5 ms after it."""
    number, delay = scene.draw.randrange(1, 160), scene.draw.choice([0.0, scene.draw.uniform(0.0, 0.005)])
    training = scene.start(lambda: kill_at_call(number, delay))
    code = training.wait()
    if code not in (0, -signal.SIGKILL):
        raise Wrong(f"it ended with {code}: {last_line(scene.log.read_text(errors='replace'))}")
    return f"SIGKILL {1000 * delay:.1f} ms after file operation {number} in checkpoints/"


def kill_at_call(number: int, delay: float) -> None:
    """Let this process be killed ``delay`` seconds after its ``number``-th opening, renaming, linking or removing of a checkpoint."""
    me, seen = os.getpid(), 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in ("open", "os.rename", "os.link", "os.remove") or "checkpoints" not in str(arguments[0]):
            return
        seen += 1
        if seen != number or os.getpid() != me:
            return
        if not delay:
            os.kill(me, signal.SIGKILL)
        if os.fork() == 0:
            time.sleep(delay)
            os.kill(me, signal.SIGKILL)
            os._exit(0)

    sys.addaudithook(hook)


def full(scene: Scene) -> str:
    """The disk, a small tmpfs, is full at some moment; then there is more of it."""
    if os.geteuid() != 0:
        raise UserError("filling a disk needs a tmpfs of its own, which only root may mount: run this kind as root.")
    size = int(scene.size * scene.draw.uniform(0.1, 0.95)) // 4096 * 4096 + 4096
    place = scene.command.folder
    mount(place, size)
    code = scene.start().wait()
    text = scene.log.read_text(errors="replace")
    if code != 0 and not ("full" in last_line(text) and "same command" in last_line(text)):
        raise Wrong(f"on a full disk it said: {last_line(text)}")
    _mount("-o", f"remount,size={64 << 20}", str(place))
    return f"disk of {size >> 10} KiB"


def mount(place: Path, size: int) -> None:
    """Mount a tmpfs of ``size`` bytes at ``place``."""
    place.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "papermix-torture", str(place))


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"a small tmpfs cannot be mounted here ({done.stderr.strip()}): leave out the kind 'full'.")


@contextmanager
def unmounted(place: Path) -> Iterator[None]:
    """Take away afterwards what was mounted at ``place``, and the folder."""
    try:
        yield
    finally:
        if place.is_mount():
            subprocess.run(["umount", str(place)], check=True)
        shutil.rmtree(place, ignore_errors=True)


def cut_short(scene: Scene) -> str:
    """Killed, and then the newest checkpoint lacks its end."""
    moment = killed(scene)
    path = _newest(scene)
    if path is None:
        return moment
    length = scene.draw.randrange(path.stat().st_size)
    os.truncate(path, length)
    _found(path)
    return f"{moment}, last.ckpt cut to {length} bytes"


def flipped(scene: Scene) -> str:
    """Killed, and then one to eight bits of the newest checkpoint are wrong."""
    moment = killed(scene)
    path = _newest(scene)
    if path is None:
        return moment
    count = scene.draw.randrange(1, 9)
    data = bytearray(path.read_bytes())
    for place in scene.draw.sample(range(len(data)), count):
        data[place] ^= 1 << scene.draw.randrange(8)
    with open(path, "r+b") as file:  # in place: hard links to it are damaged as well
        file.write(data)
    _found(path)
    return f"{moment}, {count} bits of last.ckpt flipped"


def _newest(scene: Scene) -> Path | None:
    """last.ckpt of the part in progress."""
    for part in reversed(scene.command.parts):
        path = part / "checkpoints" / "last.ckpt"
        if path.exists():
            return None if (part / "result.json").exists() else path
    return None


def _found(path: Path) -> None:
    try:
        verify(path)
    except UserError:
        return
    raise Wrong(f"the damage of {path.name} was not found")


def worker_killed(scene: Scene) -> str:
    """SIGKILL to a worker of the data loader."""
    training, moment = scene.start(), scene.moment()
    victim = None
    while (code := training.poll()) is None:
        if victim is None and time.monotonic() - training.started >= moment and (workers := training.children()):
            victim = scene.draw.choice(workers)
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                victim = None
        time.sleep(0.002)
    text = scene.log.read_text(errors="replace")
    if code != 0 and "worker" not in last_line(text):
        raise Wrong(f"without a worker it said: {last_line(text)}")
    return f"a worker killed after {moment:.2f} s" if victim else "no worker lived late enough"


def not_a_number(scene: Scene) -> str:
    """NaN in a weight, in a gradient or in a batch of one training step."""
    stage, where = scene.draw.choice(["first", "second"]), scene.draw.choice(["weight", "gradient", "input"])
    step = scene.draw.randrange(16 if stage == "first" else 24)
    code = scene.start(lambda: poison(stage, step, where)).wait()
    text = scene.log.read_text(errors="replace")
    if code != 1 or not ("NaN" in last_line(text) or "not finite" in last_line(text)):
        raise Wrong(f"with NaN in a {where} it ended with {code} and said: {last_line(text)}")
    return f"NaN in a {where} at step {step} of stage {stage}"


def poison(stage: str, step: int, where: str) -> None:
    """Let the trainings of this process meet NaN in a ``stage``, after ``step`` optimizer steps."""
    import pytorch_lightning as pl

    from papermix.run import stage as machinery

    class Poison(pl.Callback):
        """Writes NaN once."""

        def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, index: int) -> None:
            if trainer.global_step == step and where == "input":
                batch["image"][0] = float("nan")
            if trainer.global_step == step and where == "weight":
                next(module.parameters()).data.view(-1)[0] = float("nan")

        def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
            gradient = next(p.grad for p in module.parameters() if p.grad is not None)
            if trainer.global_step == step and where == "gradient":
                gradient.view(-1)[0] = float("nan")

    original = machinery.build_callbacks
    machinery.build_callbacks = lambda config: [*original(config), *([Poison()] if config["stage"] == stage else [])]


def swept(scene: Scene) -> str:
    """SIGKILL at any moment of a sweep of three runs."""
    return killed(scene)


KINDS: dict[str, Callable[[Scene], str]] = {
    "kill": killed,
    "term": told,
    "saving": killed_while_saving,
    "full": full,
    "cut": cut_short,
    "flip": flipped,
    "worker": worker_killed,
    "nan": not_a_number,
    "sweep": swept,
}


def last_line(text: str) -> str:
    """The last line that is not empty, without what a progress bar left before it."""
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip() and not line.startswith("(the stack trace")]
    return lines[-1].strip() if lines else "nothing"
