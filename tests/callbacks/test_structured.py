"""The driver of a structured sparsity in Lightning's trainer."""

from pathlib import Path

import pytest
import torch

from papermix.errors import UserError
from papermix.metrics.count import parameters
from papermix.run.checkpoint_io import read
from papermix.sparsity.compact import shrink
from papermix.sparsity.structured import Structured
from tests.machine import Killed, StopBefore, run, states_equal, weights
from tests.settings import MODELS, TINY

COMMON = [*TINY, "dataset=digits", "dataset.batch_size=8", "dataset.limit=160", "sparsity=structured", "sparsity.seed_channels=2"]
RESNET = [
    *COMMON,
    "model=resnet_cifar",
    *MODELS["resnet_cifar"],
    "sparsity.seed_blocks=0",
    "sparsity.interval=0.5",
    "logger=[csv]",
]


def test_a_run_reports_what_it_cost_and_draws_its_widths(tmp_path: Path) -> None:
    result = run([*RESNET, "sparsity.closed=-0.5"], tmp_path)
    metrics = result["metrics"]
    assert 0 < metrics["sparsity/training_cost"] < 1
    assert metrics["sparsity/final_density"] == pytest.approx(result["density"])
    assert (tmp_path / "widths.png").stat().st_size > 5000
    # the last checkpoint is that before the decision; the network that was tested is what the result counts
    assert result["flops"] > 0 and result["effective_flops"] <= result["flops"]
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert len([line for line in lines if "sparsity/density" in line]) >= 4, "one for each of four intervals"


def test_resumes_in_the_middle_of_an_interval(tmp_path: Path) -> None:
    overrides = [*RESNET, "sparsity.interval=0.8", "callbacks=[checkpoints,rng,nonfinite,ema]"]
    never = run(overrides, tmp_path / "whole")
    with pytest.raises(Killed):
        run(overrides, tmp_path / "cut", StopBefore(3))
    at_two = weights(tmp_path / "cut")
    stopped = run(overrides, tmp_path / "cut")
    a, b = (read(tmp_path / name / "checkpoints/last.ckpt") for name in ("whole", "cut"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks"):
        if part == "callbacks":
            key = next(k for k in a[part] if k.startswith("StructuredDriver"))
            assert states_equal(a[part][key], b[part][key])
        else:
            assert states_equal(a[part], b[part]), part
    assert never["metrics"] == stopped["metrics"]
    key = next(k for k in at_two if k.endswith("logits"))
    assert not torch.equal(at_two[key], a["state_dict"][key])


def test_a_checkpoint_becomes_a_smaller_network(tmp_path: Path) -> None:
    from papermix.run import folder
    from papermix.run.build import build
    from papermix.run.stage import build_method

    run([*RESNET, "sparsity.closed=-0.5"], tmp_path)
    config = folder.read_config(tmp_path)
    method, sparsity = build_method(config), build(config["sparsity"])
    assert isinstance(sparsity, Structured)
    x = torch.randn(2, 1, 8, 8)
    whole = parameters(method.model)["total"]
    sparsity.attach(method.model, x)
    method.load_state_dict(weights(tmp_path), strict=False)
    small = shrink(method.model)
    assert parameters(small)["total"] < whole
    assert torch.isfinite(small.eval()(x)).all()


def test_a_compiled_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="compact=false"):
        run([*COMMON, "model=mlp", "model.hidden=[8]", "hardware.compile=true"], tmp_path)
