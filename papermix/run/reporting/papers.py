"""The papers of this project: ``conf/paper/<paper>.yaml``, with the numbers that they published."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from papermix.errors import UserError, nearest
from papermix.run.catalog import CONF
from papermix.run.result import is_share

_KEYS = {"title": str, "authors": list, "venue": str, "year": int, "arxiv": str, "options": list, "published": list}
_NUMBER = {"metric": str, "data": str, "model": str, "value": float, "table": str, "with": list}


@dataclass(frozen=True)
class Published:
    """A number of a paper, in the unit that a run measures it in (accuracy: a fraction).

    Attributes:
        metric: name as in ``result.json``, such as ``test/accuracy``.
        data, model: options of conf/dataset and conf/model, or words where this project has none.
        overrides: what else a run must have chosen to be compared with it (``optimizer=adam``).
        value: the number.
        table: where it stands in the paper.
    """

    metric: str
    data: str
    model: str
    value: float
    table: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paper:
    """A paper: where it appeared, which options (``group=name``) are its own, what it published."""

    name: str
    title: str
    authors: tuple[str, ...]
    venue: str
    year: int
    arxiv: str | None
    options: tuple[str, ...]
    published: tuple[Published, ...]

    @property
    def link(self) -> str:
        """Title in Markdown, linked to arXiv where it is there."""
        return f"[{self.title}](https://arxiv.org/abs/{self.arxiv})" if self.arxiv else self.title

    @property
    def cited(self) -> str:
        """``First et al., Venue Year``."""
        who = self.authors[0] + (
            " et al." if len(self.authors) > 2 else f" and {self.authors[1]}" if len(self.authors) == 2 else ""
        )
        return f"{who}, {self.venue} {self.year}"


def load_papers(conf: Path = CONF) -> dict[str, Paper]:
    """All papers by name. Raises UserError that names the file and the key at fault."""
    return {path.stem: read_paper(path) for path in sorted((conf / "paper").glob("*.yaml"))}


def read_paper(path: Path) -> Paper:
    """One paper. Raises UserError that names the file and the key at fault."""
    where = f"conf/paper/{path.name}"
    tree = read_yaml(path, where)
    check_keys(tree, _KEYS, ("title", "authors", "venue", "year", "options"), where)
    for option in tree["options"]:
        group, _, name = str(option).partition("=")
        if not (path.parent.parent / group / f"{name}.yaml").is_file():
            raise UserError(f"{where}: options has {option!r}, but there is no conf/{group}/{name}.yaml.")
    published = []
    for i, number in enumerate(tree.get("published") or []):
        at = f"{where}: published[{i}]"
        if not isinstance(number, dict):
            example = "{metric: test/accuracy, data: cifar10, model: resnet20, value: 0.9125, table: Table 6}"
            raise UserError(f"{at} must be a mapping like {example}.")
        check_keys(number, _NUMBER, ("metric", "data", "model", "value", "table"), at)
        if is_share(number["metric"]) and not 0 <= number["value"] <= 1:
            raise UserError(
                f"{at}: {number['metric']} is a fraction here, so write {number['value'] / 100:g} instead of {number['value']:g}."
            )
        overrides = tuple(str(o) for o in number.get("with", ()))
        published.append(Published(**{k: v for k, v in number.items() if k != "with"}, overrides=overrides))
    authors = tuple(str(a) for a in tree["authors"])
    if not authors:
        raise UserError(f"{where}: authors is empty: name at least one.")
    facts = (tree["title"], authors, tree["venue"], tree["year"], tree.get("arxiv"))
    return Paper(path.stem, *facts, tuple(tree["options"]), tuple(published))


def read_yaml(path: Path, where: str) -> dict[str, Any]:
    """A YAML mapping. Raises UserError that names the file."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{where} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(tree, dict):
        raise UserError(f"{where} must be a mapping of keys to values.")
    return tree


def check_keys(tree: Mapping[str, Any], types: Mapping[str, type], required: tuple[str, ...], where: str) -> None:
    """See that all keys are known and of the right type, and that none is missing. Raises UserError otherwise."""
    for key, value in tree.items():
        if key not in types:
            raise UserError(f"{where} has an unknown key {key!r}{nearest(str(key), types)}; there are {', '.join(types)}.")
        allowed = (int, float) if types[key] is float else (types[key],)
        if value is not None and (not isinstance(value, allowed) or isinstance(value, bool)):
            hint = " (quote it)" if types[key] is str else ""
            raise UserError(f"{where}: {key} must be of type {types[key].__name__}, not {value!r}{hint}.")
    for key in required:
        if tree.get(key) is None:
            raise UserError(f"{where} lacks {key!r}.")
