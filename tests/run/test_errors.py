"""What goes wrong is told in one sentence with culprit and cure, and costs nothing that was computed before."""

import errno
import gzip
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from papermix.errors import UserError
from papermix.run import folder, job
from papermix.run.checkpoint_io import read
from papermix.run.compose import compose, freeze
from papermix.run.explain import explain, is_expected
from tests.machine import Killed, StopBefore, prepare, run, states_equal
from tests.settings import smallest

ROOT = Path(__file__).resolve().parents[2]
FAKE = smallest(model="mlp")
# the digits themselves instead of random images
REAL = [o for o in FAKE if o not in ("dataset.fake=true", "dataset.limit=160")]


def told(error: BaseException, overrides: list[str]) -> str:
    """The sentence for an error that a user can cause."""
    sentence = explain(error, overrides)
    assert is_expected(error), sentence
    assert "\n" not in sentence and "Traceback" not in sentence
    return sentence


def early(overrides: list[str]) -> str:
    """The sentence with which a command line is refused before torch is needed."""
    try:
        freeze(compose(overrides, with_hydra=True), overrides, Path("runs/x"))
    except Exception as error:
        return told(error, overrides)
    raise AssertionError(f"accepted: {overrides}")


def late(overrides: list[str], place: Path) -> str:
    """The sentence with which a run ends."""
    freeze(compose(overrides, with_hydra=True), overrides, place)
    try:
        run(overrides, place)
    except Exception as error:
        return told(error, overrides)
    raise AssertionError(f"ran: {overrides}")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        # numbers and names out of range
        ("seed=-1", ["seed=-1", "from 0"]),
        ("dataset.batch_size=0", ["dataset.batch_size=0", "at least 1"]),
        ("dataset.limit=-2", ["dataset.limit=-2", "null"]),
        ("optimizer.lr=-1", ["optimizer.lr=-1", "at least 0"]),
        ("optimizer.weight_decay=-1", ["optimizer.weight_decay=-1"]),
        ("trainer.max_epochs=-2", ["trainer.max_epochs=-2", "-1 for no limit"]),
        ("trainer.max_steps=0", ["trainer.max_steps=0"]),
        ("trainer.accumulate_grad_batches=0", ["trainer.accumulate_grad_batches=0", "at least 1"]),
        ("trainer.limit_train_batches=1.5", ["trainer.limit_train_batches=1.5", "fraction"]),
        ("trainer.limit_train_batches=0", ["trainer.limit_train_batches=0"]),
        ("trainer.check_val_every_n_epoch=0", ["trainer.check_val_every_n_epoch=0"]),
        ("trainer.gradient_clip_algorithm=nrom", ["did you mean 'norm'"]),
        ("trainer.profiler=simpel", ["did you mean 'simple'"]),
        ("hardware.precision=bf16-mixd", ["did you mean 'bf16-mixed'", "32-true"]),
        ("hardware.precision=16-mixed", ["needs a GPU", "bf16-mixed"]),
        ("hardware.strategy=dpp", ["did you mean 'ddp'"]),
        ("hardware.accelerator=gppu", ["did you mean 'gpu'"]),
        ("hardware.devices=0", ["hardware.devices=0"]),
        ("hardware.devices=3", ["dataset.batch_size=8", "3 processes", "6 or 9"]),
        ("hardware.threads=-1", ["hardware.threads=-1", "null"]),
        # keys that must agree, or that nothing reads
        ("model.num_classes=7", ["model.num_classes=7", "dataset.num_classes=10", "${dataset.num_classes}"]),
        ("model.in_chans=3", ["model.in_chans=3", "dataset.in_chans=1"]),
        ("+max_epochs=3", ["'max_epochs'", "did you mean 'trainer.max_epochs'"]),
        ("+hardware.precison=32-true", ["hardware.precison", "did you mean 'precision'"]),
        ("+trainer.accelerator=cpu", ["trainer.accelerator", "hardware.accelerator"]),
        ("+trainer.plugins=[]", ["trainer.plugins", "leave it out"]),
        ("++optimizer.lrr=3", ["optimizer.lrr", "did you mean 'lr'"]),
        ("+model=mlp", ["+model=mlp", "drop the '+'"]),
        ("max_epochs=3", ["did you mean 'trainer.max_epochs'"]),
        ("dataset.workers=2", ["dataset.workers", "dataset=imagenet"]),
        ("~seeed", ["seeed", "did you mean 'seed'"]),
        ("~optimizer.groups", ["optimizer.groups is missing"]),
        ("paper=nobody2020", ["paper", "experiment=NAME"]),
        # names of options
        ("callbacks=[default,nonexistent]", ["callbacks has no option 'nonexistent'", "there are"]),
        ("logger=[csv,csvv]", ["'csvv'", "did you mean 'csv'"]),
        ("model=resnet/20", ["'resnet/20'", "did you mean 'resnet20'"]),
        ("sparsity=null", ["sparsity=null", "none"]),
        ("debug=1", ["debug=1", "two_steps"]),
        ("hydra/launcher=jobliib", ["hydra/launcher", "did you mean 'joblib'"]),
        ("hydra.run.dirr=x", ["hydra.run.dirr", "did you mean 'dir'"]),
        # what cannot be read
        ("tags=[a,'b]", ['"tags=[a,\'b]"', "quotes"]),
        ("stages={a: [}", ["stages={a: [}", "brackets"]),
        ("optimizer.lr =0.1", ["optimizer.lr =0.1", "spaces"]),
        ("-seed=3", ["'-seed=3'", "without dashes"]),
        ("seed=1,2", ["seed=1,2 looks like a sweep", "-m"]),
        ("optimizer.lr=${oc.env:NO_SUCH_VARIABLE_X}", ["optimizer.lr", "NO_SUCH_VARIABLE_X"]),
        ("optimizer.lr=${nothing:3}", ["optimizer.lr", "nothing"]),
        ("optimizer.lr=???", ["optimizer.lr has no value"]),
        # where to start, and stages
        ("init_from=/no/such.ckpt", ["init_from=/no/such.ckpt", "no such checkpoint"]),
        ('stages={pre: [], b: ["init_from=pree"]}', ["stage b", "did you mean 'pre'"]),
        ('stages={a: ["init_from=a"]}', ["'a'", "does not come before it"]),
        ('stages={a: ["foo"]}', ["stage a", "'foo' is no override"]),
        ('stages={a: ["stages={b: []}"]}', ["stage a", "sets stages itself"]),
        ("stages=[a]", ["stages must map"]),
        ("stages={a: null}", ["stages.a must be a list"]),
    ],
)
def test_refused_before_torch(override: str, parts: list[str]) -> None:
    sentence = early([*FAKE, override])
    for part in parts:
        assert part in sentence, sentence


def test_settings_that_contradict_each_other() -> None:
    assert "model=NAME; there are branched" in early(["~model"])
    assert "needs a validation split" in early([*FAKE, "test=best", "trainer.limit_val_batches=0"])
    assert "add checkpoints to callbacks" in early(["test=best", "callbacks=[rng]"])
    assert "use test=last with a sparsity" in early(["test=best", "sparsity=magnitude"])
    assert "trainer.val_check_interval" in early(["trainer.check_val_every_n_epoch=null"])


def test_hints_come_from_the_options_chosen() -> None:
    assert "did you mean 'name'" in early(["model=timm", "model.nme=resnet18"])
    assert "did you mean 'workers'" in early(["dataset=imagenet", "dataset.worker=2"])
    assert "belongs to model=mlp" in early(["model=small_cnn", "model.hidden=[3]"])


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["dataset=cifar10", "dataset.download=false", "paths.data=/no/such"],
            ["CIFAR-10 is not in /no/such", "dataset.download=true"],
        ),
        (["dataset=imagenet", "paths.data=/no/such"], ["/no/such/imagenet/train is missing", "dataset.fake=true"]),
        (["hardware.accelerator=mps"], ["no Apple GPU", "hardware=cpu"]),
        (["dataset.limit=100000"], ["dataset.limit=100000", "1222 examples"]),
        (["dataset.batch_size=5000"], ["dataset.batch_size=5000 is larger", "1222 or less"]),
        (["dataset.num_classes=5"], ["has label 5", "dataset.num_classes=5", "at least 10"]),
        (["optimizer=adam", "optimizer.betas=[1.5,0.9]"], ["optimizer Adam", "1.5"]),
        (["optimizer.momentum=0"], ["optimizer SGD", "Nesterov"]),
        (["optimizer=by_name", "optimizer.name=sgdd"], ["'sgdd'", "did you mean 'sgd'"]),
        (["scheduler.warmup=500 epochs"], ["warmup=500 epochs", "make it shorter"]),
        (["trainer.max_epochs=-1"], ["trainer.max_epochs or trainer.max_steps"]),
        (["trainer.val_check_interval=5000"], ["trainer.val_check_interval=5000", "6 training batches"]),
        (["trainer.limit_train_batches=0.0001"], ["trainer.limit_train_batches=0.0001", "less than one batch"]),
        (["callbacks.checkpoints.monitor=val/acuracy"], ["did you mean 'val/accuracy'"]),
        (["callbacks.checkpoints.signals=[SIGKILL]"], ["SIGKILL"]),
        (["callbacks.checkpoints.top_k=-1"], ["callbacks.checkpoints.top_k=-1"]),
        (["sparsity=magnitude", "sparsity.include=[zzz]"], ["'zzz' matches no weight"]),
        (["model.hidden=[1000000000000]"], ["the memory is too small"]),
        (["init_from=/"], ["init_from=/"]),
    ],
)
def test_refused_while_building(overrides: list[str], parts: list[str], tmp_path: Path) -> None:
    sentence = late([*REAL, *overrides], tmp_path / "run")
    for part in parts:
        assert part in sentence, sentence


def test_an_unknown_timm_model(tmp_path: Path) -> None:
    assert "did you mean 'resnet18'" in late([*smallest(model="timm"), "model.name=resnet81"], tmp_path)


def test_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("gpu", "ddp"):
        overrides = ["hardware=" + name if o == "hardware=cpu" else o for o in FAKE]
        with pytest.raises(UserError, match="no CUDA GPU: use hardware=cpu"):
            job.run(compose(overrides, with_hydra=True), tmp_path / name, overrides)


def test_a_damaged_data_file(tmp_path: Path) -> None:
    path = tmp_path / "FashionMNIST"
    path.mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (path / f"{name}-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x04abcd")[:-12])
    sentence = late([*REAL, "dataset=fashion_mnist", "dataset.download=false", f"paths.data={tmp_path}"], tmp_path / "run")
    assert "train-images-idx3-ubyte.gz is damaged" in sentence and "delete it" in sentence


def test_settings_at_the_edge_are_fine(tmp_path: Path) -> None:
    """No training at all, no validation, no callbacks, no logger: unusual, but sound."""
    assert run([*FAKE, "trainer.max_epochs=0"], tmp_path / "a")["steps"] == 0
    assert "test/accuracy" in run([*FAKE, "dataset.val_fraction=0"], tmp_path / "b")["metrics"]
    bare = [o for o in FAKE if not o.startswith("callbacks")]
    assert run([*bare, "callbacks=[]", "logger=[]"], tmp_path / "c")["steps"] == 12


def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    sentence = late([*FAKE, "optimizer.lr=1e30", "callbacks.checkpoints.every_n_steps=1"], tmp_path)
    assert re.search(r"[Ss]tep 1 .*epoch 0", sentence) and "model." in sentence and "last good" in sentence
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert not last.exists() or all(torch.isfinite(v).all() for v in read(last)["state_dict"].values())


# ---- a full disk ---------------------------------------------------------------------------------------------------------------


def whole_and_same(place: Path, reference: Path) -> bool:
    """Whether a run ended as one that was never disturbed."""
    a, b = (read(p / "checkpoints" / "last.ckpt") for p in (place, reference))
    same = all(states_equal(a[part], b[part]) for part in ("state_dict", "optimizer_states", "lr_schedulers", "rng"))
    return same and (place / "metrics.csv").read_text() == (reference / "metrics.csv").read_text()


def start(overrides: list[str], place: Path) -> dict:
    """A run through all that train.py does."""
    return job.run(compose(overrides, with_hydra=True), place, overrides)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has disturbed."""
    place = tmp_path_factory.mktemp("reference") / "run"
    start(FAKE, place)
    return place


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 8, 13, 21])
def test_a_full_disk_costs_nothing(count: int, tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the ``count``-th moment at which something must be on it: config, checkpoint, numbers, result."""
    real, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > count:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", fsync)
        with pytest.raises((UserError, OSError)) as caught:
            start(FAKE, tmp_path)
    sentence = told(caught.value, FAKE)
    assert "full" in sentence and "free some space" in sentence and "same command" in sentence
    assert not (tmp_path / "error.txt").exists()
    assert not [p for p in tmp_path.rglob("*") if p.suffix == ".tmp" or p.name.startswith(".config")], "no half files stay"
    start(FAKE, tmp_path)
    assert whole_and_same(tmp_path, reference)


# ---- damaged files -------------------------------------------------------------------------------------------------------------


class Hostile:
    """Runs code when it is unpickled carelessly."""

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(Path(os.environ["PAPERMIX_OUTPUTS"]).parent / "taken-over"),)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


SPOIL: dict[str, Callable[[Path], object]] = {
    "cut short": lambda p: p.write_bytes(p.read_bytes()[:-700]),
    "one bit": _flip,
    "empty": lambda p: p.write_bytes(b""),
    "hostile": lambda p: p.write_bytes(pickle.dumps({"state_dict": {}, "x": Hostile()})),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed in its second epoch: the checkpoint of step 8, and the best one, of step 6."""
    place = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Killed):
        run(FAKE, place, StopBefore(9))
    return place


@pytest.mark.parametrize("how", SPOIL)
def test_a_spoilt_checkpoint(how: str, stopped: Path, reference: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "run"
    shutil.copytree(stopped, place)
    SPOIL[how](place / "checkpoints" / "last.ckpt")
    run(FAKE, place)
    out, err = capfd.readouterr()
    assert "Skipped last.ckpt" in err and "of step 6" in err and "continuing after step 6" in out
    assert whole_and_same(place, reference)
    for path in (place / "checkpoints").iterdir():
        SPOIL[how](path)
    assert "delete the folder to start afresh" in late(FAKE, place)
    assert not (tmp_path / "taken-over").exists()


def test_a_checkpoint_of_another_network(reference: Path, tmp_path: Path) -> None:
    """Where the code has changed since, and where ``init_from`` names it."""
    other = tmp_path / "other"
    run([o for o in FAKE if not o.startswith("model.hidden")] + ["model.hidden=[5]"], other)
    place = tmp_path / "run"
    shutil.copytree(reference, place)
    shutil.copy(other / "checkpoints" / "last.ckpt", place / "checkpoints" / "last.ckpt")
    assert "the code has changed" in late(FAKE, place)
    sentence = late([*smallest(model="small_cnn"), f"init_from={reference}"], tmp_path / "cnn")
    assert "tensors fit this model" in sentence and "last.ckpt" in sentence
    SPOIL["one bit"](other / "checkpoints" / "last.ckpt")
    assert "damaged" in late([*FAKE, f"init_from={other}/checkpoints/last.ckpt"], tmp_path / "damaged")


def test_a_run_goes_on_although_what_it_started_from_is_gone(reference: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(reference, source)
    overrides = [*FAKE, f"init_from={source}"]
    with pytest.raises(Killed):
        run(overrides, tmp_path / "run", StopBefore(9))
    shutil.rmtree(source)
    assert run(overrides, tmp_path / "run")["steps"] == 12


@pytest.mark.parametrize("text", ["a: [1,", "", "[1]"])
def test_a_broken_config(text: str, stopped: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    shutil.copytree(stopped, place)
    (place / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml (cannot be read|holds no config).*another folder"):
        start([f"resume={place}"], place)


def test_a_folder_with_another_config(stopped: Path) -> None:
    with pytest.raises(UserError, match=r"optimizer\.lr=0\.1 there, 0\.7 here"):
        prepare([*FAKE, "optimizer.lr=0.7"], stopped)


def test_a_finished_run_is_not_run_again(reference: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (reference / "result.json").stat().st_mtime_ns
    result = start([f"resume={reference}"], reference)
    assert "finished already" in capfd.readouterr().out
    assert result == json.loads((reference / "result.json").read_text())
    assert (reference / "result.json").stat().st_mtime_ns == before


# ---- what nobody expected ------------------------------------------------------------------------------------------------------


def test_the_trace_of_an_unexpected_error_is_kept_until_the_run_succeeds(tmp_path: Path) -> None:
    from papermix.run import stage

    with pytest.MonkeyPatch.context() as m:
        m.setattr(stage, "build_method", lambda config: 1 / 0)
        with pytest.raises(ZeroDivisionError) as caught:
            start(FAKE, tmp_path)
    assert not is_expected(caught.value)
    assert "build_method" in (tmp_path / "error.txt").read_text()
    assert caught.value.__notes__ == [f"the stack trace is in {tmp_path / 'error.txt'}"]
    assert explain(caught.value).startswith("ZeroDivisionError at test_errors.py:")
    start(FAKE, tmp_path)
    assert not (tmp_path / "error.txt").exists()


# ---- from the shell ------------------------------------------------------------------------------------------------------------


def shell(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """train.py as a process of its own."""
    return subprocess.run([sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--optimizer.lr=0.1"], "write optimizer.lr=0.1 without dashes"),
        (["optimizer.lr=-1"], "optimizer.lr=-1"),
        (["hydra.run.dir=/proc/none"], "/proc/none"),
        ([*REAL, "dataset.num_classes=5"], "has label 5"),
        (["-m", "seed="], "seed=''"),
    ],
)
def test_one_line_on_stderr(arguments: list[str], part: str) -> None:
    done = shell(*arguments)
    assert done.returncode == 1
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr) and part in done.stderr, done.stderr


def test_a_sound_run_says_nothing_on_stderr_and_a_failing_job_stops_no_other(tmp_path: Path) -> None:
    whole = [o for o in FAKE if not o.startswith("callbacks")]  # all that a run has by default
    done = shell(*whole, f"hydra.run.dir={tmp_path / 'one'}")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    sweep = shell(*FAKE, f"hydra.sweep.dir={tmp_path / 'sweep'}", "-m", "optimizer.lr=1e30,0.1")
    assert sweep.returncode == 1
    lines = sweep.stderr.splitlines()
    assert len(lines) == 2 and "run 1 of 2 failed (optimizer.lr=1e+30)" in lines[0], sweep.stderr
    assert "1 of 2 runs failed" in lines[1] and "same command tries them again" in lines[1]
    table = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [r["status"] for r in table["runs"]] == ["finished", "failed"]


def test_ctrl_c_saves_and_the_folder_is_held_meanwhile(tmp_path: Path) -> None:
    command = [*FAKE, "trainer.max_epochs=5000", f"hydra.run.dir={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "train.py", *command], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    while not (tmp_path / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.02)
    with pytest.raises(UserError, match=r"another run is working in .*hydra\.run\.dir=DIR"), folder.locked(tmp_path):
        raise AssertionError("two runs in one folder")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert re.fullmatch(
        r"stopping after this batch[^\n]*\nerror: SIGINT: saved step \d+ to [^\n]+; the same command continues the run\.\n", err
    ), err
    assert read(tmp_path / "checkpoints" / "last.ckpt")["global_step"] > 0
