"""A small bAbI in its publisher's layout, for tests."""

import io
import tarfile
from pathlib import Path

PLACES = ("kitchen", "garden", "office")
NAMES = ("Mary", "John")


def text(task: int, stories: int, shift: int = 0) -> str:
    """Stories of two statements and two questions each; task 8 has answers of two words."""
    lines = []
    for story in range(stories):
        here, there = PLACES[(story + shift) % 3], PLACES[(story + shift + task) % 3]
        lines.append(f"1 {NAMES[story % 2]} moved to the {here}.")
        lines.append(f"2 {NAMES[1 - story % 2]} went to the {there}.")
        if task == 8:
            lines.append(f"3 Where are they? \t{here},{there}\t1 2")
        else:
            lines.append(f"3 Where is {NAMES[story % 2]}? \t{here}\t1")
        lines.append(f"4 {NAMES[story % 2]} went back.")
        lines.append(f"5 Where was {NAMES[1 - story % 2]}? \t{there}\t2")
    return "\n".join(lines) + "\n"


def files(tasks: tuple[int, ...] = (1, 8), train: int = 20, test: int = 4) -> dict[str, str]:
    """Name -> content."""
    return {
        f"qa{task}_{'single-supporting-fact' if task == 1 else 'lists-sets'}_{part}.txt": text(task, count, part == "test")
        for task in tasks
        for part, count in (("train", train), ("test", test))
    }


def write(folder: Path, contents: dict[str, str | bytes], language: str = "en-10k") -> Path:
    """Write unpacked files below ``folder``; returns their folder."""
    place = folder / "babi" / "tasks_1-20_v1-2" / language
    place.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return place


def pack(folder: Path, contents: dict[str, str], name: str = "babi_tasks_1-20_v1-2.tar.gz") -> Path:
    """Write the archive, with the hidden copies that the publisher's has."""
    path = folder / "babi" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for language in ("en", "en-10k"):
            for file, content in contents.items():
                for hidden in ("._", ""):
                    data = b"\0\5\x16" if hidden else (content if language == "en-10k" else "1 no.\n").encode()
                    member = tarfile.TarInfo(f"tasks_1-20_v1-2/{language}/{hidden}{file}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return path
