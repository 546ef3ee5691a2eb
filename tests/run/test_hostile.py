"""Checkpoints, configs and state files of strangers: refused in one sentence, and nothing in them is run."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from papermix.errors import UserError
from papermix.run import folder, frozen, job, stage
from papermix.run.build import build
from papermix.run.checkpoint_io import write
from papermix.run.compose import compose, freeze
from papermix.run.explain import explain, is_expected
from papermix.run.guard import check_hydra, install
from tests.machine import prepare, run
from tests.settings import smallest

ROOT = Path(__file__).resolve().parents[2]
FAKE = smallest(model="mlp")


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A file that hostile content would make."""
    return tmp_path / "taken-over"


class Hostile:
    """Runs a command when it is unpickled carelessly."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.trap}",)


def sentence(error: BaseException) -> str:
    """What the user reads."""
    said = explain(error)
    assert is_expected(error) and "\n" not in said, said
    return said


def test_the_trap_works(trap: Path) -> None:
    pickle.loads(pickle.dumps(Hostile(trap)))
    assert trap.exists()


# ---- pickles -------------------------------------------------------------------------------------------------------------------


def hostile_checkpoint(path: Path, trap: Path, sealed: bool) -> Path:
    """A checkpoint with a hostile object: with the checksum of a true one, or as torch.save writes it."""
    content = {"global_step": 3, "epoch": 0, "state_dict": {}, "x": Hostile(trap)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write(content, path) if sealed else torch.save(content, path)
    return path


@pytest.mark.parametrize("sealed", [True, False])
def test_a_hostile_checkpoint_to_start_from(sealed: bool, trap: Path, tmp_path: Path) -> None:
    path = hostile_checkpoint(tmp_path / "x.ckpt", trap, sealed)
    with pytest.raises(UserError, match=r"x\.ckpt (holds Python objects|has no checksum)"):
        run([*FAKE, f"init_from={path}"], tmp_path / "run")
    assert not trap.exists()


@pytest.mark.parametrize("sealed", [True, False])
def test_a_hostile_checkpoint_to_continue_from(sealed: bool, trap: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    prepare(FAKE, place)
    hostile_checkpoint(place / "checkpoints" / "last.ckpt", trap, sealed)
    with pytest.raises(UserError, match=r"holds Python objects|can be read"):
        run(FAKE, place)
    assert not trap.exists()


def test_libraries_load_no_objects_either(trap: Path, tmp_path: Path) -> None:
    """timm would load weights of its own choice: a file named among its arguments."""
    torch.save(Hostile(trap), tmp_path / "x.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "x.pth", weights_only=False)
    overrides = [*smallest(model="timm"), f"+model.args={{checkpoint_path: {tmp_path / 'x.pth'}}}"]
    with pytest.raises(UserError, match="cannot be built"):
        run(overrides, tmp_path / "run")
    assert not trap.exists()


def test_a_hostile_frozen_config_of_a_sweep(trap: Path) -> None:
    cfg = compose([*FAKE], with_hydra=True)
    assert frozen.from_bytes(frozen.to_bytes(cfg), "x") == cfg
    evil = [Hostile(trap), {"a": Hostile(trap)}, print, OmegaConf.create({"x": 1}).__class__]
    names = [b"cos\nsystem\n(S'touch " + str(trap).encode() + b"'\ntR.", b"comegaconf._utils\nos.system\n(S'touch x'\ntR."]
    for data in [*map(pickle.dumps, evil), *names, b"", b"rubbish"]:
        with pytest.raises(UserError, match=r"\.frozen/x is no frozen config.*same command again"):
            frozen.from_bytes(data, ".frozen/x")
    assert not trap.exists()


# ---- targets -------------------------------------------------------------------------------------------------------------------

TARGETS = [
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "importlib.import_module",
    "hydra.utils.instantiate",
    "torch.load",
    "torch.hub.load",
    # a way out of an allowed package, through what its modules import
    "torch.nn.parallel.distributed.os.system",
    "papermix.alert.interference.subprocess.Popen",
    "callbacks.checkpoints.os.system",
    # the machinery starts processes and loads files
    "papermix.run.launch.launch",
    "papermix.run.launch.subprocess.Popen",
    "papermix.run.loggers.os.system",
    "papermix.run.sweep.run_jobs",
    "datamodules.readers.pickle.loads",
    "papermix.models.timm_model.__builtins__.eval",
]


def node(target: str, trap: Path) -> dict:
    """A node that would make the trap."""
    return {"_target_": target, "command": f"touch {trap}", "_args_": [f"touch {trap}"]}


def early(overrides: list[str]) -> str:
    """The sentence with which a command line is refused."""
    with pytest.raises(Exception) as caught:
        freeze(compose(overrides, with_hydra=True), overrides, Path("runs/x"))
    return sentence(caught.value)


@pytest.mark.parametrize("target", TARGETS)
def test_a_hostile_target(target: str, trap: Path) -> None:
    said = early([f"model._target_={target}"])
    assert "model._target_" in said and target in said
    with pytest.raises(UserError, match="_target_"):
        build(node(target, trap))
    with pytest.raises(UserError, match="_target_"):
        build({"_target_": "papermix.models.mlp.MLP", "norm": {"a": [node(target, trap)]}})
    assert not trap.exists()


@pytest.mark.parametrize(
    "override",
    [
        "+model.extra={_target_: os.system, command: touch TRAP}",
        "+model.extra=[{_target_: os.system, command: touch TRAP}]",
        "+tags_={_target_: os.system, command: touch TRAP}",
        "model._target_=${oc.env:EVIL}",
        "+model.extra=${oc.create:{_target_: os.system, command: touch TRAP}}",
        "+model.extra=${oc.decode:'{_target_: os.system, command: touch TRAP}'}",
        "callbacks.checkpoints._target_=os.system",
        'stages={a: ["model._target_=os.system"]}',
        'stages={a: [], b: ["+callbacks.x={_target_: os.system, command: touch TRAP}"]}',
    ],
)
def test_hidden_deeper(override: str, trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL", "os.system")
    assert early([override.replace("TRAP", str(trap))])
    assert not trap.exists()


@pytest.mark.parametrize(
    "evil",
    [
        {"_target_": "os.system", "command": "touch TRAP"},
        "${oc.create:{_target_: os.system, command: touch TRAP}}",
        {"_target_": "callbacks.${other}", "command": "touch TRAP"},
        {"_target_": "torch.nn.parallel.distributed.os.system", "command": "touch TRAP"},
        {"_target_": "papermix.run.launch.launch", "run_dir": "x", "processes": 1, "command": ["touch", "TRAP"]},
    ],
)
def test_a_hostile_run_folder(evil: object, trap: Path, tmp_path: Path) -> None:
    """Its config.yaml, continued with ``resume=``, or computed by a rank."""
    place = tmp_path / "run"
    config = prepare(FAKE, place)
    text = yaml.safe_dump({**config, "callbacks": {"x": evil}, "model": {**config["model"], "y": evil}})
    (place / "config.yaml").write_text(text.replace("TRAP", str(trap)))
    with pytest.raises(UserError, match=r"_target_|interpolation"):
        job.run(compose([f"resume={place}"], with_hydra=True), place, [f"resume={place}"])
    with pytest.raises(UserError, match=r"_target_|interpolation"):
        stage.run_stage(place)
    assert not trap.exists()


def test_yaml_tags_are_not_followed(trap: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    prepare(FAKE, place)
    (place / "config.yaml").write_text(f'model: !!python/object/apply:os.system ["touch {trap}"]\n')
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        folder.read_config(place)
    assert not trap.exists()


# ---- Hydra's own node ----------------------------------------------------------------------------------------------------------

HYDRA = {
    "hydra.callbacks": "{callbacks: {x: {_target_: os.system, command: touch TRAP}}}",
    "hydra.launcher": "{launcher: {_target_: os.system}}",
    "hydra.launcher.additional_parameters.x": "{launcher: {additional_parameters: {x: {_target_: os.system, command: touch TRAP}}}}",
    "hydra.sweeper": "{sweeper: {_target_: builtins.eval, params: {a: 1}}}",
    "hydra.sweeper.params.x": "{sweeper: {params: {x: {_target_: os.system, command: touch TRAP}}}}",
    "hydra.sweeper.params.y": '{sweeper: {params: {y: "${oc.create:{_target_: os.system, command: touch TRAP}}"}}}',
    "hydra.job_logging.handlers.h.class": "{job_logging: {handlers: {h: {class: logging.os.system, command: touch TRAP}}, root: {handlers: [h]}}}",
    "hydra.job_logging.formatters.f.()": "{job_logging: {formatters: {f: {(): os.system, command: touch TRAP}}}}",
    "hydra.hydra_logging.handlers.h.class": "{hydra_logging: {version: 1, handlers: {h: {class: subprocess.Popen, args: [touch, TRAP]}}}}",
    "hydra.job_logging.handlers.h.stream": "{job_logging: {handlers: {h: {class: logging.StreamHandler, stream: 'ext://os.environ'}}}}",
    "hydra.job.env_set.PYTHONPATH": "{job: {env_set: {PYTHONPATH: /tmp}}}",
    "hydra.job.env_set.LD_PRELOAD": "{job: {env_set: {LD_PRELOAD: /tmp/x.so}}}",
}


def stranger(tmp_path: Path, trap: Path, text: str) -> Path:
    """A config folder of a stranger with the recipe ``experiment=evil``."""
    path = tmp_path / "theirs" / "experiment" / "evil.yaml"
    path.parent.mkdir(parents=True)
    launcher = "defaults:\n  - override /hydra/launcher: slurm\n" if "additional_parameters" in text else ""
    path.write_text("# @package _global_\n" + launcher + text.replace("TRAP", str(trap)))
    return path.parents[1]


@pytest.mark.parametrize("key", HYDRA)
def test_a_recipe_that_reaches_for_hydra(key: str, trap: Path, tmp_path: Path) -> None:
    place = stranger(tmp_path, trap, f"hydra: {HYDRA[key]}\n")
    install()
    with pytest.raises(UserError) as caught:
        compose(["experiment=evil", f"hydra.searchpath=[file://{place}]"], with_hydra=True)
    assert key.removesuffix(".stream").removesuffix(".x") in str(caught.value)
    assert not trap.exists()


@pytest.mark.parametrize("sweep", [[], ["-m"]])
@pytest.mark.parametrize("key", ["hydra.callbacks", "hydra.sweeper.params.x", "hydra.job_logging.handlers.h.class"])
def test_from_the_shell(key: str, sweep: list[str], trap: Path, tmp_path: Path) -> None:
    place = stranger(tmp_path, trap, f"hydra: {HYDRA[key]}\n")
    command = [sys.executable, "train.py", "--config-dir", str(place), "experiment=evil", *sweep]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: hydra.") and done.stderr.count("\n") == 1, done.stderr
    assert not trap.exists()


def test_a_recipe_with_a_hostile_model(trap: Path, tmp_path: Path) -> None:
    place = stranger(tmp_path, trap, "model:\n  _target_: os.system\n  command: touch TRAP\n")
    command = [sys.executable, "train.py", "--config-dir", str(place), "experiment=evil"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "model._target_=os.system is not allowed" in done.stderr, done.stderr
    assert not trap.exists()


def test_a_usual_hydra_node_is_fine() -> None:
    for overrides in ([], ["hydra/sweeper=optuna"], ["hydra/job_logging=default", "hydra/hydra_logging=default"], ["+hydra.job.env_set.WANDB_MODE=offline"]):
        check_hydra(compose([*FAKE, *overrides], with_hydra=True))
