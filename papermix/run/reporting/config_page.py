"""The config reference: ``docs/config.md`` and a page for each group in ``docs/config/``, made of the YAML's own comments."""

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from papermix.run.catalog import CONF
from papermix.run.reporting.blocks import table
from papermix.run.reporting.catalog_page import GROUPS, HEADER, cell
from papermix.run.reporting.comments import Key, header, keys

ROOT = CONF.parent
# groups of a page, with what an option of each stands for; recipes are a table of their own
PAGES = {
    **{group: what for group, what in GROUPS.items() if group != "experiment"},
    "hydra/launcher": "where the runs of a sweep run; most are chosen by hardware=...",
    "hydra/sweeper": "what a sweep runs",
}
_LONGEST = 90  # characters of a default value that are shown


@cache
def read(group: str, name: str) -> str:
    """Text of an option."""
    return (CONF / group / f"{name}.yaml").read_text(encoding="utf-8")


def names(group: str) -> list[str]:
    """Options of a group."""
    root = CONF / group
    return sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml"))


def bases(group: str, name: str) -> list[str]:
    """Options of the same group that an option builds on."""
    tree = yaml.safe_load(read(group, name)) or {}
    return [e for e in tree.get("defaults", []) if isinstance(e, str) and e != "_self_" and not e.startswith("/")]


def explained(group: str, name: str) -> list[Key]:
    """The keys of an option, each with its own explanation or else that of the option it builds on, or of the key it sets."""
    text = read(group, name)
    found = keys(text, f"conf/{group}/{name}.yaml")
    if group in ("callbacks", "logger"):  # an entry of the list: its file's first line explains it
        found = [k for k in found if "." in k.name]
    known = {k.name: k.text for base in bases(group, name) for k in explained(group, base)}
    if "@package _global_" in text:
        known |= {k.name: k.text for k in explained("", "train")} | {f"trainer.{k.name}": k.text for k in explained("trainer", "default")}
    out: list[Key] = []
    for key in found:
        own = key.text or (known.get(key.name, "") if key.default else "")
        shared = not own and key.with_previous and bool(out)
        out.append(replace(key, text=own or (out[-1].text if shared else ""), with_previous=shared))
    return out


def unexplained(group: str, name: str) -> list[str]:
    """Keys with a value that no comment explains."""
    return [k.name for k in explained(group, name) if k.default and not k.text]


def prose(text: str) -> str:
    """A comment as Markdown: what is not `code` stands as it is."""
    parts = text.split("`")
    return "`".join(part if i % 2 else re.sub(r"([*<\\])", r"\\\1", part) for i, part in enumerate(parts))


def key_table(found: Iterable[Key]) -> str:
    """A table of keys; those that one comment explains share a line."""
    rows: list[list[list[str] | str]] = []
    for key in found:
        default = key.default if len(key.default) <= _LONGEST else f"{key.default[: _LONGEST - 4]} ..."
        if key.with_previous and rows:
            if not any(rows[-1][1]):  # a mapping whose comment is about its keys
                rows[-1][0], rows[-1][1] = [], []
            rows[-1][0].append(key.name)  # type: ignore[union-attr]
            rows[-1][1].append(default)  # type: ignore[union-attr]
        elif key.text:
            rows.append([[key.name], [default], prose(key.text)])
    lines = [[cell(k), cell(v for v in values if v), str(text)] for k, values, text in rows]
    return table(["key", "default", "explanation"], lines)


def overrides(tree: Any) -> list[str]:
    """Options of other groups that an option's ``defaults`` choose, as ``group=name``."""
    entries = [e for e in tree.get("defaults", []) if isinstance(e, dict)]
    chosen = [(k.removeprefix("override").strip().lstrip("/").partition("@")[0], v) for e in entries for k, v in e.items()]
    return [f"{k}=[{','.join(v)}]" if isinstance(v, list) else f"{k}={v}" for k, v in chosen]


def option(group: str, name: str) -> str:
    """The part of a page that is about an option."""
    text = read(group, name)
    tree = yaml.safe_load(text) or {}
    parts = [f"## {name}", prose(header(text))]
    facts = []
    nodes = [tree, *(v for v in tree.values() if isinstance(v, dict))]
    targets = list(dict.fromkeys(str(n["_target_"]) for n in nodes[: 1 if "_target_" in tree else None] if n.get("_target_")))
    if targets:
        facts.append(f"Code: {cell(targets)}.")
    based = bases(group, name)
    if group == "callbacks" and based:
        facts.append(f"Is the list {cell(based)}.")
    elif based:
        facts.append(f"As {cell(f'{group}={base}' for base in based)}, but for:" if keys(text, name) else f"As {cell(based)}.")
    chosen = overrides(tree)
    if chosen:
        facts.append(f"Chooses {cell(chosen)}.")
    for word, what in (("_gives_", "Gives"), ("_needs_", "Needs"), ("_clashes_", "Not with")):
        words = [w for n in nodes for w in n.get(word) or ()]
        if words:
            facts.append(f"{what} {cell(dict.fromkeys(words))}.")
    if facts:
        parts.append(" ".join(facts))
    found = [k for k in explained(group, name) if k.text]
    if found:
        parts.append(key_table(found))
    return "\n\n".join(part for part in parts if part)


def group_page(group: str) -> str:
    """The page of a group."""
    what = PAGES[group]
    how = f"Chosen as `{group}=NAME`, keys set as `{group.replace('/', '.').removesuffix('.launcher').removesuffix('.sweeper')}"
    how += {"hydra/launcher": ".launcher", "hydra/sweeper": ".sweeper"}.get(group, "") + ".KEY=VALUE`."
    if group in ("callbacks", "logger"):
        how = f"Chosen as a list, `{group}=[NAME,NAME]`; keys set as `{group}.KEY=VALUE`."
    if group == "debug":
        how = "Chosen as `debug=NAME`; sets keys of other groups."
    parts = [HEADER, f"# {group}", f"{what[0].upper()}{what[1:].rstrip('.')}. {how}"]
    return "\n\n".join([*parts, *(option(group, name) for name in names(group))]) + "\n"


def recipe_table() -> str:
    """All recipes: what each is, and the options it chooses."""
    lines = []
    for name in names("experiment"):
        tree = yaml.safe_load(read("experiment", name)) or {}
        built = [f"experiment={e}" for e in tree.get("defaults", []) if isinstance(e, str) and e != "_self_"]
        lines.append([f"`{name}`", prose(header(read("experiment", name))), cell([*built, *overrides(tree)])])
    return table(["recipe", "what it is", "options"], lines)


def page_name(group: str) -> str:
    """Where a group's page lies below ``docs/config/``."""
    return f"{group.removeprefix('hydra/')}.md"


def overview() -> str:
    """The text of ``docs/config.md``."""
    groups = [[f"[{group}](config/{page_name(group)})", what] for group, what in PAGES.items()]
    groups.append(["[experiment](config/experiment.md)", GROUPS["experiment"]])
    parts = [
        HEADER,
        "# Configuration",
        "Every group, every option, every key, with its default and the comment that stands beside it in `conf/`. An option is a file: "
        "`model=resnet20` picks `conf/model/resnet20.yaml`. A value such as `${dataset.num_classes}` is taken from there. "
        "`python train.py --cfg job` with any other settings shows the whole config of that command.",
        table(["group", "what it is for"], groups),
        "## Keys outside of groups",
        key_table(k for k in explained("", "train") if k.text),
        "## paths",
        prose(header(read("paths", "default"))),
        key_table([replace(k, name=f"paths.{k.name}") for k in explained("paths", "default")]),
    ]
    return "\n\n".join(parts) + "\n"


def pages(root: Path = ROOT) -> dict[Path, str]:
    """Every page of the reference and its text."""
    docs = root / "docs"
    recipes = [HEADER, "# experiment", "Recipes that set any of the groups. Chosen as `experiment=NAME`.", recipe_table()]
    return {
        docs / "config.md": overview(),
        **{docs / "config" / page_name(group): group_page(group) for group in PAGES},
        docs / "config" / "experiment.md": "\n\n".join(recipes) + "\n",
    }
