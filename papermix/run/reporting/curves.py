"""Curves of many runs in few points, for a page that stays small."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from papermix.run.reporting.report import Section
from papermix.run.reporting.runs import Curve, curves

POINTS = 200_000  # of all curves of a page together
_MOST, _LEAST = 200, 24  # points of a single curve


@dataclass
class Curves:
    """``run folder -> metric -> (steps, values)``, and the metrics of each section (by its place in the report), the important first."""

    of: dict[str, dict[str, Curve]] = field(default_factory=dict)
    metrics: list[list[str]] = field(default_factory=list)


def thinned_curves(found: Sequence[Section]) -> tuple[Curves, list[str]]:
    """The curves of all runs, and sentences about what was left out.

    Runs equal up to the seed keep the same steps, evenly spaced among all that one of them has, and each its last one.
    """
    read, notes = _read(found)
    out = Curves()
    counts: Counter[str] = Counter(name for each in read.values() for name in each)
    keep = _kept(counts, found)
    points = max(_LEAST, min(_MOST, POINTS // max(1, sum(counts[name] for name in keep))))
    if gone := sorted(name for name in counts if name not in keep):
        some = ", ".join(gone[:6]) + (f" and {len(gone) - 6} more" if len(gone) > 6 else "")
        notes.append(f"curves of {some} were left out to keep the page small: report fewer runs to see them.")
    for section in found:
        names: dict[str, None] = {}
        for group in section.groups:
            folders = [str(run.folder) for run in group.runs if str(run.folder) in read]
            for name in (n for n in keep if any(n in read[f] for f in folders)):
                names[name] = None
                each = {f: read[f][name] for f in folders if name in read[f]}
                for folder, curve in thinned(each, points).items():
                    out.of.setdefault(folder, {})[name] = curve
        out.metrics.append(sorted(names, key=lambda n: _rank(n, [section], counts)))
    return out, notes


def thinned(each: Mapping[str, Curve], points: int) -> dict[str, Curve]:
    """The curves of runs equal up to the seed at about so many common steps, and their last ones; a step counts once, its last value."""
    steps = sorted({s for curve in each.values() for s in curve[0]})
    if len(steps) > points:
        steps = [steps[round(i * (len(steps) - 1) / (points - 1))] for i in range(points)]
    wanted = set(steps)
    out = {}
    for name, curve in each.items():
        values = dict(zip(*curve))
        kept = sorted((wanted & values.keys()) | {max(values)})
        out[name] = (kept, [values[s] for s in kept])
    return out


def _read(found: Sequence[Section]) -> tuple[dict[str, dict[str, Curve]], list[str]]:
    read: dict[str, dict[str, Curve]] = {}
    notes = []
    for run in (run for section in found for group in section.groups for run in group.runs):
        try:
            read[str(run.folder)] = curves(run.metrics_file)
        except (OSError, ValueError) as error:
            notes.append(f"{run.metrics_file} has no curves ({' '.join(str(error).split())[:120]}).")
    return read, notes


def _kept(counts: Mapping[str, int], found: Sequence[Section]) -> list[str]:
    """The metrics whose curves have room, the important first."""
    keep: list[str] = []
    room = POINTS // _LEAST
    for name in sorted(counts, key=lambda n: _rank(n, found, counts)):
        if not keep or counts[name] <= room:
            keep.append(name)
            room -= counts[name]
    return keep


def _rank(name: str, found: Sequence[Section], counts: Mapping[str, int]) -> tuple[bool, bool, int, str]:
    """What a section is compared by comes first, then losses, then what most runs have."""
    own = {f"val/{section.metric.partition('/')[2]}" for section in found}
    return name not in own, name not in ("train/loss", "val/loss"), -counts[name], name
