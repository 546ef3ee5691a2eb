"""Two processes that share out the weights equal one process, and their checkpoints are one process's."""

import json
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
from torch import nn

from papermix.errors import UserError
from papermix.run.checkpoint_io import read
from papermix.run.compose import compose, freeze
from papermix.sharding import repeated, units
from tests.machine import Killed, StopBefore, prepare, run, states_equal, weights
from tests.settings import smallest

# no batch statistics and no dropout: these differ between shares by design
PLAIN = ["model.norm=false"]
MLP = [*smallest(model="mlp"), *PLAIN]
BLOCKS = [*smallest(model="transformer_lm"), "model.dropout=0.0", "model.layers=2", "optimizer=adamw"]
STEPS = ["trainer.max_epochs=2", "trainer.limit_train_batches=10"]
CASES: dict[str, list[str]] = {
    "sgd": [*MLP, "trainer.gradient_clip_val=0.05"],
    "adam": [*MLP, "optimizer=adam", "optimizer.weight_decay=0.01"],
    "avagrad": [*MLP, "optimizer=avagrad", "optimizer.groups.decay_norm_and_bias=false", "optimizer.shared_norm=true"],
    "magnitude": [*smallest(sparsity="magnitude", model="mlp"), *PLAIN, "sparsity.scope=global"],
    "continuous": [*smallest(sparsity="continuous", model="mlp"), *PLAIN, "optimizer=adam", "callbacks=[default,ema,gradient_norm]"],
    "blocks": BLOCKS,
}
SLOW: dict[str, list[str]] = {
    "accumulate": [*MLP, "optimizer=adam", "trainer.accumulate_grad_batches=2", "callbacks.checkpoints.every_n_steps=null"],
    "clip_value": [*MLP, "trainer.gradient_clip_val=0.01", "trainer.gradient_clip_algorithm=value"],
    "rmsprop": [*MLP, "optimizer=rmsprop"],
    "bf16": [*MLP, "optimizer=adam", "hardware.precision=bf16-mixed"],
    "stochastic": [*smallest(sparsity="stochastic", model="mlp"), *PLAIN],
    "l0": [*smallest(sparsity="l0", model="mlp"), *PLAIN],
    "iterative_magnitude": [*smallest(sparsity="iterative_magnitude", model="mlp"), *PLAIN],
    "random_mask": [*smallest(sparsity="random_mask", model="mlp"), *PLAIN],
    "multi_exit": [*smallest(method="multi_exit"), *PLAIN],
    "greedy_exits": [*smallest(method="greedy_exits"), *PLAIN],
    "linear_probe": [*smallest(method="linear_probe", model="mlp"), *PLAIN, "method.normalize=false"],
    "finetune": [*smallest(method="finetune", model="mlp"), *PLAIN],
    "center_offset": [*smallest(method="center_offset"), "model.norm=group", "model.levels=2"],
    "pixel_consensus": [*smallest(method="pixel_consensus"), "model.norm=group", "model.levels=2"],
    "lstm_lm": smallest(model="lstm_lm"),
    "samples": [*BLOCKS, "callbacks=[default,sample_text]", "sparsity=continuous"],
    "one_unit": [*BLOCKS, "optimizer=sgd"],
    "unet": [*smallest(model="unet"), "model.norm=group", "model.levels=2"],
}
# stopped in the middle of the first and of the second epoch
RESUMED = [*BLOCKS, "sparsity=continuous", "sparsity.rounds=2", "sparsity.retrain=rewind", "callbacks=[default,ema]", *STEPS]
RESUMED += ["callbacks.checkpoints.every_n_steps=2"]


def overrides(case: str) -> list[str]:
    """Twenty optimizer steps (ten where gradients are summed) of a case on one process."""
    return [*(CASES | SLOW)[case], *STEPS]


def sharded(lines: list[str]) -> list[str]:
    """The same on two processes, with the same global batch."""
    more = ["hardware.blocks=[]"] if lines == overrides("one_unit") else []
    precision = [line for line in lines if line.startswith("hardware.precision")]
    return [line for line in lines if not line.startswith("hardware")] + ["hardware=fsdp_cpu", "hardware.threads=1", *more, *precision]


def in_two(root: Path, plan: list[tuple[str, int | None]]) -> None:
    """One pair of processes (starting them is what costs) runs folders under ``root`` one after the other.

    Each up to a step, whose checkpoints are kept beside it (``cut-at-15``), or to its end (None).
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.test_sharded", str(root), json.dumps(plan)],
            env=os.environ | world | {"RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for r in range(2)
    ]
    try:
        for rank in ranks:
            out, _ = rank.communicate(timeout=600)
            assert rank.returncode == 0, out
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


class Share(pl.Callback):
    """Notes which part of the parameters and of the optimizer's state a process holds."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        held, there = [0, 0], [0, 0]
        for optimizer in trainer.optimizers:
            states = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor) and v.ndim]
            for i, tensors in enumerate((list(pl_module.parameters()), states)):
                held[i] += sum(t.to_local().numel() if hasattr(t, "to_local") else t.numel() for t in tensors)
                there[i] += sum(t.numel() for t in tensors)
        self.place.write_text(json.dumps([held, there]))


def work(place: Path, until: int | None) -> None:
    """What each of the two processes does with a folder."""
    from papermix.run import stage

    original: Any = stage.build_callbacks
    extra = [Share(place / f"share-{os.environ['RANK']}.json")] if until is None else [StopBefore(until)]
    stage.build_callbacks = lambda config: [*original(config), *extra]
    try:
        stage.run_stage(place)
        assert until is None
    except Killed:
        assert until is not None
        if os.environ["RANK"] == "0":
            shutil.copytree(place / "checkpoints", place.with_name(f"{place.name}-at-{until}") / "checkpoints")
    finally:
        stage.build_callbacks = original


def assert_equal(one: Path, both: Path, atol: float = 1e-5) -> None:
    """The checkpoints of two runs hold the same keys and nearly the same numbers, in tensors without a trace of processes."""
    a, b = weights(one), weights(both)
    assert a.keys() == b.keys()
    assert all(type(value) is torch.Tensor for value in b.values())
    for key, value in a.items():
        assert torch.allclose(value.double(), b[key].double(), atol=atol), key
    assert sum(float(value.double().abs().sum()) for value in a.values()) > 0


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All quick cases; a run never stopped and one that was stopped twice; one that one process began."""
    root = tmp_path_factory.mktemp("sharded")
    for case in CASES:
        prepare(sharded(overrides(case)), root / case)
    for name in ("whole", "cut", "begun"):
        prepare(sharded(RESUMED), root / name)
    with pytest.raises(Killed):
        run(RESUMED, root / "alone", StopBefore(9))
    shutil.copytree(root / "alone" / "checkpoints", root / "begun" / "checkpoints")
    in_two(root, [*((case, None) for case in CASES), ("whole", None), ("cut", 3), ("cut", 15), ("cut", None), ("begun", None)])
    return root


@pytest.mark.parametrize("case", list(CASES))
def test_two_equal_one(case: str, two: Path, tmp_path: Path) -> None:
    result = run(overrides(case), tmp_path)
    assert result["steps"] == 20
    assert_equal(tmp_path, two / case)
    stored = json.loads((two / case / "result.json").read_text())
    for key in ("parameters", "trainable_parameters", "flops", "density"):
        assert stored[key] == pytest.approx(result[key]), key
    assert stored["processes"] == 2
    assert stored["metrics"].keys() == result["metrics"].keys()


@pytest.mark.parametrize("case", ["adam", "continuous", "blocks"])
def test_each_process_holds_its_share(case: str, two: Path) -> None:
    for kind in range(2):
        shares = [json.loads((two / case / f"share-{rank}.json").read_text()) for rank in range(2)]
        held, there = [share[0][kind] for share in shares], shares[0][1][kind]
        assert sum(held) == there > 0
        # the first dimension of small tensors is not always even
        assert max(held) < 0.6 * there


def test_resumes_bit_for_bit(two: Path) -> None:
    a, b = read(two / "whole/checkpoints/last.ckpt"), read(two / "cut/checkpoints/last.ckpt")
    before = read(two / "cut-at-15/checkpoints/last.ckpt")
    assert before["global_step"] == 14 and a["global_step"] == b["global_step"] == 20
    assert any(not torch.equal(v, before["state_dict"][k]) for k, v in a["state_dict"].items())
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "rng", "papermix_record", "papermix_latest"):
        assert states_equal(a[part], b[part]), part
    kept = [key for key in a["callbacks"] if key.startswith(("EMA", "SparsityDriver"))]
    assert len(kept) == 2 and all(states_equal(a["callbacks"][key], b["callbacks"][key]) for key in kept)
    assert (two / "whole/metrics.csv").read_text() == (two / "cut/metrics.csv").read_text()


def test_one_process_goes_on_from_a_sharded_checkpoint(two: Path, tmp_path: Path) -> None:
    prepare(RESUMED, tmp_path / "on")
    shutil.copytree(two / "cut-at-15" / "checkpoints", tmp_path / "on" / "checkpoints")
    run(RESUMED, tmp_path / "on")
    assert_equal(tmp_path / "on", two / "whole", atol=1e-4)


def test_two_processes_go_on_from_a_checkpoint_of_one(two: Path) -> None:
    assert_equal(two / "begun", two / "whole", atol=1e-4)


@pytest.fixture(scope="module")
def two_more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slow cases."""
    root = tmp_path_factory.mktemp("sharded_slow")
    for case in SLOW:
        prepare(sharded(overrides(case)), root / case)
    in_two(root, [(case, None) for case in SLOW])
    return root


@pytest.mark.slow
@pytest.mark.parametrize("case", list(SLOW))
def test_two_equal_one_more(case: str, two_more: Path, tmp_path: Path) -> None:
    run(overrides(case), tmp_path)
    # bf16 rounds the halves of a batch apart
    assert_equal(tmp_path, two_more / case, atol=2e-3 if case == "bf16" else 1e-5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["sparsity=structured"], "sparsity=structured does not go with hardware=fsdp_cpu"),
        (["sparsity=growing"], "shapes of weights"),
        (["model=nested_mlp", "method=orthogonalized"], "method=orthogonalized does not go with hardware=fsdp_cpu"),
        (["optimizer=by_name", "optimizer.name=lars"], "whole tensors"),
        (["hardware.compile=true"], "hardware.compile=true does not go with hardware.strategy=fsdp"),
        (["hardware.channels_last=true"], "hardware.channels_last=false"),
        (["hardware.precision=64-true"], "32-true, bf16-mixed, bf16-true"),
        (["hardware.devices=1"], "hardware.devices=2"),
        (["hardware.blocks=stage1"], "a list of patterns"),
    ],
)
def test_what_cannot_be_sharded_says_so(given: list[str], words: str, tmp_path: Path) -> None:
    lines = ["hardware=fsdp_cpu", *given]
    with pytest.raises(UserError) as caught:
        freeze(compose(lines, with_hydra=True), lines, tmp_path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_any_hardware_option_can_shard(tmp_path: Path) -> None:
    lines = ["hardware=ddp_cpu", "hardware.strategy=fsdp", "sparsity=growing"]
    with pytest.raises(UserError, match=r"sparsity=growing does not go with hardware\.strategy=fsdp"):
        freeze(compose(lines, with_hydra=True), lines, tmp_path)
    lines = ["hardware=ddp_cpu", "+hardware.blocks=[a]"]
    with pytest.raises(UserError, match="shards nothing"):
        freeze(compose(lines, with_hydra=True), lines, tmp_path)


def test_units_are_the_repeated_blocks() -> None:
    def block() -> nn.Module:
        return nn.TransformerEncoderLayer(4, 1, 8)

    layers = nn.ModuleList([block(), block()])
    model = nn.ModuleDict({"stem": nn.Linear(4, 4), "layers": layers, "stages": nn.Sequential(nn.Sequential(block(), nn.ReLU(), block()))})
    assert repeated(model) == ["layers.0", "layers.1", "stages.0.0", "stages.0.2"]
    assert units(model, ["stem", "layers.0.linear?", "layers.0"]) == ["layers.0.linear1", "layers.0.linear2", "layers.0", "stem"]
    assert units(model, []) == []
    with pytest.raises(UserError, match=r"'layrs\.0' matches no part"):
        units(model, ["layrs.0"])


def test_a_block_that_shares_a_weight_is_no_unit() -> None:
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    layers[2].weight = layers[0].weight
    assert units(layers) == ["1"]


if __name__ == "__main__":
    from papermix.run.worker import leave

    for name, until in json.loads(sys.argv[2]):
        work(Path(sys.argv[1]) / name, until)
        torch.distributed.barrier()
    leave()
