"""Tables of a report: for the terminal, as Markdown, as CSV."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from papermix.run.folder import write_atomic
from papermix.run.reporting import blocks, published
from papermix.run.reporting.papers import Paper
from papermix.run.reporting.published import Compared
from papermix.run.reporting.report import Group, Section
from papermix.run.reporting.unfinished import Unfinished
from papermix.run.result import duration, metric_text, quantity, shown

# Markdown shows the curves of at most so many settings of a table: the page has them all
_DRAWN = 4


def lines(section: Section) -> tuple[list[str], list[list[str]]]:
    """(header, lines) of a section's table."""
    beside = any(g.published for g in section.groups)
    header = ["run", "seeds", section.metric.replace("/", " "), "spread", "parameters", "density", "FLOPs", "time"]
    rows = []
    for g in section.groups:
        std = "" if g.std is None else "± " + metric_text(section.metric, g.std)
        row = [g.name, str(len(g.values)), metric_text(section.metric, g.mean), std, *costs(g)]
        rows.append([*row, published_text(section, g)] if beside else row)
    return [*header, *(["published"] if beside else [])], rows


def costs(group: Group) -> list[str]:
    """Parameters, density, FLOPs and time for people; empty where a run lacks it."""
    found = [group.cost(name) for name in ("parameters", "density", "effective_flops", "wall_seconds")]
    texts = [quantity, lambda d: f"{100 * d:.3g} %", quantity, duration]
    return ["" if c is None else text(c) for c, text in zip(found, texts)]


def published_text(section: Section, group: Group) -> str:
    """``95.00 % (paper, Table 1)`` for each published number of a group."""
    paper = group.runs[0].result.get("paper")
    return ", ".join(f"{metric_text(section.metric, n.value)} ({paper}, {n.table})" for n in group.published)


def title(section: Section) -> str:
    """``digits: test accuracy, best first (all with model=mlp)``."""
    shared = f" (all with {' '.join(section.shared)})" if section.shared else ""
    return f"{section.dataset}: {section.metric.replace('/', ' ')}, best first{shared}"


def counts(chosen: int, runs: int, unfinished: int, problems: int) -> str:
    """``4 of 5 runs, 1 unfinished, 2 unreadable``."""
    parts = [f"{chosen} of {runs} runs"]
    parts += [f"{unfinished} unfinished"] if unfinished else []
    return ", ".join([*parts, *([f"{problems} unreadable"] if problems else [])])


def markdown(
    place: Path,
    found: Sequence[Section],
    compared: Mapping[str, list[Compared]],
    papers: Mapping[str, Paper],
    left: Sequence[Unfinished],
    notes: Sequence[str],
    command: str,
) -> list[Path]:
    """Write ``report.md`` and its pictures into a folder; returns the files."""
    from papermix.run.reporting.pictures import draw_costs, draw_curves

    files = []
    parts = ["# Report", f"`{command}`"]
    for section in found:
        parts += [f"## {_safe(title(section))}", _table(*lines(section))]
        name = slug(f"{section.dataset}-{section.metric}")
        if draw_costs(section, place / f"{name}-costs.png"):
            files.append(place / f"{name}-costs.png")
            parts.append(f"![{section.metric} against its costs]({name}-costs.png)")
        for i, group in enumerate(section.groups[:_DRAWN], start=1):
            path = place / "curves" / f"{name}-{i:02d}-{slug(group.name)[:60]}-{group.key}.png"
            draw_curves(group, section.metric, path)
            if path.exists():
                files.append(path)
                parts.append(f"![{_safe(group.name)}](curves/{path.name})")
    for paper, each in compared.items():
        parts += [f"## Published and measured: {papers[paper].link}", papers[paper].cited]
        parts.append(_table(published.HEADER, [published.cells(line) for line in each]))
    if notes or left:
        parts += ["## Left out", "\n".join(f"- {_safe(n)}" for n in [*(f"{shown(u.folder)}: {u.why}" for u in left), *notes])]
    write_atomic(place / "report.md", printable("\n\n".join(parts) + "\n"))
    return [place / "report.md", *files]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return blocks.table(header, [[_safe(cell) for cell in row] for row in rows])


def _safe(text: str) -> str:
    """A text in which Markdown sees no HTML and no links."""
    return re.sub(r"([\[\]`])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))


def printable(text: str) -> str:
    """A text without what no file can hold: names of folders that are no UTF-8."""
    return text.encode("utf-8", "replace").decode()


def slug(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_.=,-]+", "_", text).strip("_.")


def as_csv(found: Sequence[Section]) -> str:
    """All groups as CSV, numbers as they are; seeds and their values separated by spaces, their folders by lines."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["parameters", "density", "flops", "effective_flops", "wall_seconds", "peak_memory_bytes"]
    writer.writerow(
        ["dataset", "metric", "mode", "run", "config", "n", "mean", "std", *names, "published", "seeds", "values", "folders"]
    )
    for section in found:
        for g in section.groups:
            numbers = ["" if (c := g.cost(name)) is None else c for name in names]
            each = [" ".join(map(str, column)) for column in ([r.seed for r in g.runs], g.values)]
            head = [section.dataset, section.metric, section.mode, g.name, g.key, len(g.values), g.mean, "" if g.std is None else g.std]
            beside = " ".join(repr(n.value) for n in g.published)
            writer.writerow([*head, *numbers, beside, *each, "\n".join(str(r.folder) for r in g.runs)])
    return printable(text.getvalue())
