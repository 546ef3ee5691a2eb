"""Pictures of dense tasks: images beside their truth, what the network says of them, and where it is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from callbacks.picture_base import PictureBase, pixels
from papermix.segmentation import draw
from papermix.segmentation.draw import Picture, View
from papermix.segmentation.segments import VOID, Category, Segments, to_truth, truth_of

# pixels: images are drawn with their longer side about this long, the gap between two, a line of text, a colour bar with numbers
SIDE, GAP, LINE, BAR = 400, 10, 20, 52
# least width of a column, width of a letter of the legend, height and width of a swatch, dots per inch
TITLE, LETTER, SWATCH, DPI = 190, 7.6, (13, 22), 110
MOST, LONGEST = 24, 22  # classes that the legend names, letters of a name


@dataclass(frozen=True)
class Seen:
    """What is drawn of an image, in main memory: truth and prediction are classes [H, W], segments, or measurements [C, H, W]."""

    name: str
    image: Tensor  # [3, h, w], 0 to 1
    truth: Tensor | Segments
    predicted: Tensor | Segments
    score: str
    views: Sequence[View] = ()


@dataclass(frozen=True)
class Panel:
    """A picture with a title, and a colour bar: name of the colour map, lowest and highest number."""

    title: str
    picture: Picture
    bar: tuple[str, float, float] | None = None


class DensePictures(PictureBase):
    """Writes ``pictures/step_000120.png`` after every ``every``-th validation and ``pictures/final.png`` at the end of training.

    A row for each of the first ``count`` images of the validation set, at the size of its truth, with the task's metric of that
    image alone:

    - classes: image, truth, prediction, errors (wrong pixels red, void grey);
    - segments (a method that groups pixels): image, true segments, predicted segments, errors of the class, predicted segments
      over the image; instances of a class differ in brightness and have a border, crowds are striped;
    - measurements: image, truth, prediction, absolute error, with colour bars (means over the channels).

    A method may show more of an image: ``views(output, batch, place)``, a list of :class:`papermix.segmentation.draw.View`, is drawn
    behind these. A legend names the classes that occur. Loggers that take pictures get them as ``val/predictions``. The first process draws.

    Args:
        count: images in a picture.
        every: validations between two pictures.
    """

    name = "dense_pictures"

    def __init__(self, count: int = 4, every: int = 1) -> None:
        super().__init__(count, every)

    def look(self, trainer: pl.Trainer, pl_module: Any, batch: dict[str, Tensor], output: Any) -> list[Seen]:
        """Truth and prediction of every image at the truth's size, one image after the other (class scores are large)."""
        data = getattr(trainer, "datamodule", None)
        normalize, name, task = getattr(data, "plain", None), getattr(data, "image_name", str), pl_module.task
        views = getattr(pl_module, "views", None)
        seen = []
        for place in range(len(batch["image"])):
            one, said = at_truth(batch, output, place, "semantic" if "semantic" in output else task.target)
            height, width = batch["size"][place].tolist()
            image = pixels(batch["image"][place : place + 1, :, :height, :width].float().cpu(), normalize)[0].permute(2, 0, 1)
            truth: Tensor | Segments
            predicted: Tensor | Segments
            if "segments" in said:
                truth, predicted = truth_of(one, 0).cpu(), said["segments"][0].cpu()
            elif "semantic" in said:
                truth, predicted = one["semantic"][0].cpu(), said["semantic"][0].argmax(0).cpu()
            else:
                truth, predicted = one[task.target][0].float().cpu(), said[task.target][0].float().cpu()
            more = [View(v.title, v.values.cpu(), v.frames.cpu()) for v in views(output, batch, place)] if views else []
            seen.append(Seen(name(int(one["image_id"])), image, truth, predicted, score(task, said, one), more))
        return seen

    def draw(self, seen: list[Seen], trainer: pl.Trainer, path: Path) -> None:
        """Write the rows, and below them the legend."""
        categories = getattr(getattr(trainer, "datamodule", None), "categories", ())
        page([row(one, categories) for one in seen], legend(seen, categories), path)


def at_truth(batch: dict[str, Tensor], output: dict[str, Any], place: int, head: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One image of a batch without padding, and the output for it (``head`` and ``segments``), all at the size of its truth."""
    one = {name: values[place : place + 1] for name, values in batch.items()}
    height, width = one["truth_size"][0].tolist()
    said: dict[str, Any] = {head: next(to_truth(output[head][place : place + 1], one))[None]}
    if "segments" in output:
        said["segments"] = output["segments"][place : place + 1]
    for name in {"semantic", "panoptic", "masks", head} & one.keys():
        one[name] = one[name][..., :height, :width]
    one |= {"image": F.interpolate(one["image"], (height, width)), "size": one["truth_size"]}
    return one, said


def score(task: Any, output: dict[str, Any], batch: dict[str, Tensor]) -> str:
    """The metric that the task is monitored by, over these images alone, such as ``PQ 0.712``."""
    name = task.monitor.partition("/")[2]
    metrics = task.metrics().to(batch["image"].device)
    for metric in metrics.values():
        metric.distributed_available_fn = lambda: False  # the other processes are not here
    task.update(metrics, output, batch)
    value = float(metrics.compute()[name])
    spoken = name.upper() if len(name) <= 4 else name.replace("_", " ").replace("iou", "IoU")
    return f"{spoken} {value:.3g}" if np.isfinite(value) else spoken + " –"


def shown_size(height: int, width: int) -> tuple[int, int]:
    """The size at which an image is drawn: a whole multiple for small ones, that their pixels stay square and sharp."""
    factor = SIDE / max(height, width)
    if factor >= 1:
        return height * int(factor), width * int(factor)
    return max(1, round(height * factor)), max(1, round(width * factor))


def resized(values: Tensor, size: tuple[int, int], smooth: bool = False) -> Tensor:
    """Maps [..., H, W] at another size: each pixel is one of the given pixels, or (``smooth``) a mean of those nearby."""
    stack = values.reshape(-1, 1, *values.shape[-2:])
    if smooth:
        stack = F.interpolate(stack, size, mode="bilinear", antialias=True)
    else:
        stack = F.interpolate(stack.double(), size, mode="nearest-exact").to(values.dtype)  # numbers of segments are exact
    return stack.view(*values.shape[:-2], *size)


def row(seen: Seen, categories: Sequence[Category]) -> list[Panel]:
    """The panels of an image."""
    truth, predicted = seen.truth, seen.predicted
    full = (truth.map if isinstance(truth, Segments) else truth).shape[-2:]
    size = shown_size(*full)
    # small images keep their pixels unless the truth is finer than they are
    smooth = any(s % own for s, own in zip(size, seen.image.shape[-2:]))
    image = (resized(seen.image, size, smooth).permute(1, 2, 0).clamp(0, 1).numpy() * 255).round().astype(np.uint8)
    first = Panel(f"image {seen.name}", image)
    if isinstance(truth, Segments) and isinstance(predicted, Segments):
        small, said = (Segments(resized(s.map, size), s.category, s.crowd, s.score) for s in (truth, predicted))
        return [
            first,
            Panel("true segments", draw.panoptic(small, categories)),
            Panel(f"prediction: {seen.score}", draw.panoptic(said, categories)),
            Panel(wrong(predicted.semantic(), truth.semantic()), draw.errors(image, said.semantic(), small.semantic())),
            Panel("prediction over the image", draw.panoptic(said, categories, image)),
            *(viewed(view, image) for view in seen.views),
        ]
    assert isinstance(truth, Tensor) and isinstance(predicted, Tensor)
    if truth.is_floating_point():
        return [first, *measurements(truth, predicted, size, seen.score)]
    little, guess = resized(truth, size), resized(predicted, size)
    return [
        first,
        Panel("truth", draw.paint(little, categories)),
        Panel(f"prediction: {seen.score}", draw.paint(guess, categories)),
        Panel(wrong(predicted, truth), draw.errors(image, guess, little)),
        *(viewed(view, image) for view in seen.views),
    ]


def viewed(view: View, image: Picture) -> Panel:
    """What a method shows, at the size of the image."""
    values = resized(view.values, image.shape[:2])
    if values.is_floating_point():
        top = float(view.values.amax()) if view.values.numel() else 1.0
        return Panel(view.title, draw.framed(draw.heat(values, 0.0, top), view.frames, view.values.shape), ("viridis", 0.0, top))
    return Panel(view.title, draw.framed(draw.regions(values, image), view.frames, view.values.shape))


def measurements(truth: Tensor, predicted: Tensor, size: tuple[int, int], title: str) -> list[Panel]:
    """Truth and prediction [C, H, W] on one scale, the truth's without its outermost hundredths, and the absolute error."""
    error = (predicted - truth).abs().mean(0)
    truth, predicted = truth.mean(0), predicted.mean(0)
    known, most = truth[truth.isfinite()], error[error.isfinite()]
    low, high = np.percentile(known.numpy(), (1, 99)).tolist() if len(known) else (0.0, 1.0)
    worst = float(np.percentile(most.numpy(), 99)) if len(most) else 1.0
    scale, wrongness = ("viridis", low, high), ("magma", 0.0, worst)
    return [
        Panel("truth", draw.heat(resized(truth, size), low, high)),
        Panel(f"prediction: {title}", draw.heat(resized(predicted, size), low, high), scale),
        Panel("absolute error", draw.heat(resized(error, size), 0.0, worst, "magma"), wrongness),
    ]


def wrong(predicted: Tensor, truth: Tensor) -> str:
    """Title of an error panel: the part of the pixels with a class that were given another one."""
    judged = truth != VOID
    part = float((predicted != truth)[judged].float().mean()) if bool(judged.any()) else 0.0
    return f"errors: {100 * part:.3g} % of the pixels"


def legend(seen: list[Seen], categories: Sequence[Category]) -> list[tuple[str, Picture]]:
    """Names and swatches: the classes that occur, by area in truth and prediction, at most ``MOST``; then what else occurs."""
    maps = [part for one in seen for part in (one.truth, one.predicted)]
    if any(isinstance(part, Tensor) and part.is_floating_point() for part in maps):
        unknown = any(not bool(one.truth.isfinite().all()) for one in seen if isinstance(one.truth, Tensor))
        return [("no truth", swatch(draw.GREY))] if unknown else []
    classes = [part.semantic() if isinstance(part, Segments) else part for part in maps]
    areas = sum(torch.bincount(part.flatten(), minlength=VOID + 1) for part in classes)
    assert isinstance(areas, Tensor)
    there = [c for c in areas[:VOID].argsort(descending=True, stable=True).tolist() if areas[c]]
    entries = [(categories[c].name, swatch(categories[c].color)) for c in there[:MOST]]
    if len(there) > MOST:
        entries.append((f"and {len(there) - MOST} more", swatch(draw.LIGHT)))
    if any(isinstance(part, Segments) and bool(part.crowd.any()) for part in maps):
        striped = Segments.of(torch.ones(SWATCH, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), torch.ones(1).bool())
        entries.append(("crowd", draw.panoptic(striped, [Category(0, "", False, draw.GREY)])))
    if areas[VOID]:
        entries.append(("void", swatch(draw.GREY)))
    return [*entries, ("wrong", swatch(draw.RED))]


def swatch(color: tuple[int, int, int]) -> Picture:
    """A field of one colour in a thin frame."""
    picture = np.full((*SWATCH, 3), draw.GREY, np.uint8)
    picture[1:-1, 1:-1] = color
    return picture


def page(rows: Sequence[Sequence[Panel]], entries: Sequence[tuple[str, Picture]], path: Path) -> None:
    """Write panels pixel by pixel (no border is blurred or lost) with titles, colour bars and, below, the legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = [max(p.picture.shape[1] + (BAR if p.bar else 0) for p in panels) for panels in zip(*rows)]
    heights = [max(p.picture.shape[0] for p in panels) for panels in rows]
    # a title may be wider than a narrow picture
    columns = [max(wide, TITLE) for wide in columns]
    width = sum(columns) + GAP * (len(columns) + 1)
    entry = int(SWATCH[1] + 2 * GAP + LETTER * max((min(len(name), LONGEST) for name, _ in entries), default=0))
    across = max(1, (width - GAP) // entry)
    lines = -(-len(entries) // across)
    height = sum(heights) + len(rows) * (LINE + GAP) + GAP + (lines * LINE + GAP if lines else 0)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)

    def text(x: float, y: float, words: str, size: float = 9.0, middle: bool = False) -> None:
        figure.text(x / width, 1 - y / height, words, fontsize=size, color="#1a1a1a", va="center" if middle else "baseline")

    def place(picture: Picture, x: int, y: int) -> None:
        figure.figimage(picture, x, height - y - len(picture))

    y = GAP
    for panels, high in zip(rows, heights):
        x = GAP
        for panel, wide in zip(panels, columns):
            text(x, y + LINE - 6, panel.title)
            place(panel.picture, x, y + LINE)
            if panel.bar:
                colors, low, top = panel.bar
                tall, beside = len(panel.picture), x + panel.picture.shape[1] + 4
                ramp = torch.linspace(top, low, tall, dtype=torch.float64)[:, None].expand(-1, 8)
                place(draw.heat(ramp, low, top, colors), beside, y + LINE)
                for part in (0.0, 0.5, 1.0):
                    # the numbers at the ends stay beside the bar
                    text(beside + 11, y + LINE + 5 + part * (tall - 10), f"{top + part * (low - top):.2g}", 7.0, middle=True)
            x += wide + GAP
        y += LINE + high + GAP
    for number, (name, sample) in enumerate(entries):
        x, down = GAP + number % across * entry, y + number // across * LINE
        place(sample, x, down + 3)
        short = name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
        text(x + SWATCH[1] + 6, down + 3 + SWATCH[0] / 2, short, 8.5, middle=True)
    figure.savefig(path)
