"""Generated blocks of pages that people write in, too: the text between ``<!-- NAME -->`` and ``<!-- /NAME -->``."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from papermix.errors import UserError
from papermix.run.folder import write_atomic
from papermix.run.result import shown


def put(page: str, name: str, body: str, where: str = "") -> str:
    """The page with a block's text replaced; added at the end where there is no such block, unless ``where`` names the page.

    Raises:
        UserError: the page at ``where`` has no such block, or its two marks do not stand there once each, in order.
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    block = f"{start}\n{body.strip()}\n{end}"
    if start not in page and end not in page and not where:
        return f"{page.rstrip()}\n\n{block}\n".lstrip()
    if page.count(start) != 1 or page.count(end) != 1 or page.index(end) < page.index(start):
        raise UserError(f"{where or 'the page'} has no block from {start} to {end}: put these two lines, once each, where it belongs.")
    return page[: page.index(start)] + block + page[page.index(end) + len(end) :]


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    body = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in body)


def write(pages: Mapping[Path, str]) -> list[str]:
    """Write those pages whose text differs from the file's; returns their names."""
    changed = stale(pages)
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, pages[path])
    return [shown(path) for path in changed]


def stale(pages: Mapping[Path, str]) -> list[Path]:
    """Pages whose file is missing or says something else."""
    return [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
