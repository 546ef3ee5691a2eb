"""Keys of a YAML file with the explanations that stand beside them in comments."""

import re
from dataclasses import dataclass
from typing import Any

import yaml

from papermix.errors import UserError

# a comment behind a value: none of the # in our YAML stand in strings after a blank
_BEHIND = re.compile(r"(?:^|\s)#\s?(.*)$")
# a key with a value of its own that is neither Hydra's nor the mix check's
_ORDINARY = re.compile(r"(?!defaults:)[a-z]\w*:\s*[^\s#]")


@dataclass(frozen=True)
class Key:
    """A key of a config file.

    Attributes:
        name: dotted, within the file.
        default: the value as YAML on one line; a mapping's is its ``_target_``, or empty.
        text: the comment above the key or behind it, in one line; empty when there is none.
        with_previous: it stands without a comment right behind a key that has its comment above: one comment explains both.
    """

    name: str
    default: str
    text: str
    with_previous: bool


def header(text: str) -> str:
    """The comment at the top of a file in one line, without Hydra's ``@package`` and commands."""
    lines = text.splitlines()
    top = [line for line in lines[: _top(lines)] if "@package" not in line and not line.startswith("#   ")]
    return " ".join(line.lstrip("# ") for line in top)


def _top(lines: list[str]) -> int:
    """Number of lines of the comment at the top; all but the first are about the key right below, if it is an ordinary one."""
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    if end < len(lines) and _ORDINARY.match(lines[end]):
        return next((i + 1 for i, line in enumerate(lines) if "@package" not in line), end)
    return end


def keys(text: str, where: str) -> list[Key]:
    """The keys of a YAML file in their order, those of Hydra and of the mix check (``defaults``, ``_target_``, ...) left out.

    Raises:
        UserError: the file ``where`` is no YAML.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{where} cannot be read: {' '.join(str(error).split())}.") from error
    lines = text.splitlines()
    return _walk(node, lines, _top(lines), "") if isinstance(node, yaml.MappingNode) else []


def _walk(node: yaml.MappingNode, lines: list[str], first: int, prefix: str, explained: bool = False) -> list[Key]:
    """Keys below a mapping; ``explained``: the mapping has a comment above it, which may be about its keys.

    Args:
        lines: of the file.
        first: number of the line behind the comment at its top.
    """
    found: list[Key] = []
    shares = explained
    for key, value in node.value:
        if key.value == "defaults" or key.value.startswith("_"):
            continue
        line = key.start_mark.line
        above = _above(lines, line, first)
        nested = isinstance(value, yaml.MappingNode) and not value.flow_style
        behind = _BEHIND.search(lines[line if nested else value.end_mark.line], 0 if nested else value.end_mark.column)
        if not nested and value.end_mark.line != line and not isinstance(value, yaml.ScalarNode) and not value.flow_style:
            behind = None  # a list written over several lines
        text = above or (behind.group(1).strip() if behind else "")
        name = prefix + key.value
        found.append(Key(name, _default(value), text, not text and shares and not nested))
        if nested:
            found += _walk(value, lines, first, f"{name}.", bool(above))
        shares = bool(above) or (not text and shares and not nested)
    return found


def _above(lines: list[str], line: int, first: int) -> str:
    """The block of comment lines right above a line, that at the file's top left out."""
    indent = len(lines[line]) - len(lines[line].lstrip())
    start = line
    while start > first and lines[start - 1].startswith(" " * indent + "#"):
        start -= 1
    return " ".join(part.strip().lstrip("# ") for part in lines[start:line])


def _default(node: yaml.Node) -> str:
    """A value as YAML on one line."""
    if isinstance(node, yaml.ScalarNode):
        return f'"{node.value}"' if node.style and not node.value else node.value
    plain = yaml.SafeLoader("").construct_document(node)
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        return str(plain.get("_target_") or "").rpartition(".")[2]
    return _flow(plain)


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().removesuffix("...").strip()
