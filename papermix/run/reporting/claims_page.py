"""What is kept of a claim: a JSON file and a picture in ``docs/claims/``, and its section of ``docs/RESULTS.md``."""

import math
from pathlib import Path
from typing import Any

from papermix.errors import UserError
from papermix.run.catalog import CONF
from papermix.run.folder import read_json, write_json
from papermix.run.reporting import grid
from papermix.run.reporting.blocks import put, table
from papermix.run.reporting.inequality import inequality
from papermix.run.reporting.pictures import BLUE, GREY, RED, figure
from papermix.run.reporting.verdict import CONFIRMED, OPEN, REFUTED, RULE
from papermix.run.result import duration, metric_text

ROOT = CONF.parent
# a table lists the values of at most so many seeds; the JSON file has them all
_LISTED = 6


def keep(found: dict[str, Any], root: Path = ROOT) -> list[Path]:
    """Write a claim's JSON and its picture; returns the files. The pages that show them are made anew by the catalog."""
    place = root / "docs" / "claims"
    place.mkdir(parents=True, exist_ok=True)
    data, picture = place / f"{found['name']}.json", place / f"{found['name']}.png"
    write_json(data, found)
    draw(found, picture)
    return [data, picture]


def results_page(root: Path = ROOT) -> str:
    """``docs/RESULTS.md`` its block on claims made anew from ``docs/claims/*.json``. Raises UserError for a bad one."""
    page = root / "docs" / "RESULTS.md"
    text = page.read_text(encoding="utf-8") if page.exists() else "# Results\n"
    parts = ["## Claims", f"Made by `python scripts/claims.py`. {RULE}"]
    for path in sorted((root / "docs" / "claims").glob("*.json")):
        found = read_json(path)
        if not isinstance(found, dict):
            raise UserError(f"{path} cannot be read: run python scripts/claims.py {path.stem} again.")
        parts.append(section(found))
    return put(text, "claims", "\n\n".join(parts))


def section(found: dict[str, Any]) -> str:
    """A claim's section: sentence, verdict, picture, tables, and how it was measured."""
    measure = found["measure"]
    seeds = [str(s) for s in found["seeds"]]
    lines = []
    for name, arm in plain_arms(found).items():
        each = [text(measure, arm["values"][s]) if s in arm["values"] else "failed" for s in seeds]
        if len(seeds) > _LISTED and arm["values"]:
            each = [f"{text(measure, min(arm['values'].values()))} to {text(measure, max(arm['values'].values()))}"]
        density = "" if arm["density"] is None else f"{100 * arm['density']:.3g} %"
        overrides = f"`{' '.join(arm['overrides'])}`" if arm["overrides"] else "defaults"
        lines.append([name, overrides, density, text(measure, arm["mean"]), text(measure, arm["std"]), ", ".join(each)])
    parts = [
        f"### {found['name']}: {found['verdict']}",
        f"> {found['claim']}",
        f"![{found['name']}: every seed of each arm, and the slack of each expectation](claims/{found['name']}.png)",
    ]
    if lines:
        parts.append(table(["arm", "overrides", "density", f"mean {measure}", "standard deviation", "each seed"], lines))
    for name, each in found.get("grids", {}).items():
        parts += [f"Mean {measure} of the runs of {name} ({_fixed(each, found)}):", grid.section(name, each, found)]
    parts.append(
        table(
            ["expected", "slack", "uncertainty (95 %)", "seeds", "verdict"],
            [
                [f"`{e['text']}`", slack(e, found), slack(e, found, "uncertainty"), str(e["seeds"]), e["verdict"]]
                for e in found["expect"]
            ],
        )
    )
    errors = [f"- {name}, seed {s}: {e}" for name, arm in found["arms"].items() for s, e in arm["failed"].items()]
    if errors:
        parts.append("Failed:\n\n" + "\n".join(errors))
    machine, versions = found["machine"], ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    threads = f", OMP_NUM_THREADS={machine['threads']}" if machine["threads"] else ""
    parts.append(
        f"`{found['command']}`; seeds {', '.join(seeds)}; {machine['cpu']}, {machine['cores']} cores{threads}; {versions}; "
        f"commit {', '.join(found['commits'])}; {duration(found['run_seconds'])} of training."
    )
    return "\n\n".join(parts)


def plain_arms(found: dict[str, Any]) -> dict[str, Any]:
    """The arms that are no cells of a grid."""
    cells = {arm for each in found.get("grids", {}).values() for line in each["lines"] for arm in line["cells"].values()}
    return {name: arm for name, arm in found["arms"].items() if name not in cells}


def slack(expected: dict[str, Any], found: dict[str, Any], key: str = "slack") -> str:
    """Slack (or uncertainty) of an expectation for people."""
    return text(expected.get("unit", found["measure"]), expected[key])


def _fixed(each: dict[str, Any], found: dict[str, Any]) -> str:
    """The overrides that all cells of a grid have."""
    cells = [found["arms"][arm]["overrides"] for line in each["lines"] for arm in line["cells"].values()]
    return f"`{' '.join(o for o in cells[0] if all(o in cell for cell in cells))}`"


def text(measure: str, value: float | None) -> str:
    """A number of a measure for people; ``-`` where there is none."""
    return "-" if value is None else metric_text(measure, value)


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw each arm's seeds, their mean and the edges expected of it, each grid's heat map, and all slacks with their intervals."""
    arms, grids, expected = plain_arms(found), found.get("grids", {}), found["expect"]
    height = max(3.6, 1.2 * len(expected), *(1.4 + 0.4 * len(each["lines"]) for each in grids.values()))
    made, axes = figure(4.8 * (1 + bool(arms) + len(grids)), height, 1 + bool(arms) + len(grids))
    if arms:
        _draw_arms(axes[0], arms, found)
    for axis, (name, each) in zip(axes[bool(arms) :], grids.items()):
        grid.draw(axis, name, each, found)

    # a row for each expectation, on its own scale: a small margin must stay visible beside a large one
    colours = {CONFIRMED: "#2a8c55", REFUTED: RED, OPEN: GREY}
    rows = axes[-1].get_subplotspec().subgridspec(len(expected), 1)
    axes[-1].remove()
    for row, e in zip(rows, expected):
        axis = made.add_subplot(row)
        if e["slack"] is not None:
            axis.errorbar(
                e["slack"], 0, xerr=e["uncertainty"] or 0, fmt="o", color=colours[e["verdict"]], capsize=4, markersize=6
            )
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"{e['text']}: {e['verdict']}", fontsize=8, loc="left")
        axis.set_yticks([])
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.margins(x=0.15)
    axis.set_xlabel("slack, with its 95 % interval (holds right of 0)", fontsize=8)
    made.suptitle(f"{found['name']}: {found['verdict']}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path)


def _draw_arms(axis: Any, arms: dict[str, Any], found: dict[str, Any]) -> None:
    """Each arm's seeds, their mean, and the edges expected of it."""
    means = {name: arm["mean"] for name, arm in arms.items() if arm["mean"] is not None}
    for i, (name, arm) in enumerate(arms.items()):
        values = [v for v in arm["values"].values() if math.isfinite(v)]
        # side by side, so that equal values stay visible
        offsets = [0.12 * (k - (len(values) - 1) / 2) / max(1, (len(values) - 1) / 2) for k in range(len(values))]
        axis.plot([i + o for o in offsets], values, "o", color=BLUE, alpha=0.75, markersize=5, label="a seed" if i == 0 else None)
        if name in means and math.isfinite(means[name]):
            axis.plot([i - 0.25, i + 0.25], [means[name]] * 2, color="black", linewidth=2, label="mean" if i == 0 else None)
    rules = [inequality(e["text"]) for e in found["expect"]]
    known = [rule for rule in rules if rule.alone in arms and rule.right.names <= set(means)]
    for k, rule in enumerate(known):
        at, edge, up = list(arms).index(str(rule.alone)), rule.right.value(means), 14 if rule.sense.startswith(">") else -14
        label = "expected on the side of the arrow" if k == 0 else None
        axis.plot([at - 0.38, at + 0.38], [edge] * 2, color=RED, linewidth=1.2, linestyle="--", label=label)
        arrow = {"arrowstyle": "<-", "color": RED}
        axis.annotate("", (at + 0.38, edge), xytext=(0, up), textcoords="offset points", arrowprops=arrow)
    slanted = {"rotation": 30, "ha": "right"} if sum(map(len, arms)) > 50 else {}
    axis.set_xticks(range(len(arms)), list(arms), fontsize=8, **slanted)
    axis.set_xlim(-0.6, len(arms) - 0.4)
    axis.set_ylabel(found["measure"].replace("/", " "), fontsize=8)
    axis.legend(fontsize=7, frameon=False)
    axis.grid(visible=False, axis="x")
