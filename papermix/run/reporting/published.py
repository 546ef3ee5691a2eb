"""Published numbers of papers beside those that were measured here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from papermix.run.reporting.papers import Paper, Published
from papermix.run.reporting.report import Group, Section, direction, fits, number, spread
from papermix.run.reporting.runs import Run, groups
from papermix.run.result import metric_text


@dataclass
class Compared:
    """A line of a paper's comparison: a published number, a measured one, or both.

    Attributes:
        metric, data, model: what is compared.
        published: the paper's number; None where it has none for this mix.
        measured: runs equal up to the seed with their values; None where nothing was measured.
    """

    metric: str
    data: str
    model: str
    published: Published | None
    measured: Group | None


def compared(runs: Sequence[Run], found: Sequence[Section], papers: Mapping[str, Paper]) -> dict[str, list[Compared]]:
    """``paper -> lines``, for each paper that a run names.

    First what the paper published, each number with every mix that it can be compared with, then the best of what was measured
    beside it on each dataset and model.
    """
    out: dict[str, list[Compared]] = {}
    for name in sorted({run.result["paper"] for run in runs if run.result.get("paper") in papers}):
        mine = [run for run in runs if run.result.get("paper") == name]
        labels = {g.key: g.name for section in found for g in section.groups}
        lines = [line for n in papers[name].published for line in _beside(n, mine, labels)]
        used = {line.measured.key for line in lines if line.measured}
        best: dict[tuple[str, str, str], Compared] = {}
        for section in found:
            for g in section.groups:
                if g.runs[0].result.get("paper") == name and g.key not in used:
                    model = g.runs[0].choices.get("model", "?")
                    at = (section.metric, section.dataset, model)
                    best.setdefault(at, Compared(*at, published=None, measured=g))
        out[name] = [*lines, *best.values()]
    return out


def _beside(n: Published, runs: Sequence[Run], labels: Mapping[str, str]) -> list[Compared]:
    """A published number with each mix of its metric, data, model and overrides; alone where nothing was measured."""
    same = [run for run in runs if number(run.result, n.metric) is not None and fits(run, n)]
    lines = []
    for key, members in groups(same)[0].items():
        values = [v for run in members if (v := number(run.result, n.metric)) is not None]
        measured = Group(key, labels.get(key, key), members, values, [n])
        lines.append(Compared(n.metric, n.data, n.model, n, measured))
    up = not same or direction(same[0].result, n.metric) == "max"
    lines.sort(key=lambda line: -line.measured.mean if line.measured and up else line.measured.mean if line.measured else 0)
    return lines or [Compared(n.metric, n.data, n.model, n, None)]


HEADER = ["metric", "data", "model", "published", "source", "measured", "seeds", "difference", "setting"]


def cells(line: Compared) -> list[str]:
    """The cells of a line, in the order of :data:`HEADER`."""
    n, g = line.published, line.measured
    difference = ""
    if n and g:
        sign = "+" if g.mean >= n.value else ""
        difference = sign + metric_text(line.metric, g.mean - n.value)
    return [
        line.metric.replace("/", " "),
        line.data,
        line.model,
        metric_text(line.metric, n.value) if n else "",
        " ".join([n.table, *(f"({o})" for o in n.overrides)]) if n else "",
        spread(line.metric, g.mean, g.std) if g else "not measured",
        str(len(g.values)) if g else "",
        difference,
        g.name if g else "",
    ]
