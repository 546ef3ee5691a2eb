"""Similarity of shared layers in whole runs: numbers, picture, folded copy, reward for likeness, resume, mixing, bad input."""

from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.layer_similarity import LayerSimilarity, Recurrence, draw
from papermix.errors import UserError
from papermix.models.sharing import similarities
from papermix.models.sharing.networks import IsotropicCNN
from papermix.run.checkpoint_io import read
from papermix.run.compose import compose, freeze
from tests.machine import Killed, StopBefore, run, states_equal
from tests.settings import TINY

SMALL = [*TINY, "dataset.batch_size=8", "dataset.limit=160", "model=isotropic_cnn", "model.layers=4", "model.width=4"]
WATCHED = "callbacks=[checkpoints,rng,nonfinite,layer_similarity]"
REWARDED = "callbacks=[checkpoints,rng,nonfinite,layer_similarity,recurrence]"


def test_one_template_is_alike_and_folds_without_loss(tmp_path: Path) -> None:
    found = run([*SMALL, WATCHED, "model.templates=1", "callbacks.layer_similarity.fold=true"], tmp_path)
    metrics = found["metrics"]
    assert metrics["similarity/alike"] == 1 and metrics["similarity/mean"] == pytest.approx(1)
    assert metrics["folded/accuracy"] == metrics["test/accuracy"] and metrics["folded/loss"] == pytest.approx(
        metrics["test/loss"]
    )
    assert metrics["folded/loops"] == 1 and metrics["folded/parameters"] == found["parameters"]
    assert (tmp_path / "similarity.png").stat().st_size > 5000
    assert "similarity/alike" in (tmp_path / "metrics.csv").read_text()


def test_the_reward_pushes_layers_together_and_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    strong = [*SMALL, REWARDED, "callbacks.recurrence.weight=0.3", "callbacks.checkpoints.every_n_steps=2"]
    whole = run(strong, tmp_path / "whole")
    with pytest.raises(Killed):
        run(strong, tmp_path / "cut", StopBefore(5))
    run(strong, tmp_path / "cut")
    a, b = (read(tmp_path / name / "checkpoints/last.ckpt") for name in ("whole", "cut"))
    for part in ("state_dict", "optimizer_states", "rng"):
        assert states_equal(a[part], b[part]), part
    without = run([*SMALL, WATCHED], tmp_path / "without")
    assert whole["metrics"]["similarity/mean"] > without["metrics"]["similarity/mean"] + 0.05


def test_the_reward_is_the_gradient_of_the_sum_of_similarities() -> None:
    model = IsotropicCNN(4, 4, 2)
    holder = torch.nn.Module()
    holder.model = model
    expected = torch.autograd.grad(
        -0.5 * torch.stack([s.sum() for s in similarities(model).values()]).sum(), model.stage1[0].conv1.coefficients
    )[0]
    reward = Recurrence(0.5)
    with torch.no_grad():
        reward.on_before_optimizer_step(None, holder, torch.optim.SGD([model.head.weight], lr=1.0))
        assert model.stage1[0].conv1.coefficients.grad is None
        reward.on_before_optimizer_step(None, holder, torch.optim.SGD(model.parameters(), lr=1.0))
    assert torch.allclose(model.stage1[0].conv1.coefficients.grad, expected)


def test_sparse_templates_averages_and_another_optimizer_mix_in(tmp_path: Path) -> None:
    overrides = [
        *SMALL, "callbacks=[checkpoints,rng,nonfinite,layer_similarity,ema]", "optimizer=adamw", "sparsity=magnitude",
        "sparsity.types=[other]", "sparsity.density=0.25", "sparsity.updates=2", "sparsity.end=0.5",
        "callbacks.layer_similarity.fold=true",
    ]  # fmt: skip
    found = run(overrides, tmp_path)
    assert found["density"] < 0.6 and "folded/accuracy" in found["metrics"]
    state = read(tmp_path / "checkpoints/last.ckpt")["state_dict"]
    (masked,) = (v for k, v in state.items() if k.endswith("templates.0.mask"))
    assert masked.float().mean() == 0.25


def test_pictures_of_one_and_of_many_banks(tmp_path: Path) -> None:
    for count in (1, 5):
        matrices = {f"layer{i}": torch.rand(30 if i else 3, 30 if i else 3) for i in range(count)}
        draw(matrices, {n: [f"{n}.{j}.conv" for j in range(len(s))] for n, s in matrices.items()}, tmp_path / f"deep/{count}.png")
        assert (tmp_path / f"deep/{count}.png").exists()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LayerSimilarity(1.0), "threshold=1.0"),
        (lambda: Recurrence(-1.0), "weight=-1.0"),
    ],
)
def test_bad_settings(make: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()


def test_the_recipe_of_floods_has_its_three_phases(tmp_path: Path) -> None:
    frozen = freeze(
        compose(["experiment=soft_sharing/flood_fill"], with_hydra=True), ["experiment=soft_sharing/flood_fill"], tmp_path
    )
    assert list(frozen) == ["near", "middle", "far"]
    assert [c["dataset"]["distance"][1] for c in frozen.values()] == [3, 6, 9]
    assert [c["init_from"] for c in frozen.values()] == [None, "near", "middle"]


def test_networks_without_shared_layers_are_refused(tmp_path: Path) -> None:
    for callbacks in (WATCHED, REWARDED):
        with pytest.raises(UserError, match=r"no shared layers; set model.templates"):
            run([*SMALL, callbacks, "model.templates=null"], tmp_path / str(len(callbacks)))
    from papermix.run.check import check

    with pytest.raises(UserError, match=r"needs 'shared_layers'.*model=swrn"):
        check(compose([*TINY, "model=small_cnn", WATCHED], with_hydra=True))
