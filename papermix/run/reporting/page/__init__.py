"""A report as one HTML page that needs nothing else: its data as JSON, its style and its script are in it."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from papermix.run.reporting.curves import Curves
from papermix.run.reporting.page.data import page_data
from papermix.run.reporting.papers import Paper
from papermix.run.reporting.published import Compared
from papermix.run.reporting.report import Section
from papermix.run.reporting.thumbnails import Thumbnail
from papermix.run.reporting.unfinished import Unfinished

_HERE = Path(__file__).parent


def page(
    found: Sequence[Section],
    compared: Mapping[str, list[Compared]],
    papers: Mapping[str, Paper],
    curves: Curves,
    pictures: Mapping[str, list[Thumbnail]],
    left: Sequence[Unfinished],
    notes: Sequence[str],
    summary: str,
    command: str,
) -> str:
    """The page's text."""
    data = page_data(found, compared, papers, curves, pictures, left, notes) | {"summary": summary, "command": command}
    return assemble(data)


def assemble(data: Mapping[str, Any]) -> str:
    """The page of some data. Its policy lets it load nothing, and run no script but its own one."""
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    script = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in ("table.js", "charts.js", "page.js"))
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    # no character that HTML takes for its own can stand in the data
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    parts = {"policy": html.escape(policy), "style": style, "script": script, "data": text}
    out = (_HERE / "page.html").read_text(encoding="utf-8")
    head, *rest = out.split("{{")
    return head + "".join(parts[name] + after for name, _, after in (piece.partition("}}") for piece in rest))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
