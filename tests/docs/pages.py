"""What the pages show: fences, the commands in them, and how each kind is tried.

The word behind a fence's language says how its commands are checked:

- ``sh``: they run, one after the other.
- ``sh install``: they install something; targets and extras must exist.
- ``sh cluster``: they need a cluster or several machines; composed or parsed.
- ``sh server``: they stay in the foreground or talk to a server; composed or parsed.
- ``sh internet``: they download or upload; composed or parsed.
- ``python``: runs by itself. ``python file=PATH``, ``yaml file=PATH``: written there before the commands below it run.
- ``console``: a ``$`` line and what it answers.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "conf" / "claim" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# programs that may stand in a fence of each kind
PROGRAMS = {
    "": {"python"},
    "install": {"make", "pip", "uv", "apt-get", "git"},
    "cluster": {"python", "cd", "ray", "rsync", "sacct", "scancel", "sinfo", "squeue", "ssh", "tail", "cat", "scontrol", "export"},
    "server": {"python", "mkdocs", "mlflow", "tensorboard", "wandb", "export"},
    "internet": {"python", "wandb"},
}
# runs that pages speak of by a name that nobody has
PLACEHOLDER = re.compile(r"^(?:outputs/)?[A-Z][A-Z0-9_]*$|outputs/(?:sweeps/)?[A-Z]+[0-9]?\b")


@dataclass(frozen=True)
class Fence:
    """A fenced block: language, the word behind it, text, and the number of its first line."""

    language: str
    info: str
    text: str
    line: int


@dataclass(frozen=True)
class Command:
    """A command of a page: its words without comments, and the word behind its fence's language (``inline``: in a sentence)."""

    page: Path
    kind: str
    words: tuple[str, ...]
    line: int

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {shlex.join(self.words)}"

    @property
    def is_train(self) -> bool:
        return self.words[:2] == ("python", "train.py")

    @property
    def script(self) -> str:
        """Name of the script in ``scripts/`` that it calls, else empty."""
        found = re.fullmatch(r"scripts/(\w+)\.py", self.words[1]) if self.words[0] == "python" and len(self.words) > 1 else None
        return found.group(1) if found else ""


def fences(page: Path) -> Iterator[Fence]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)[ ]?([^\n`]*)\n(.*?)^```$", text, re.S | re.M):
        yield Fence(found[1], found[2].strip(), found[3], text[: found.start(3)].count("\n") + 1)


def in_fence(page: Path, fence: Fence) -> Iterator[Command]:
    """The commands of a fence; lines that end in a backslash go on."""
    number = fence.line
    for line in fence.text.replace("\\\n", "\0").split("\n"):
        words = shlex.split(line.replace("\0", " "), comments=True)
        if words:
            yield Command(page, fence.info, tuple(words), number)
        number += 1 + line.count("\0")


def refusals(fence: Fence) -> list[tuple[str, str]]:
    """(command, sentence) of the errors in a console."""
    return re.findall(r"^\$ (python [^\n]*)\nerror: ([^\n]*)", fence.text, re.M) if fence.language == "console" else []


def fenced(page: Path) -> list[Command]:
    """The commands of a page's ``sh`` fences, and those of consoles that are not refused."""
    found: list[Command] = []
    for fence in fences(page):
        if fence.language == "sh":
            found += in_fence(page, fence)
        elif fence.language == "console":
            refused = [line for line, _ in refusals(fence)]
            lines = [line for line in re.findall(r"^\$ (.*)$", fence.text, re.M) if line not in refused]
            found += in_fence(page, Fence("sh", "", "\n".join(lines), fence.line))
    return found


def inline(page: Path) -> list[Command]:
    """The whole commands that stand in a page's sentences and tables; those with dots for what is left out are none."""
    text = re.sub(r"^```.*?^```$", lambda m: "\n" * m[0].count("\n"), page.read_text(encoding="utf-8"), flags=re.S | re.M)
    found = []
    for match in re.finditer(r"`(python (?:train|scripts/\w+)\.py\b[^`]*)`", text):
        words = shlex.split(match[1].replace("\\|", "|"))
        if not any("..." in w for w in words):
            found.append(Command(page, "inline", tuple(words), text[: match.start()].count("\n") + 1))
    return found


def overrides(words: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """(overrides, Hydra's own flags) of a train.py command; ``debug=true`` is the preset that it stands for."""
    flags = [w for w in words[2:] if w in ("-m", "--multirun", "--cfg", "job")]
    return ["debug=traceback" if w == "debug=true" else w for w in words[2:] if w not in flags], flags
