"""Pictures of what a network with a memory knows of its maps, as it walks through them."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from callbacks.dense_pictures import Panel, page, swatch
from callbacks.picture_base import PictureBase, first, predict
from papermix.errors import UserError
from papermix.segmentation.draw import Picture

# pixels: side of a map, about; colours of cells, of the path and of the agent
SIDE = 216
UNSEEN, FREE, WALL = (214, 214, 214), (255, 255, 255), (66, 66, 66)
SOUGHT, PATH, AGENT = (230, 97, 1), (86, 140, 200), (120, 20, 120)


@dataclass(frozen=True)
class Segment:
    """What is kept of a batch, in main memory: all its steps, and at the last one what was asked and what was said."""

    position: Tensor  # int64 [rows, T, 2]
    walls: Tensor  # bool [rows, T, view, view]
    query: Tensor  # bool [rows, view, view]
    truth: Tensor  # bool [rows, grid, grid]
    predicted: Tensor  # float [rows, grid, grid], probabilities


class MapPictures(PictureBase):
    """Writes ``pictures/step_000120.png`` after every ``every``-th validation and ``pictures/final.png`` at the end of training.

    For each of the first ``count`` walks of the validation set two rows: the true answers, and below them the predicted ones, at
    ``moments`` steps evenly spread over the walk. Both show what was seen of the map so far and the path; in the corner stands what is
    asked for. Loggers that take pictures get them as ``val/predictions``. The first process draws.

    Args:
        count: walks in a picture.
        moments: steps of a walk that are shown (fewer, where a walk has fewer segments: a segment's last step is shown).
        every: validations between two pictures.
    """

    name = "map_pictures"

    def __init__(self, count: int = 2, moments: int = 4, every: int = 1) -> None:
        super().__init__(count, every)
        if moments < 1:
            raise UserError(f"callbacks.map_pictures.moments={moments} must be at least 1.")
        self.moments = moments
        self._ended = False

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the first walks, segment by segment, until the next ones begin."""
        if dataloader_idx or trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        if batch_idx == 0:
            self._seen, self._ended = [], False
        self._ended = self._ended or (batch_idx > 0 and bool(batch["fresh"][: self.count].any()))
        if not self._ended:
            part = first(batch, self.count)
            # a validation step that gives its output saves a second pass
            self._seen += self.look(
                trainer, pl_module, part, predict(trainer, pl_module, part) if outputs is None else outputs[: self.count]
            )

    def look(self, trainer: pl.Trainer, pl_module: Any, batch: dict[str, Tensor], output: Any) -> list[Segment]:
        """One segment."""
        return [
            Segment(
                batch["position"].cpu(),
                batch["frames"][:, :, 1].cpu() > 0.5,
                batch["query"][:, -1, 1].cpu() > 0.5,
                batch["target"][:, -1, 0].cpu() > 0.5,
                output[:, -1, 0].float().sigmoid().cpu(),
            )
        ]

    def draw(self, seen: list[Segment], trainer: pl.Trainer, path: Path) -> None:
        """Write the rows and the legend."""
        chosen = np.unique(
            np.linspace(0, len(seen) - 1, min(self.moments + 1, len(seen)) if len(seen) > 1 else 1).round().astype(int)
        )
        shown = [int(segment) for segment in chosen[-self.moments :]]
        rows = [
            [panel(seen[: last + 1], walk, truth) for last in shown]
            for walk in range(len(seen[0].truth))
            for truth in (True, False)
        ]
        colors = {"seen here": SOUGHT, "free": FREE, "wall": WALL, "not seen": UNSEEN, "path": PATH, "agent": AGENT}
        page(rows, [(name, swatch(color)) for name, color in colors.items()], path)


def panel(seen: list[Segment], walk: int, truth: bool) -> Panel:
    """The map that a walk saw in these segments, with the answer to the last question: the true one, or the predicted one."""
    now = seen[-1]
    position = torch.cat([segment.position[walk] for segment in seen])
    views = torch.cat([segment.walls[walk] for segment in seen])
    answer = now.truth[walk].float() if truth else now.predicted[walk]
    title = (
        f"truth after {len(position)} steps" if truth else f"prediction: F1 {f1(now.predicted[walk] > 0.5, now.truth[walk]):.3g}"
    )
    return Panel(title, picture(position.numpy(), views.numpy(), now.query[walk].numpy(), answer.numpy()))


def f1(predicted: Tensor, truth: Tensor) -> float:
    """F1 of bool maps; 0 where nothing is on."""
    return float(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()).clamp_min(1))


def picture(position: np.ndarray, views: np.ndarray, query: np.ndarray, answer: np.ndarray) -> Picture:
    """Cells as squares: what was seen of the map, the answer over it, the path, the agent, and in the corner the query.

    Args:
        position: int64 [T, 2], row and column of each step.
        views: bool [T, view, view], walls around them.
        query: bool [view, view].
        answer: [grid, grid], 0 to 1.
    """
    grid, reach = len(answer), views.shape[1] // 2
    cells = np.full((grid + 2 * reach, grid + 2 * reach, 3), UNSEEN, np.float64)
    for (row, column), view in zip(position, views):
        cells[row : row + len(view), column : column + len(view)] = np.where(view[..., None], WALL, FREE)
    cells = cells[reach : grid + reach, reach : grid + reach]
    cells += answer[..., None] * (np.array(SOUGHT) - cells)
    each = max(3, SIDE // grid)
    out = cells.round().astype(np.uint8).repeat(each, 0).repeat(each, 1)
    middle = position * each + each // 2
    for here, there in pairwise(middle):
        (top, left), (bottom, right) = np.minimum(here, there), np.maximum(here, there)
        out[top : bottom + 1, left : right + 1] = PATH
    row, column = position[-1] * each
    out[row : row + each, column : column + each] = AGENT
    size = max(2, grid * each // 7 // len(query))
    corner = np.where(query[..., None], WALL, FREE).astype(np.uint8).repeat(size, 0).repeat(size, 1)
    corner = np.pad(corner, ((0, 2), (0, 2), (0, 0)))
    corner[-2:], corner[:, -2:] = SOUGHT, SOUGHT
    out[: len(corner), : len(corner)] = corner
    return out
