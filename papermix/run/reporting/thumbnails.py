"""Pictures of runs, scaled down, as data URIs of a page that holds all it shows."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from papermix.run.reporting.report import Section
from papermix.run.reporting.runs import Run

SIZE = 720  # longest side in pixels
_LARGEST = 40_000_000  # pixels of a picture that is opened at all
# the page draws the curves itself
_SKIPPED = ("curves.png",)


@dataclass
class Thumbnail:
    """A picture of a run: its name, its width and height in pixels, its data URI."""

    name: str
    width: int
    height: int
    uri: str


def pictures(run: Run) -> list[Path]:
    """The pictures in a run's folder and those of its stages: of several steps of one kind the last."""
    out = []
    for stage in ["main", *run.result["stages_done"]]:
        place = run.folder if stage == "main" else run.folder / str(stage)
        out += sorted(p for p in place.glob("*.png") if p.name not in _SKIPPED)
        for folder in sorted({p.parent for p in place.glob("pictures/**/*.png")}):
            steps = sorted(folder.glob("step_*.png"))
            rest = sorted(p for p in folder.glob("*.png") if p not in steps)
            out += rest if folder / "final.png" in rest else [*rest, *steps[-1:]]
    return list(dict.fromkeys(out))


def thumbnails(found: Sequence[Section], budget: int) -> tuple[dict[str, list[Thumbnail]], list[str]]:
    """(run folder -> its thumbnails, sentences about what was left out), at most ``budget`` bytes of data URIs in all.

    The best settings of each table come first, and the first seed of all of them before the second of any.
    """
    out: dict[str, list[Thumbnail]] = {}
    notes, used, left = [], 0, 0
    for run in _in_order(found):
        for path in pictures(run):
            if used >= budget:
                left += 1
                continue
            try:
                made = thumbnail(path, str(path.relative_to(run.folder)))
            except Exception as error:  # Pillow raises nearly anything for a damaged file
                notes.append(f"{path} cannot be shown ({type(error).__name__}: {' '.join(str(error).split())[:120]}).")
                continue
            if used + len(made.uri) > budget:
                used, left = budget, left + 1
                continue
            used += len(made.uri)
            out.setdefault(str(run.folder), []).append(made)
    if left:
        notes.append(f"{left} pictures were left out to keep the page below {budget / 1e6:g} MB of them: --pictures-mb takes more.")
    return out, notes


def _in_order(found: Sequence[Section]) -> Iterable[Run]:
    seeds = max((len(g.runs) for s in found for g in s.groups), default=0)
    settings = max((len(s.groups) for s in found), default=0)
    for seed in range(seeds):
        for i in range(settings):
            for section in found:
                if i < len(section.groups) and seed < len(section.groups[i].runs):
                    yield section.groups[i].runs[seed]


def thumbnail(path: Path, name: str) -> Thumbnail:
    """A picture as WebP. Raises what Pillow raises, and ValueError for one that is too large to be opened."""
    from PIL import Image

    with Image.open(path, formats=("PNG",)) as image:
        if image.width * image.height > _LARGEST:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        small = image.convert("RGBA" if image.has_transparency_data else "RGB")
    small.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    small.save(data, "WEBP", quality=80, method=4)
    return Thumbnail(name, *small.size, f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}")
