"""Write a report: the page, Markdown with pictures, LaTeX, CSV."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from papermix.errors import UserError
from papermix.run.folder import write_atomic
from papermix.run.reporting import latex, tables
from papermix.run.reporting.curves import thinned_curves
from papermix.run.reporting.page import page
from papermix.run.reporting.papers import Paper
from papermix.run.reporting.published import compared
from papermix.run.reporting.report import Section
from papermix.run.reporting.runs import Run
from papermix.run.reporting.thumbnails import thumbnails
from papermix.run.reporting.unfinished import Unfinished


def write(
    place: Path,
    runs: Sequence[Run],
    found: Sequence[Section],
    papers: Mapping[str, Paper],
    left: Sequence[Unfinished],
    notes: Sequence[str],
    summary: str,
    command: str,
    budget: int,
) -> list[Path]:
    """Write ``report.html``, ``report.md``, ``report.tex``, ``report.csv`` and pictures into a folder; returns the files.

    Args:
        runs: those that were chosen, for the comparisons with papers.
        found: the tables.
        papers: with what they published.
        left: runs without a result.
        notes: sentences about what was left out.
        summary: how many runs there are.
        command: what was typed.
        budget: bytes of pictures in the page at most.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {place} ({error.strerror}): choose another folder with --to FOLDER.") from error
    beside = compared(runs, found, papers)
    curves, unread = thinned_curves(found)
    pictures, unshown = thumbnails(found, budget) if budget > 0 else ({}, [])
    notes = [*notes, *unread, *unshown]
    html, tex, csv = place / "report.html", place / "report.tex", place / "report.csv"
    write_atomic(html, page(found, beside, papers, curves, pictures, left, notes, summary, command))
    write_atomic(tex, latex.document(found, beside, papers, command))
    write_atomic(csv, tables.as_csv(found))
    md, *drawn = tables.markdown(place, found, beside, papers, left, notes, command)
    return [html, md, tex, csv, *drawn]
