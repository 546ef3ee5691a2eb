"""Every command of every page is run, in order, in a copy of the repository: minutes, one test for each page."""

import glob
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.docs.pages import PAGES, ROOT, Command, fenced, fences, inline, refusals
from tests.docs.shorten import arguments

SECONDS = 600
# runs that a page speaks of as the reader's own: page -> commands that make them first
PREPARED = {
    "README.md": ["hydra.run.dir=outputs/RUN"],
    "docs/reports.md": [
        "tags=[night] hydra.run.dir=outputs/claims/night",
        "tags=[night] optimizer.lr=0.1 model=small_cnn hydra.run.dir=outputs/sweeps/night",
    ],
    "docs/export.md": [
        "hydra.run.dir=outputs/RUN model=small_cnn "
        "'stages={train: [], probe: [\"sparsity=magnitude\", \"sparsity.pattern=filter\", \"sparsity.density=0.5\"]}'",
    ],
    "docs/mixing.md": [
        "dataset=shapes_panoptic dataset.image_size=40 method=label_autoencoder model=label_autoencoder model.base=16 "
        "model.stride=4 model.code=16 optimizer=adam hydra.run.dir=outputs/labels",
    ],
    "docs/papers/alert.md": [
        "experiment=foundation/fashion_mnist hydra.run.dir=outputs/RUN",
        "dataset=fashion_mnist model=resnet20 hydra.run.dir=outputs/RUN2",
    ],
    "docs/papers/continuous_sparsification.md": ["sparsity=continuous hydra.run.dir=outputs/RUN"],
}
# what these scripts do in full takes hours, or changes the machine
SHORT = {"claims": ["--dry"], "benchmark": ["--smoke", "--force"], "torture": ["--rounds", "1", "--only", "kill"]}
SKIPPED = ("tests", "outputs", "data", "site", "wandb", "mlruns", "__pycache__", "build", "*.egg-info", ".*")


class Workshop:
    """A copy of the repository in which commands run.

    Args:
        place: folder of the copy.
    """

    def __init__(self, place: Path) -> None:
        self.place, self.number = place, 0
        shutil.copytree(ROOT, place, ignore=shutil.ignore_patterns(*SKIPPED), symlinks=True)
        env = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1", "PAPERMIX_OUTPUTS": "outputs", "WANDB_MODE": "offline"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm.py"))],
            cwd=place, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, argv: list[str], seconds: int = SECONDS) -> tuple[int, str]:
        """(exit status, output) of a file with arguments; 124: it took longer than ``seconds``."""
        assert self.process.stdin and self.process.stdout
        self.number += 1
        log = self.place / f".log{self.number}"
        print(json.dumps({"argv": argv, "log": str(log), "seconds": seconds}), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline()), log.read_text(errors="replace")

    def close(self) -> None:
        """End the process; its commands have ended."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    made = Workshop(tmp_path / "papermix")
    yield made
    made.close()
    shutil.rmtree(made.place, ignore_errors=True)


def shortened(command: Command) -> list[str]:
    """What is run for a command: file and arguments."""
    if command.is_train:
        return ["train.py", *arguments(command)]
    words = list(command.words[1:])
    if "--configs" in words:
        return [*words, "--configs", "3"]
    return [*words, *SHORT.get(command.script, [])]


def written(page: Path, place: Path) -> None:
    """Write the files that a page shows. Nothing there is overwritten."""
    for fence in fences(page):
        if fence.info.startswith("file="):
            path = place / fence.info.removeprefix("file=")
            assert not path.exists()
            path.write_text(fence.text)


def failure(command: Command, workshop: Workshop) -> str:
    """What went wrong when a command was run, empty when nothing did."""
    # as a shell does with a pattern of paths
    argv = [path for word in shortened(command) for path in (sorted(glob.glob(word, root_dir=workshop.place)) or [word])]
    status, output = workshop.run(argv)
    print(status, " ".join(argv))
    return "" if status == 0 else f"{command}\n  run as {' '.join(argv)}\n  ended with {status}: {output[-1500:]}"


def pages(chosen: Iterable[Path]) -> list[ParameterSet]:
    """Pages as parameters of a test; all but the worked example take minutes."""
    quick = ROOT / "docs" / "adding_a_method.md"
    return [pytest.param(p, id=str(p.relative_to(ROOT)), marks=() if p == quick else pytest.mark.slow) for p in chosen]


@pytest.mark.parametrize("page", pages(p for p in PAGES if fenced(p) or inline(p)))
def test_commands_run(page: Path, workshop: Workshop) -> None:
    written(page, workshop.place)
    for line in PREPARED.get(str(page.relative_to(ROOT)), []):
        assert not failure(Command(page, "", ("python", "train.py", *shlex.split(line)), 0), workshop), line
    here = [c for c in fenced(page) if c.kind == "" and c.words[0] == "python"]
    spoken = [c for c in inline(page) if c.is_train and len(c.words) > 2]
    todo = {c.words: c for c in [*here, *spoken]}
    wrong = [text for command in todo.values() if (text := failure(command, workshop))]
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


@pytest.mark.parametrize("page", pages(p for p in PAGES if any(map(refusals, fences(p)))))
def test_consoles_answer_so(page: Path, workshop: Workshop) -> None:
    for line, sentence in [pair for fence in fences(page) for pair in refusals(fence)]:
        status, output = workshop.run(shlex.split(line)[1:])
        assert status == 1 and f"error: {sentence.removesuffix('...').rstrip()}" in output, output
