"""Results of runs: compare them, print them."""

import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def score(result: dict[str, Any]) -> tuple[str, float, str] | None:
    """(name, value, mode) of the number by which runs are compared: the monitored metric of the test, else of the validation."""
    monitor = result.get("monitor")
    if not monitor:
        return None
    metrics = result.get("metrics", {})
    for name in ("test/" + monitor["name"].partition("/")[2], monitor["name"]):
        if name in metrics:
            return name, metrics[name], monitor["mode"]
    return None


def quantity(value: float) -> str:
    """A count with a metric prefix: ``272 k``, ``36.5 M``."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds as ``42 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def metric_text(name: str, value: float) -> str:
    """A metric for people: shares (accuracy, IoU, panoptic quality, average precision) in percent."""
    if not math.isfinite(value):
        return str(value)
    return f"{100 * value:.2f} %" if is_share(name) else f"{value:.4g}"


def is_share(name: str) -> bool:
    """Whether a metric's values are parts of one: shown in percent."""
    return "accuracy" in name or re.match(r"mean_iou|[psr]q(_|$)|a[pr]\d*(_|$)", name.rpartition("/")[2]) is not None


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of a run's final table."""
    test = {k: v for k, v in result["metrics"].items() if k.startswith("test/")}
    shown = test or {k: v for k, v in result["metrics"].items() if k.startswith("val/")}
    out = [(k.replace("/", " ").replace("_", " "), metric_text(k, v)) for k, v in sorted(shown.items())]
    out.append(("parameters", quantity(result["parameters"])))
    out.append(("density", f"{100 * result['density']:.3g} %"))
    flops = quantity(result["flops"])
    if result.get("effective_flops") not in (None, result["flops"]):
        flops += f" ({quantity(result['effective_flops'])} at this density)"
    out.append(("FLOPs per example", flops))
    if result.get("skipped_examples"):
        bad = result["skipped_examples"]
        out.append(("bad examples left out", f"{len(bad)}, such as {bad[0]}"))
    out.append(("time", duration(result["wall_seconds"])))
    out.append(("peak memory", f"{quantity(result['peak_memory_bytes'])}B"))
    return out


def shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def print_table(header: Sequence[str], lines: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a table in the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table

    columns = [Column(h, overflow="fold") for h in header]
    table = Table(*columns, title=title or None, box=box.SIMPLE_HEAD, show_header=any(header), title_justify="left")
    for line in lines:
        table.add_row(*line)
    # a file or a pipe is not cut to the width of some terminal
    # an override such as callbacks=[default,ema] is no markup
    Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160, markup=False, emoji=False).print(table)


def print_result(result: dict[str, Any], folder: Path) -> None:
    """Print a run's final table and where everything was written."""
    lines: list[tuple[str, str]] = []
    for name, stage in result.get("stages", {}).items():
        best = score({**result, **stage})
        if best:
            lines.append((f"stage {name}", f"{best[0].replace('/', ' ')} {metric_text(best[0], best[1])}"))
    print_table(("", ""), lines + rows(result))
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir() if not p.name.startswith("."))
    print(f"written to {shown(folder)}: {', '.join(names)}")
