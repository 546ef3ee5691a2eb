"""What stands in conf/: groups, options, and what each gives, needs and clashes with. Read as YAML, nothing composed."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).resolve().parents[2] / "conf"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast
# groups whose options state what they give and need
MIXED = ("dataset", "model", "method", "optimizer", "scheduler", "sparsity", "callbacks", "logger", "hardware")


@dataclass(frozen=True)
class Option:
    """One file of a config group: its first comment line and its capabilities, those of the options it builds on included."""

    group: str
    name: str
    summary: str
    gives: frozenset[str]
    needs: frozenset[str]
    clashes: frozenset[str]


def _capabilities(node: object, key: str) -> set[str]:
    """All words under ``key`` in a tree of YAML."""
    if not isinstance(node, dict):
        return set()
    own = set(node.get(key) or ())
    return own.union(*(_capabilities(v, key) for v in node.values()))


@cache
def options(group: str) -> dict[str, Option]:
    """Options of a config group, by name (``family/name`` in sub-folders), sorted."""
    root = CONF / group
    return {name: _read(group, name) for name in sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml"))}


@cache
def _tree(group: str, name: str) -> Any:
    return yaml.load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"), _LOADER)


def _bases(name: str, tree: Any) -> list[str]:
    """The options of its own group on which an option builds."""
    entries = tree.get("defaults", []) if isinstance(tree, dict) else []
    return [str(Path(name).parent / e) for e in entries if isinstance(e, str) and e != "_self_" and not e.startswith("/")]


def sets(group: str, name: str, key: str) -> bool:
    """Whether an option's file, or one that it builds on, sets a dotted key."""
    tree = _tree(group, name)
    node = tree
    for part in key.split("."):
        node = node.get(part, ...) if isinstance(node, dict) else ...
    return node is not ... or any(sets(group, base, key) for base in _bases(name, tree))


@cache
def _read(group: str, name: str) -> Option:
    text = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8")
    comments = (line.lstrip("# ") for line in text.splitlines() if line.startswith("#") and "@package" not in line)
    tree = _tree(group, name) or {}
    found = {key: _capabilities(tree, key) for key in ("_gives_", "_needs_", "_clashes_")}
    for base in (_read(group, other) for other in _bases(name, tree)):
        for key, words in zip(found, (base.gives, base.needs, base.clashes)):
            found[key] |= words
    return Option(group, name, next(comments, ""), *(frozenset(found[k]) for k in found))


@cache
def root_keys() -> frozenset[str]:
    """Keys at the root of every config: those of ``conf/train.yaml`` and its groups."""
    tree = yaml.safe_load((CONF / "train.yaml").read_text(encoding="utf-8"))
    groups = {group for entry in tree.pop("defaults") if isinstance(entry, dict) for group in entry}
    return frozenset(tree) | groups | {"_stages_"}


@cache
def groups() -> tuple[str, ...]:
    """Names of the config groups."""
    return tuple(sorted(p.name for p in CONF.iterdir() if p.is_dir() and p.name != "hydra"))


def holders(key: str) -> list[str]:
    """Options whose own file has the dotted ``key`` (``model.depth``), as ``group=name``."""

    def has(node: object, parts: list[str]) -> bool:
        return not parts or (isinstance(node, dict) and parts[0] in node and has(node[parts[0]], parts[1:]))

    group, *parts = key.split(".")
    if not parts or group not in groups():
        return []
    return [f"{group}={name}" for name in options(group) if has(_tree(group, name), parts)]


def givers(word: str) -> list[str]:
    """Options that give a capability, as ``group=name``."""
    return [f"{g}={o.name}" for g in MIXED for o in options(g).values() if word in o.gives]
