"""What the page of a report knows, as JSON."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from papermix.run.reporting import tables
from papermix.run.reporting.curves import Curves
from papermix.run.reporting.papers import Paper
from papermix.run.reporting.published import HEADER, Compared, cells
from papermix.run.reporting.report import COSTS, Group, Section, comparable, direction, number, varied
from papermix.run.reporting.runs import Run
from papermix.run.reporting.thumbnails import Thumbnail
from papermix.run.reporting.unfinished import Unfinished
from papermix.run.result import is_share, shown

_COSTS = (*COSTS, "parameters", "peak_memory_bytes")


def page_data(
    found: Sequence[Section],
    compared: Mapping[str, list[Compared]],
    papers: Mapping[str, Paper],
    curves: Curves,
    pictures: Mapping[str, list[Thumbnail]],
    left: Sequence[Unfinished],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Sections with their groups and runs, comparisons of papers, and what was left out."""
    steps: dict[tuple[int, ...], int] = {}  # runs share their steps: each list of them stands in the page once
    sections = [_section(s, names, curves, pictures, steps) for s, names in zip(found, curves.metrics)]
    return {
        "sections": sections,
        "steps": [list(s) for s in steps],
        "papers": [_paper(papers[name], lines) for name, lines in compared.items()],
        "left": [[shown(u.folder), u.why] for u in left],
        "notes": list(notes),
    }


def _section(
    section: Section,
    names: Sequence[str],
    curves: Curves,
    pictures: Mapping[str, list[Thumbnail]],
    steps: dict[tuple[int, ...], int],
) -> dict[str, Any]:
    metrics = _metrics(section)
    keys = varied(section)
    groups = []
    for i, group in enumerate(section.groups):
        runs = [_run(run, metrics, names, curves, pictures, steps) for run in group.runs]
        groups.append({"setting": {k: each[i] for k, each in keys.items()}, **_group(section, group), "runs": runs})
    return {
        "dataset": section.dataset,
        "shared": section.shared,
        "keys": list(keys),
        "metrics": [{"name": m, "mode": mode, "share": is_share(m)} for m, mode in metrics.items()],
        "curves": [{"name": n, "share": is_share(n)} for n in names],
        "costs": comparable(section),
        "groups": groups,
    }


def _metrics(section: Section) -> dict[str, str]:
    """``metric -> max or min``: the section's own first, then those of the test, then all others."""
    names = {n for g in section.groups for r in g.runs for n in r.result["metrics"] if number(r.result, n) is not None}
    rest = sorted(names - {section.metric}, key=lambda n: (not n.startswith("test/"), not n.startswith("val/"), n))
    some = section.groups[0].runs[0].result
    return {section.metric: section.mode} | {n: direction(some, n) for n in rest}


def _group(section: Section, group: Group) -> dict[str, Any]:
    result = group.runs[0].result
    return {
        "name": group.name,
        "key": group.key,
        "paper": result.get("paper") or "",
        "tags": sorted({str(t) for run in group.runs for t in run.result.get("tags") or []}),
        "published": [[n.value, f"{result.get('paper')}, {n.table}"] for n in group.published] if group.published else [],
    }


def _run(
    run: Run,
    metrics: Mapping[str, str],
    names: Sequence[str],
    curves: Curves,
    pictures: Mapping[str, list[Thumbnail]],
    steps: dict[tuple[int, ...], int],
) -> dict[str, Any]:
    own = curves.of.get(str(run.folder), {})
    drawn = {}
    for i, name in enumerate(names):
        if name in own:
            at = steps.setdefault(tuple(own[name][0]), len(steps))
            drawn[i] = [at, [_rounded(v) for v in own[name][1]]]
    return {
        "seed": run.seed,
        "folder": tables.printable(shown(run.folder)),
        "command": run.result["command"],
        "values": [_json(number(run.result, m)) for m in metrics],
        "costs": {name: _json(number(run.result, name)) for name in _COSTS},
        "curves": drawn,
        "pictures": [vars(t) for t in pictures.get(str(run.folder), [])],
    }


def _paper(paper: Paper, lines: Sequence[Compared]) -> dict[str, Any]:
    url = f"https://arxiv.org/abs/{paper.arxiv}" if paper.arxiv else None
    rows = [{"cells": cells(line), "published": line.published is not None} for line in lines]
    return {"title": paper.title, "cited": paper.cited, "url": url, "header": HEADER, "rows": rows}


def _json(value: float | None) -> float | str | None:
    """A number that JSON has; others as JavaScript spells them."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _rounded(value: float) -> float | None:
    """Five digits are more than a picture shows; a gap where there is no number."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
