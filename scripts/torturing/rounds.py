"""One round: disturb a training, run the same command again, compare with the training that nothing disturbed."""

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from papermix.errors import UserError
from papermix.run.checkpoint_io import verify
from scripts.torturing.compare import differences, files, finished
from scripts.torturing.faults import KINDS, Scene, Wrong, last_line, unmounted
from scripts.torturing.training import Command, Training, stages, sweep, warm_up, write_digits

_AFRESH = "to start afresh"


@dataclass
class Round:
    """What became of one disturbed training.

    Attributes:
        kind: of the disturbance; ``what``: which one exactly.
        equal: whether all that it left in the end is what an undisturbed one leaves.
        fell_back: the sentence about what it went on from, or ''.
        lost: finished files that were changed or are gone.
        wrong: violations, one sentence each.
    """

    kind: str
    number: int
    what: str = ""
    equal: bool = False
    fell_back: str = ""
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass
class Reference:
    """An undisturbed training: its command, a copy of what it left, seconds it took, bytes it left."""

    command: Command
    kept: Path
    seconds: float
    size: int


class Torture:
    """Trainings in ``root`` that are disturbed and continued.

    Args:
        root: an empty folder for everything.
        seed: of all moments.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.seed = root, seed
        warm_up()
        # in a process of its own: reading them starts a thread
        if os.waitpid(_forked(lambda: write_digits(root / "digits")), 0)[1] != 0:
            raise UserError("the images could not be written: is scikit-learn installed?")
        self._references: dict[str, Reference] = {}

    def reference(self, name: str) -> Reference:
        """The undisturbed training called ``stages`` or ``sweep``, made when it is first needed."""
        if name not in self._references:
            place, kept = self.root / name, self.root / f"{name}-reference"
            command = (stages if name == "stages" else sweep)(self.root / "digits", place)
            log = self.root / f"{name}-reference.log"
            started = time.monotonic()
            if Training(command, log).wait() != 0:
                raise UserError(f"the undisturbed training failed: {last_line(log.read_text(errors='replace'))}")
            seconds = time.monotonic() - started
            place.rename(kept)
            self._references[name] = Reference(command, kept, seconds, sum(p.stat().st_size for p in files(kept).values()))
        return self._references[name]

    def round(self, number: int, kind: str) -> Round:
        """Disturb once, continue, compare."""
        reference = self.reference("sweep" if kind == "sweep" else "stages")
        done = Round(kind, number)
        log = self.root / f"round-{number}.log"
        scene = Scene(reference.command, log, reference.seconds, reference.size, random.Random(f"{self.seed}/{number}/{kind}"))
        with unmounted(reference.command.folder):
            try:
                done.what = KINDS[kind](scene)
                if kind not in ("cut", "flip"):
                    done.wrong += _damaged(reference.command)
                before = finished([*reference.command.parts, *([] if kind == "sweep" else [reference.command.folder])])
                done.fell_back = self._continue(scene)
                after = {name: (Path(name).read_bytes(), Path(name).stat().st_mtime_ns) for name in before if Path(name).exists()}
                done.lost = [name for name in before if after.get(name) != before[name]]
                found = differences(reference.kept, reference.command.folder)
                done.equal = not found
                done.wrong += found
                done.wrong += [f"{name} was finished and has changed" for name in done.lost]
            except (Wrong, TimeoutError) as error:
                done.wrong.append(str(error))
            if done.wrong:
                shutil.copytree(reference.command.folder, self.root / f"round-{number}", dirs_exist_ok=True)
            else:
                log.unlink()
        return done

    def _continue(self, scene: Scene) -> str:
        """Run the same command again; returns the sentence about what it fell back to, or ''."""
        code = scene.start().wait()
        text = scene.log.read_text(errors="replace")
        said = next((line for line in text.splitlines() if line.startswith("note: Skipped")), "")
        if code == 1 and _AFRESH in last_line(text):
            said = last_line(text)
            for part in scene.command.parts:
                if not (part / "result.json").exists():
                    shutil.rmtree(part / "checkpoints", ignore_errors=True)
            code = scene.start().wait()
            text = scene.log.read_text(errors="replace")
        if code != 0:
            raise Wrong(f"the same command ended with {code}: {last_line(text)}")
        return said


def _forked(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def _damaged(command: Command) -> list[str]:
    found = []
    for path in command.folder.rglob("*.ckpt"):
        try:
            verify(path)
        except UserError as error:
            found.append(str(error))
    return found


def plan(rounds: int, only: Sequence[str]) -> list[str]:
    """Kinds of ``rounds`` rounds, each as often as the others."""
    kinds = list(only or KINDS)
    return [kinds[n % len(kinds)] for n in range(rounds)]


@contextmanager
def workshop(keep: bool) -> Iterator[Path]:
    """A temporary folder, which stays when ``keep`` is set."""
    root = Path(tempfile.mkdtemp(prefix="torture-"))
    try:
        yield root
    finally:
        if not keep:
            shutil.rmtree(root, ignore_errors=True)
