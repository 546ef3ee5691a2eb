"""The branch of Label structure in whole runs: it acts, goes on bit for bit, and leaves the network as if it had never been."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from callbacks.label_structure import LabelStructureDriver
from lightning_modules.method import Method
from papermix.errors import UserError
from papermix.run import folder, stage
from papermix.run.check import loads
from papermix.run.checkpoint_io import read
from papermix.run.compose import compose, freeze
from tests.machine import Killed, StopBefore, prepare, run, states_equal, weights
from tests.settings import METHODS, SCENES, TINY

DATA = ["dataset=shapes_semantic", *SCENES]
PLAIN = [*TINY, *DATA, "model=unet", "model.width=4", "model.levels=3", "optimizer=adam"]
LABELS = [*TINY, *DATA, "method=label_autoencoder", "model=label_autoencoder", "model.base=4", "model.code=4", "optimizer=adam"]
BRANCH = "callbacks.label_structure."
WATCH = "callbacks=[checkpoints,rng,nonfinite,{}]"


class Seen(pl.Callback):
    """Keeps the method, and what the branch's loss and the network's gradient were."""

    def __init__(self) -> None:
        self.method: Any = None
        self.driver: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.method = pl_module
        self.driver = next((c for c in trainer.callbacks if isinstance(c, LabelStructureDriver)), None)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of an autoencoder, a few steps long."""
    place = tmp_path_factory.mktemp("label") / "autoencoder"
    run(LABELS, place)
    return place


def with_branch(autoencoder: Path | str, *more: str, plain: list[str] = PLAIN, others: str = "") -> list[str]:
    own = [f"callbacks.label_structure.autoencoder={autoencoder}", "callbacks.label_structure.width=8"]
    return [*plain, WATCH.format(f"label_structure{others}"), "callbacks.checkpoints.every_n_steps=2", *own, *more]


def model_of(place: Path) -> dict[str, torch.Tensor]:
    return {k: v for k, v in weights(place).items() if k.startswith("model.")}


def test_without_weight_the_run_is_the_plain_one_and_with_weight_another(autoencoder: Path, tmp_path: Path) -> None:
    plain = run(PLAIN, tmp_path / "plain")
    none = run(with_branch(autoencoder, "callbacks.label_structure.weight=0"), tmp_path / "none")
    assert states_equal(weights(tmp_path / "plain"), weights(tmp_path / "none"))
    numbers = {k: v for k, v in none["metrics"].items() if "label_structure" not in k}
    assert numbers == plain["metrics"] and "label_structure/autoencoder_iou" in none["metrics"]
    some = run(with_branch(autoencoder), tmp_path / "some")
    assert not states_equal(model_of(tmp_path / "plain"), model_of(tmp_path / "some"))
    # what is kept, counted and paid for is the plain network's
    assert weights(tmp_path / "some").keys() == weights(tmp_path / "plain").keys()
    for name in ("parameters", "trainable_parameters", "flops", "effective_flops"):
        assert some[name] == plain[name], name
    text = (tmp_path / "some/metrics.csv").read_text()
    assert "train/label_structure_loss" in text


def test_outputs_are_the_same_with_and_without_the_branch(autoencoder: Path, tmp_path: Path) -> None:
    seen = Seen()

    class Compare(pl.Callback):
        """While the branch is there."""

        def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            model = pl_module.model.eval()
            self.image = torch.randn(2, 3, 32, 40)
            with torch.no_grad():
                self.output = model(self.image)["semantic"]
            assert any(m._forward_pre_hooks for m in model.modules())
            model.train()

    compare = Compare()
    run(with_branch(autoencoder, "callbacks.label_structure.hypercolumn=true"), tmp_path, seen, compare)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in seen.method.modules()) and seen.method.task.terms == []
    # a network that never had a branch, with the run's weights
    fresh: Method = stage.build_method(prepare(PLAIN, tmp_path / "fresh"))
    fresh.load_state_dict(weights(tmp_path))
    with torch.no_grad():
        assert torch.equal(fresh.eval().model(compare.image)["semantic"], compare.output)


@pytest.mark.parametrize("decoder", ["frozen", "tuned", "joint"])
def test_it_resumes_bit_for_bit(decoder: str, autoencoder: Path, tmp_path: Path) -> None:
    overrides = with_branch(autoencoder, f"callbacks.label_structure.decoder={decoder}", "callbacks.label_structure.warmup=0.5")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    seen = Seen()
    never = run(overrides, whole, seen)
    with pytest.raises(Killed):
        run(overrides, cut, StopBefore(3))  # in the middle of the first epoch
    stopped = run(overrides, cut)
    a, b = read(whole / "checkpoints/last.ckpt"), read(cut / "checkpoints/last.ckpt")
    for part in ("state_dict", "optimizer_states", "rng", "callbacks"):
        if part == "callbacks":
            a[part], b[part] = ({k: v for k, v in c[part].items() if "LabelStructure" in k} for c in (a, b))
            assert len(a[part]) == 1
        assert states_equal(a[part], b[part]), part
    assert never["metrics"] == stopped["metrics"]
    assert (whole / "metrics.csv").read_text() == (cut / "metrics.csv").read_text()
    # the frozen autoencoder is the one of its own run, buffers included
    if decoder == "frozen":
        kept = {k.removeprefix("model."): v for k, v in weights(autoencoder).items() if k.startswith("model.")}
        assert states_equal(kept, dict(seen.driver.structure._frozen[0].state_dict()))


@pytest.mark.parametrize(
    "mix",
    [
        ["model=fpn", "model.backbone=resnet20_cifar", "model.width=8", "model.pyramid_width=8", BRANCH + "hypercolumn=true"],
        ["model=deeplabv3", "model.backbone=test_resnet", "model.width=8", BRANCH + "loss=squared"],
        ["model=unet", "model.width=4", "optimizer=avagrad", "hardware.precision=bf16-mixed", BRANCH + "layer=2"],
        ["model=unet", "model.width=4", "optimizer=sgd", "sparsity=magnitude", "sparsity.updates=2", "sparsity.density=0.5"],
        ["model=unet", "model.width=4", "trainer.accumulate_grad_batches=2", BRANCH + "loss=code", "test=best"],
        ["dataset=shapes_panoptic", "method=center_offset", *METHODS["center_offset"], "model=unet"],
        ["dataset=shapes_instance", "dataset.num_classes=8", "method=center_offset", "model=unet", "model.width=4"],
    ],
    ids=lambda mix: "-".join(mix[:2]).replace("model=", ""),
)
def test_it_mixes(mix: list[str], autoencoder: Path, tmp_path: Path) -> None:
    if "dataset=shapes_instance" in mix:
        # things and one background: other classes than the autoencoder's
        mix = [o for o in mix if "num_classes" not in o]
        with pytest.raises(UserError, match="knows 8 classes, but these data have 5"):
            run(with_branch(autoencoder, *mix, plain=[*TINY, *SCENES]), tmp_path)
        return
    plain = [*TINY, *([] if mix[0].startswith("dataset") else DATA[:1]), *SCENES]
    overrides = with_branch(autoencoder, *mix, plain=plain)
    if "test=best" in mix:
        overrides.append("callbacks.checkpoints.top_k=1")
    result = run(overrides, tmp_path)
    assert result["steps"] in (12, 6) and all(v == v for v in result["metrics"].values())
    kept = read(tmp_path / "checkpoints/last.ckpt")["state_dict"]
    assert not any("label_structure" in k or "branch." in k for k in kept)
    if "sparsity=magnitude" in mix:
        assert result["density"] < 0.7


def test_an_average_of_weights_is_of_the_network_alone(autoencoder: Path, tmp_path: Path) -> None:
    run(with_branch(autoencoder, "test=best", "callbacks.checkpoints.top_k=1", others=",ema"), tmp_path)
    (average,) = [c["average"] for name, c in read(tmp_path / "checkpoints/last.ckpt")["callbacks"].items() if "EMA" in name]
    assert average and all(k.startswith("model.") for k in average)


def test_a_bad_autoencoder_is_refused(autoencoder: Path, tmp_path: Path) -> None:
    real = with_branch(autoencoder, "dataset.fake=false", "dataset.limit=8", "trainer.limit_train_batches=null")
    with pytest.raises(UserError, match=r"mean IoU of 0\.\d+ only"):
        run(real, tmp_path / "low")
    # its controls do not start from it
    run([*real, "callbacks.label_structure.decoder=scratch"], tmp_path / "own")
    with pytest.raises(UserError, match="names no autoencoder"):
        run([*PLAIN, WATCH.format("label_structure")], tmp_path / "none")
    other = tmp_path / "other"
    run(PLAIN, other)
    with pytest.raises(UserError, match="is a UNet: train one with method=label_autoencoder"):
        run(with_branch(other), tmp_path / "unet")


def test_it_goes_on_with_the_same_autoencoder_or_not_at_all(autoencoder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "autoencoder"
    shutil.copytree(autoencoder, mine)
    overrides = with_branch(mine)
    with pytest.raises(Killed):
        run(overrides, tmp_path / "cut", StopBefore(5))
    shutil.rmtree(mine)
    run([*LABELS, "seed=2"], mine)
    with pytest.raises(UserError, match="is not the autoencoder with which this run began"):
        run(overrides, tmp_path / "cut")


def test_what_has_no_classes_or_features_is_refused(autoencoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs data with a class for every pixel"):
        depth = [*TINY, "dataset=shapes_depth", *SCENES, "model=unet", "model.width=4"]
        run(with_branch(autoencoder, plain=depth), tmp_path / "depth")
    cfg = [*with_branch(autoencoder, plain=[*TINY, "dataset=digits", "model=mlp"])]
    with pytest.raises(UserError, match=r"callbacks.label_structure needs 'dense"):
        freeze(compose(cfg), cfg, tmp_path / "digits")
    for options, part in (({"weight": -1.0}, "weight=-1"), ({"warmup": 2.0}, "warmup=2"), ({"least_iou": -1.0}, "least_iou=-1")):
        with pytest.raises(UserError, match=part):
            LabelStructureDriver("x", **options)  # type: ignore[arg-type]


def test_a_method_that_asks_for_no_loss_is_refused(autoencoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_modules.supervised import Supervised

    def step(self: Any, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = self.predict(batch, "train")["semantic"].square().mean()
        self.record(loss=loss)
        return loss

    monkeypatch.setattr(Supervised, "training_step", step)
    with pytest.raises(UserError, match="Supervised does not ask its task for a loss"):
        run(with_branch(autoencoder), tmp_path)


def test_the_weight_rises() -> None:
    driver = LabelStructureDriver("x", weight=2.0, warmup=0.5)
    driver.total_steps = 100
    found = []
    for driver._step in (0, 25, 50, 99):
        found.append(driver.present_weight())
    assert found == [0.0, 1.0, 2.0, 2.0]


def test_a_missing_autoencoder_is_named_before_anything_is_built() -> None:
    node = {"_target_": "y", "_loads_": ["one", "many", "none"], "one": "b", "many": ["c", "d"], "none": None}
    wanted = [("init_from", "a"), ("callbacks.x.one", "b"), ("callbacks.x.many", "c"), ("callbacks.x.many", "d")]
    assert list(loads({"init_from": "a", "callbacks": {"x": node}})) == wanted
    cfg = with_branch("nowhere")
    with pytest.raises(UserError, match=r"callbacks.label_structure.autoencoder=nowhere: there is no such"):
        freeze(compose(cfg), cfg, Path("runs/x"))
    later = [*PLAIN, WATCH.format("label_structure")]
    later.append('stages={second: ["callbacks.label_structure.autoencoder=first"], first: []}')
    with pytest.raises(UserError, match=r"reads stage 'first'.*does not come before"):
        freeze(compose(later), later, Path("runs/x"))


def test_the_recipe_s_stages_and_other_models() -> None:
    chosen = ["experiment=label_structure/shapes_semantic", "model=fpn", "model.backbone=resnet20_cifar", BRANCH + "weight=0.25"]
    stages = freeze(compose(chosen, with_hydra=True), chosen, Path("runs/x"))
    first, second = stages["autoencoder"], stages["segmentation"]
    assert first["model"]["_target_"].endswith("LabelAutoencoder") and "label_structure" not in first["callbacks"]
    assert second["model"]["backbone"] == "resnet20_cifar" and second["callbacks"]["label_structure"]["weight"] == 0.25
    assert second["callbacks"]["label_structure"]["autoencoder"] == "autoencoder"


@pytest.mark.parametrize("decoder", ["frozen", "joint"])
def test_two_processes_equal_one(decoder: str, tmp_path: Path) -> None:
    common = ["model.norm=group", "dataset.batch_size=4", "trainer.limit_train_batches=5"]
    labels = [*LABELS, "model.norm=group"]
    run(labels, tmp_path / "autoencoder")
    more = [*common, f"callbacks.label_structure.decoder={decoder}", "callbacks.label_structure.norm=group"]
    overrides = with_branch(tmp_path / "autoencoder", *more)
    two = tmp_path / "two"
    prepare([*overrides, "hardware=ddp_cpu", "hardware.threads=1"], two)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    code = "import sys; from pathlib import Path; from papermix.run.stage import run_stage; "
    code += "from papermix.run.worker import leave; run_stage(Path(sys.argv[1])); leave()"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, str(two)],
            env=os.environ | base | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        out, _ = rank.communicate(timeout=600)
        assert rank.returncode == 0, out
    run(overrides, tmp_path / "one")
    one, both = read(tmp_path / "one/checkpoints/last.ckpt"), read(two / "checkpoints/last.ckpt")
    for key, value in one["state_dict"].items():
        assert torch.allclose(value.double(), both["state_dict"][key].double(), atol=1e-5), key
    (a,), (b,) = ([c["branch"] for name, c in kept["callbacks"].items() if "LabelStructure" in name] for kept in (one, both))
    assert a.keys() == b.keys() and all(torch.allclose(a[k].double(), b[k].double(), atol=1e-5) for k in a)
    assert folder.read_json(two / "result.json")["processes"] == 2
