"""Generated pages: ``docs/catalog.md``, the README's table of papers, the claims in ``docs/RESULTS.md``."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from papermix.run.catalog import CONF, Option, options
from papermix.run.folder import read_json
from papermix.run.reporting.blocks import put, table
from papermix.run.reporting.claims_page import results_page
from papermix.run.reporting.mixes import matrix, words
from papermix.run.reporting.papers import Paper, load_papers, read_yaml
from papermix.run.result import metric_text

ROOT = CONF.parent
# groups in the order of the page, with what an option of each stands for
GROUPS = {
    "dataset": "data, and the task that goes with it",
    "model": "networks",
    "method": "training procedures",
    "optimizer": "optimizers",
    "scheduler": "learning-rate schedules",
    "sparsity": "masks and their schedules",
    "callbacks": "what watches or steers a run; a list: `callbacks=[default,ema]`",
    "logger": "where numbers go; a list: `logger=[csv,wandb]`",
    "hardware": "devices, processes, precision",
    "trainer": "length of training, validation, clipping",
    "experiment": "recipes that set any of the groups above",
    "debug": "quick presets to find faults with",
}
HEADER = "<!-- made by: python scripts/catalog.py --write -->"


def cell(names: Iterable[str]) -> str:
    """Names as code, in one cell of a table."""
    return ", ".join(f"`{n}`" for n in names)


def option_table(group: str) -> tuple[list[str], list[list[str]]]:
    """(header, lines) of a group's options; columns without an entry are left out."""
    have = list(options(group).values())
    columns: dict[str, list[str]] = {"option": [o.name for o in have], "what it is": [o.summary for o in have]}
    for title, kind in (("gives", "gives"), ("needs", "needs"), ("not with", "clashes")):
        column = [", ".join(sorted(getattr(o, kind))) for o in have]
        if any(column):
            columns[title] = column
    return list(columns), [list(line) for line in zip(*columns.values())]


def mix_table() -> tuple[list[str], list[list[str]]]:
    """(header, lines): the methods that go with each kind of dataset (column) and model (line); pairs without any are ``-``."""
    cells = {(d[0].name, m[0].name): methods for d, m, methods in matrix()}
    datasets = list({d[0].name: d for d, _, _ in matrix()}.values())
    models = list({m[0].name: m for _, m, _ in matrix()}.values())
    header = ["model", *(", ".join(o.name for o in kind) for kind in datasets)]
    return header, [[_names(m), *(", ".join(cells[d[0].name, m[0].name]) or "-" for d in datasets)] for m in models]


def _names(kind: Sequence[Option]) -> str:
    return ", ".join(o.name for o in kind)


def paper_table(papers: dict[str, Paper], root: Path = ROOT) -> str:
    """The README's table: paper, where to read about it here, its options, its claim's verdict."""
    if not papers:
        return "No paper is in yet: this is the foundation."
    declared = {name for name, _ in claims()}
    lines = []
    for name, paper in papers.items():
        page = root / "docs" / "papers" / f"{name}.md"
        result = read_json(root / "docs" / "claims" / f"{name}.json")
        verdict = f"[{result['verdict']}](docs/RESULTS.md)" if result else "not run yet" if name in declared else ""
        shown = f"[{name}](docs/papers/{name}.md)" if page.exists() else name
        lines.append([shown, f"{paper.link} ({paper.cited})", cell(paper.options), verdict])
    return table(["", "paper", "options", "claim"], lines)


def published_table(paper: Paper) -> str:
    """The numbers that a paper published."""
    lines = [
        [n.data, n.model, cell(n.overrides), n.metric.replace("/", " "), metric_text(n.metric, n.value), n.table]
        for n in paper.published
    ]
    return table(["data", "model", "with", "metric", "published", "where"], lines)


def claims() -> list[tuple[str, str]]:
    """(name, sentence) of every claim."""
    return [(p.stem, str(read_yaml(p, f"conf/claim/{p.name}").get("claim", ""))) for p in sorted((CONF / "claim").glob("*.yaml"))]


def catalog(papers: dict[str, Paper]) -> str:
    """The text of ``docs/catalog.md``."""
    parts = [
        HEADER,
        "# Catalog",
        "What there is, and what mixes with what. An option is chosen on the command line as `group=option`.",
    ]
    if papers:
        parts.append("## Papers")
        for paper in papers.values():
            parts.append(
                f"**{paper.name}**: {paper.link}, {', '.join(paper.authors)}, {paper.venue} {paper.year}. {cell(paper.options)}"
            )
            if paper.published:
                parts.append(published_table(paper))
    parts.append("## What mixes with what")
    parts.append(
        "The methods that go with a dataset and a model. An option states in its config what it `_gives_` and `_needs_`; a mix "
        "is possible when every need is given, and is checked before anything runs. Optimizers, schedules and sparsities go with "
        "all of them unless their tables below say otherwise."
    )
    parts.append(table(*mix_table()))
    parts.append(
        table(["capability", "given by", "needed by", "not with"], [[f"`{w}`", *map(cell, lists)] for w, *lists in words()])
    )
    for group, what in GROUPS.items():
        if options(group):
            header, lines = option_table(group)
            parts += [
                f"## {group}",
                f"{what[0].upper()}{what[1:]}.",
                table(header, [[f"`{line[0]}`", *line[1:]] for line in lines]),
            ]
    if claims():
        parts += ["## Claims", "`python scripts/claims.py NAME` tests one; the results stand in [RESULTS.md](RESULTS.md)."]
        parts.append(table(["claim", "says"], [[f"`{name}`", sentence] for name, sentence in claims()]))
    return "\n\n".join(parts) + "\n"


def pages(root: Path = ROOT) -> dict[Path, str]:
    """Every page with a generated part, and its text. Raises UserError when the README has no block for the papers."""
    papers = load_papers()
    readme = root / "README.md"
    made = {
        root / "docs" / "catalog.md": catalog(papers),
        readme: put(readme.read_text(encoding="utf-8"), "papers", paper_table(papers, root), where="README.md"),
    }
    if any((root / "docs" / "claims").glob("*.json")):
        made[root / "docs" / "RESULTS.md"] = results_page(root)
    return made
