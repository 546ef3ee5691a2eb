"""Pictures of maps: when they are drawn, and that they show truth, prediction, path and query where these are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from callbacks import map_pictures
from callbacks.map_pictures import AGENT, FREE, PATH, SOUGHT, UNSEEN, WALL, MapPictures, Segment, f1, panel, picture
from papermix.errors import UserError
from tests.machine import run
from tests.settings import TINY


def at(drawn: np.ndarray, row: int, column: int, each: int = map_pictures.SIDE // 9) -> tuple[int, ...]:
    """Colour of a cell a pixel off its corner."""
    return tuple(drawn[row * each + 1, column * each + 1].tolist())


def test_a_picture() -> None:
    position = np.array([[5, 5], [5, 6], [6, 6]])
    views = np.zeros((3, 3, 3), bool)
    views[1, 0, 2] = views[2, :, 0] = True
    answer = np.zeros((9, 9))
    answer[5, 6], answer[8, 8] = 1.0, 0.5
    query = np.eye(3, dtype=bool)
    drawn = picture(position, views, query, answer)
    assert drawn.shape == (216, 216, 3) and drawn.dtype == np.uint8
    assert at(drawn, 5, 6) == SOUGHT and at(drawn, 6, 6) == AGENT and at(drawn, 4, 7) == WALL and at(drawn, 4, 4) == FREE
    # a later view is on top of an earlier one
    assert at(drawn, 5, 5) == WALL and at(drawn, 3, 8) == UNSEEN
    half = (np.array(SOUGHT) + np.array(UNSEEN)) / 2
    assert np.abs(np.array(at(drawn, 8, 8)) - half).max() <= 1
    # the path goes through the middles of the cells
    middle = 216 // 9 // 2
    assert tuple(drawn[5 * 24 + middle, 5 * 24 + middle + 5]) == PATH and tuple(drawn[5 * 24 + middle, 5 * 24 + 1]) == WALL
    size = 216 // 7 // 3
    corner = drawn[: 3 * size : size, : 3 * size : size]
    assert (corner == np.where(query[..., None], WALL, FREE)).all() and tuple(drawn[3 * size, 0]) == SOUGHT


def test_panels_show_the_last_question_of_all_that_was_seen() -> None:
    def segment(step: int) -> Segment:
        truth = torch.zeros(1, 9, 9, dtype=torch.bool)
        truth[0, step, step] = True
        place = torch.tensor([[[step, step]]])
        return Segment(
            place, torch.zeros(1, 1, 3, 3, dtype=torch.bool), torch.zeros(1, 3, 3, dtype=torch.bool), truth, truth.float() * 0.9
        )

    truth, said = (panel([segment(4), segment(5)], 0, kind) for kind in (True, False))
    assert truth.title == "truth after 2 steps" and said.title == "prediction: F1 1"
    assert (
        f1(torch.tensor([True, True]), torch.tensor([True, False])) == pytest.approx(2 / 3)
        and f1(*[torch.zeros(2).bool()] * 2) == 0
    )


def test_files_and_walks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[Segment]] = []
    original = MapPictures.draw
    monkeypatch.setattr(MapPictures, "draw", lambda self, seen, *more: drawn.append(list(seen)) or original(self, seen, *more))
    overrides = [*TINY, "dataset=maze_maps", "dataset.map_size=7", "dataset.grid=9", "dataset.seq_len=10", "dataset.batch_size=4"]
    overrides += [
        "dataset.limit=8",
        "model=lstm_memory",
        "model.width=8",
        "trainer.limit_val_batches=null",
        "trainer.max_epochs=2",
    ]
    plain = run([*overrides, "callbacks=[rng,checkpoints]"], tmp_path / "plain")
    shown = run([*overrides, "callbacks=[rng,checkpoints,map_pictures]", "callbacks.map_pictures.count=3"], tmp_path / "shown")
    assert plain["metrics"] == shown["metrics"]
    pictures = sorted(p.name for p in (tmp_path / "shown/pictures").iterdir())
    assert pictures == ["final.png", "step_000006.png", "step_000012.png"]
    # one walk of 25 steps in three segments, though the split has two
    assert [[s.position.shape[1] for s in seen] for seen in drawn] == [[10, 10, 5]] * 3
    assert all(len(s.truth) == 3 and 0 <= s.predicted.min() and s.predicted.max() <= 1 for seen in drawn for s in seen)


def test_bad_options() -> None:
    with pytest.raises(UserError, match=r"map_pictures\.moments=0"):
        MapPictures(moments=0)
