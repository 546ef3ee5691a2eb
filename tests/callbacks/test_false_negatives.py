"""Pictures and curves of found false negatives."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from callbacks.false_negatives import FalseNegatives, draw
from papermix.errors import UserError
from tests.machine import Killed, StopBefore, run, states_equal, weights
from tests.settings import TINY

RUN = [
    *TINY, "dataset=digits", "dataset.batch_size=8", "dataset.limit=160", "dataset.augment.crop=0", "model=mlp", "model.hidden=[16]",
    "method=simclr", "method.cancel=attract", "method.threshold=0.1", "method.topk=4", "method.projector.dim=6",
]  # fmt: skip
PICTURED = [*RUN, "callbacks=[checkpoints,rng,nonfinite,false_negatives]", "callbacks.false_negatives.sample=40"]


class Look(pl.Callback):
    """What the picture shows at the end of the first epoch, and the network then."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not self.seen:
            callback = FalseNegatives(count=5, shown=3, sample=40)
            state, training = torch.get_rng_state(), pl_module.training
            self.seen = callback.look(trainer, pl_module)
            assert torch.equal(torch.get_rng_state(), state) and pl_module.training is training


def test_writes_pictures_and_leaves_training_as_it_is(tmp_path: Path) -> None:
    run([*RUN, "callbacks.checkpoints.every_n_steps=2"], tmp_path / "plain")
    run(PICTURED, tmp_path / "pictured")
    names = sorted(p.name for p in (tmp_path / "pictured" / "false_negatives").iterdir())
    assert names == ["final.png", "step_000006.png", "step_000012.png"]
    assert states_equal(weights(tmp_path / "plain"), weights(tmp_path / "pictured"))


def test_the_curves_go_on_in_a_continued_run(tmp_path: Path) -> None:
    from papermix.run.checkpoint_io import read

    with pytest.raises(Killed):
        run(PICTURED, tmp_path, StopBefore(9))
    run(PICTURED, tmp_path)
    states = read(tmp_path / "checkpoints/last.ckpt")["callbacks"]
    (state,) = [v for k, v in states.items() if k.startswith("FalseNegatives")]
    assert state["validations"] == 2 and [step for step, _ in state["history"]["fn_precision"]] == [6, 12]


def test_shows_the_best_first_and_never_the_image_itself(tmp_path: Path) -> None:
    look = Look()
    run(RUN, tmp_path, look)
    seen = look.seen
    assert seen["image"].shape == (40, 1, 8, 8) and seen["best"].shape == (5, 3)
    assert (seen["best"] >= 0).any()
    for row, best in enumerate(seen["best"].tolist()):
        assert row not in best and -1 not in best[: len([b for b in best if b >= 0])]
    assert 0 <= seen["true"] <= seen["found"] <= 4


def test_draws_without_names_curves_or_finds(tmp_path: Path) -> None:
    nothing = {
        "label": torch.zeros(4).long(),
        "best": torch.full((2, 3), -1),
        **{k: torch.tensor(0.0) for k in ("found", "true", "all", "candidates")},
    }
    draw(nothing, {"fn_precision": [], "fn_recall": [], "fn_base_rate": []}, torch.rand(4, 5, 5, 3), None, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="count=0"):
        FalseNegatives(count=0)
    with pytest.raises(UserError, match="sample=3"):
        FalseNegatives(sample=3)
    with pytest.raises(UserError, match="searches"):
        run(
            [*TINY, "dataset=digits", "dataset.batch_size=8", "dataset.limit=160", "model=mlp", "model.hidden=[16]"],
            tmp_path,
            FalseNegatives(),
        )
