"""An exported folder computes what the run's network computed, in a process of its own; what cannot be exported is said."""

import contextlib
import copy
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from papermix.errors import UserError
from papermix.models.resnet_cifar import ResNetCifar
from papermix.run import folder
from papermix.run.checkpoint_io import read
from papermix.run.checkpoint_io import write as write_checkpoint
from papermix.surgery.channels import channel_groups
from scripts import export as script
from scripts.exporting import programs, restore
from scripts.exporting.compare import Comparison
from scripts.exporting.plain import outputs
from scripts.exporting.shrinking import shrink
from tests.machine import run

ROOT = Path(__file__).resolve().parents[2]
SHORT = [
    "hardware=cpu",
    "hardware.threads=1",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=4",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "callbacks=[checkpoints,rng]",
]
TEXT = [
    "dataset=pydocs_char",
    "dataset.batch_size=4",
    "dataset.seq_len=12",
    "dataset.limit=1200",
    "model=lstm_lm",
    "model.width=12",
]
SCENES = ["dataset=shapes_semantic", "dataset.batch_size=4", "dataset.limit=24", "dataset.image_size=32", "dataset.workers=0"]
RUNS = {
    "mlp": ["model=mlp", "model.hidden=[16]", "callbacks=[checkpoints,rng,ema]"],
    "small_cnn": ["model=small_cnn", "model.widths=[4,8]", "model.convs=[1,1]", "sparsity=magnitude", "sparsity.density=0.3"],
    "filters": ["model=resnet20", "sparsity=magnitude", "sparsity.pattern=filter", "sparsity.density=0.5", "sparsity.updates=2"],
    # a short training closes nothing that is open, so the seed is what is left
    "structured": ["model=resnet20", "model.width=8", "sparsity=structured", "sparsity.seed_channels=3", "sparsity.seed_blocks=0.5"],
    "grown": ["model=mlp", "model.hidden=[16]", "sparsity=growing", "sparsity.stages=2"],
    "shared": ["model=isotropic_cnn", "model.layers=4", "model.width=8"],
    "unet": [*SCENES, "model=unet", "model.width=4", "model.levels=3"],
    "lstm": [*TEXT, "model.layers=2", "model.weight_drop=0.4", "sparsity=magnitude", "sparsity.density=0.5"],
    "timm": ["model=timm", "model.name=test_resnet"],
}
EXPORTS = {"mlp": ["--format", "pt2"], "filters": ["--shrink"], "structured": ["--shrink"], "unet": ["--format", "onnx"], "lstm": ["--format", "onnx"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name -> the folder of a finished run, trained when first asked for."""
    root = tmp_path_factory.mktemp("runs")

    def made(name: str) -> Path:
        if not (root / name).exists():
            run([*SHORT, *RUNS[name]], root / name)
        return root / name

    return made


@pytest.fixture(scope="module")
def exported(place: Any) -> Any:
    """Name -> (the folder exported from that run, what the script said), made when first asked for."""
    said: dict[str, tuple[Path, str]] = {}

    def made(name: str) -> tuple[Path, str]:
        if name not in said:
            text = io.StringIO()
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                out = script.main([str(place(name)), *EXPORTS.get(name, [])])
            said[name] = out, text.getvalue()
        return said[name]

    return made


def loaded(outs: list[Path], path: str) -> list[float]:
    """The differences that the folders' ``load.py`` report, in a process of their own with this PYTHONPATH."""
    code = "import runpy, sys\nfor file in sys.argv[1:]: runpy.run_path(file, run_name='__main__')"
    files = [str(out / "load.py") for out in outs]
    done = subprocess.run(
        [sys.executable, "-c", code, *files], cwd=outs[0], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [float(number) for number in re.findall(r"recorded outputs: (\S+)", done.stdout)]


def own(out: Path) -> dict[str, Any]:
    """What ``config.json`` says besides timm's part."""
    return json.loads((out / "config.json").read_text())["papermix"]


def test_a_dense_network_with_averaged_weights(place: Any, exported: Any) -> None:
    out, said = exported("mlp")
    assert out == place("mlp") / "export" and "note" not in said
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md", "check.safetensors", "config.json", "load.py", "model.pt2", "model.safetensors",
    ]  # fmt: skip
    for line in ("the network of plain tensors", "what load.py loads", "model.pt2"):
        assert f"{line} equals the trained network" in said
    # validation and test are done with the averages, so they are what is exported
    checkpoint = read(place("mlp") / "checkpoints" / "last.ckpt")
    (average,) = [s["average"] for s in checkpoint["callbacks"].values() if "average" in s]
    weights = load_file(out / "model.safetensors")
    assert torch.equal(weights["head.weight"], average["model.head.weight"])
    assert not torch.equal(weights["head.weight"], checkpoint["state_dict"]["model.head.weight"])
    config = own(out)
    assert config["class_names"] == list("0123456789")
    assert config["input"] == {
        "name": "image", "shape": ["batch", 1, 8, 8], "dtype": "float32", "mean": [0.2875], "std": [0.3541],
    }  # fmt: skip
    assert config["outputs"] == {"output": ["batch", 10]}
    assert all(word in (out / "README.md").read_text() for word in ("0.2875", "0.3541", "batch x 1 x 8 x 8", "classes: 0, 1, 2"))


def test_masks_are_baked_in(place: Any, exported: Any) -> None:
    out, _ = exported("small_cnn")
    weights = load_file(out / "model.safetensors")
    assert not any("parametrizations" in name for name in weights)
    trained = read(place("small_cnn") / "checkpoints" / "last.ckpt")["state_dict"]
    (name,) = [n for n, v in trained.items() if n.endswith("original") and tuple(v.shape) == (8, 4, 3, 3)]
    original, mask = trained[name], trained[name.removesuffix("original") + "0.mask"]
    assert 0 < mask.float().mean() < 0.5 and original[~mask].any()
    plain = name.removeprefix("model.").replace(".parametrizations", "").removesuffix(".original")
    assert torch.equal(weights[plain], original * mask)


def test_whole_filters_are_physically_removed(exported: Any) -> None:
    out, said = exported("filters")
    config = own(out)
    # inside each block half of the filters are gone, but for the one that carries the constants of all
    shapes = {name: tuple(value.shape) for name, value in load_file(out / "model.safetensors").items()}
    assert shapes["stage1.1.conv1.weight"] == (9, 16, 3, 3) and shapes["stage1.1.norm1.running_var"] == (9,)
    assert shapes["stage1.1.conv2.weight"] == (16, 9, 3, 3) and shapes["stage3.2.conv1.weight"][0] == 33
    assert config["parameters"] < 0.55 * config["before"]["parameters"] and config["flops"] < 0.6 * config["before"]["flops"]
    assert config["speedup"] > 0 and "times as fast" in said and "before 269 k" in said
    differences = re.findall(r"the smaller network equals the trained network: (\S+) on random input, (\S+) on a val", said)
    assert max(map(float, differences[0])) <= 1e-5


def test_a_structure_is_taken_out(exported: Any) -> None:
    out, said = exported("structured")
    config = own(out)
    assert "the smaller network equals" in said and "what load.py loads equals" in said
    assert config["parameters"] < 0.7 * config["before"]["parameters"]
    assert not any("structure" in name for name in load_file(out / "model.safetensors"))


def test_a_grown_network_is_plain_and_a_shared_one_stays_shared(exported: Any) -> None:
    for name, kept in (("grown", 0), ("shared", 1)):
        out, said = exported(name)
        assert "what load.py loads equals the trained network" in said
        weights = load_file(out / "model.safetensors")
        assert not any("multiplier" in key or "parametrizations" in key for key in weights)
        assert sum("bank" in key for key in weights) == kept


def test_maps_by_name(exported: Any) -> None:
    out, said = exported("unet")
    assert "model.onnx equals the trained network" in said
    config = own(out)
    assert list(config["outputs"]) == ["semantic"] and config["outputs"]["semantic"][2:] == [32, 32]
    assert config["heads"] == {"semantic": config["outputs"]["semantic"][1]} and len(config["class_names"]) > 1


def test_a_language_model_with_its_state(exported: Any) -> None:
    import onnxruntime

    out, _ = exported("lstm")
    config = own(out)
    assert len(config["symbols"]) == 104 and config["input"]["shape"] == ["batch", "time"]
    assert config["outputs"] == {"output": ["batch", "time", 104], "state0": [2, "batch", 12], "state1": [2, "batch", 12]}
    weights = load_file(out / "model.safetensors")
    assert {"lstm.0.weight_ih_l0", "lstm.0.weight_hh_l1"} <= weights.keys() and not any("parametriz" in n for n in weights)
    # two halves of a text, the state carried over, by the ONNX file: another batch and other lengths than it was made with
    check = load_file(out / "check.safetensors")
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    x, zeros = check["input"][:3].numpy(), torch.zeros(2, 3, 12).numpy()
    _, h, c = session.run(None, {"input": x[:, :3], "state0_before": zeros, "state1_before": zeros})
    second = session.run(["output"], {"input": x[:, 3:], "state0_before": h, "state1_before": c})[0]
    assert torch.allclose(torch.from_numpy(second), check["output"][:3, 3:], atol=1e-5)


def test_a_network_of_timm_needs_timm_alone(exported: Any, tmp_path: Path) -> None:
    import timm

    out, _ = exported("timm")
    (difference,) = loaded([out], str(tmp_path))
    assert difference <= 1e-6
    assert "papermix." not in (out / "load.py").read_text().replace('CONFIG["papermix"]', "")
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    check = load_file(out / "check.safetensors")
    with torch.no_grad():
        assert torch.allclose(model(check["input"]), check["output"], atol=1e-6)
    assert model.pretrained_cfg["mean"] == [0.2875] and model.pretrained_cfg["input_size"] == (1, 8, 8)


def test_load_py_repeats_the_outputs_in_a_process_of_its_own(exported: Any) -> None:
    names = [name for name in RUNS if name != "timm"]
    differences = dict(zip(names, loaded([exported(name)[0] for name in names], str(ROOT)), strict=True))
    assert differences.pop("filters") <= 1e-5
    assert max(differences.values()) <= 1e-6


def test_stages(tmp_path: Path) -> None:
    place = tmp_path / "run"
    for name in ("first", "second"):
        run([*SHORT, *RUNS["mlp"], f"seed={len(name)}"], place / name)
    folder.write_json(place / "origin.json", {"stages": ["first", "second"], "overrides": [], "choices": {}})
    assert restore.find(place) == place / "second"
    out = script.main([str(place), "--stage", "first", "--out", str(tmp_path / "out")])
    assert own(out)["run"]["seed"] == 5
    with pytest.raises(UserError, match=r"no stage 'secnd' \(did you mean 'second'\?\)"):
        restore.find(place, "secnd")


def test_what_cannot_be_exported(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: str) -> str:
        with pytest.raises(UserError) as caught:
            script.main(list(arguments))
        assert str(caught.value).count("\n") == 0
        return str(caught.value)

    good = str(place("mlp"))
    assert "there is no run folder" in refused(str(tmp_path / "nothing"))
    assert "not a run folder" in refused(str(tmp_path))
    assert "did you mean 'onnx'" in refused(good, "--format", "onx")
    assert "has no stages" in refused(good, "--stage", "probe")
    assert "sparsity.pattern=filter" in refused(good, "--shrink")

    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / "config.yaml").write_text((place("mlp") / "config.yaml").read_text())
    assert f"resume={copied}" in refused(str(copied))
    (copied / "result.json").write_text((place("mlp") / "result.json").read_text())
    assert "holds no checkpoint" in refused(str(copied))
    assert "holds no best checkpoint" in refused(str(copied), "--weights", "best")
    # a checkpoint of another network
    (copied / "checkpoints").mkdir()
    broken = read(place("mlp") / "checkpoints" / "last.ckpt")
    broken["state_dict"]["model.head.weight"] = torch.zeros(10, 3)
    write_checkpoint(broken, copied / "checkpoints" / "last.ckpt")
    assert "does not fit the config" in refused(str(copied)) and not (copied / "export").exists()

    monkeypatch.setattr(programs, "_installed", lambda package: package != "onnx")
    assert "papermix[export]" in refused(good, "--format", "onnx")


def test_what_torch_cannot_express_leaves_the_rest(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("outer") from NotImplementedError("no such operator\nwith many lines")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(UserError, match=r"there is no model.onnx: .*NotImplementedError: no such operator\)") as caught:
        script.main([str(place("small_cnn")), "--format", "onnx", "--out", str(tmp_path)])
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md",
        "check.safetensors",
        "config.json",
        "load.py",
        "model.safetensors",
    ]


def test_a_run_without_its_data_is_compared_on_random_data(
    place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from datamodules.images import SmallImages

    def gone(self: Any) -> None:
        raise UserError("the files are not there")

    monkeypatch.setattr(SmallImages, "read_labels", gone)
    out = script.main([str(place("mlp")), "--out", str(tmp_path)])
    assert "the files are not there" in capsys.readouterr().err
    assert own(out)["class_names"] == []


def test_a_difference_is_an_error() -> None:
    model, x = nn.Linear(3, 2).requires_grad_(False), torch.randn(4, 3)
    comparison = Comparison(model, {"random input": x})
    comparison.of("itself", lambda x: outputs(model(x)), 0.0)
    with pytest.raises(UserError, match=r"differs from the trained network by 1\.0e-03"):
        comparison.of("another", lambda x: outputs(model(x) + 1e-3), 1e-6)
    for odd in (lambda x: outputs(model(x) * torch.nan), lambda x: outputs(model(x)[:2])):
        with pytest.raises(UserError, match="differs"):
            comparison.of("another", odd, 1e-6)
    assert comparison.judged(model(x)) == []
    assert len(comparison.judged(model(x) + 1)) == 1
    assert comparison.lines == ["itself equals the trained network: 0.0e+00 on random input"]


def test_names_of_outputs() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    assert list(outputs(a)) == ["output"] and list(outputs({"semantic": a})) == ["semantic"]
    assert list(outputs([a, b])) == ["output0", "output1"]
    assert list(outputs((a, ((a, b), (b, a))))) == ["output", "state0", "state1", "state2", "state3"]


# ---- shrinking --------------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Convolutions with padded borders, norms whose shift survives, a flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.c = nn.Conv2d(8, 6, 3, padding=1), nn.Linear(6 * 9, 5)
        self.d = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(torch.relu(self.norm(self.a(x)))).relu()
        return self.d(self.c(x.flatten(1)).tanh())


def made() -> Net:
    """The network with random norms, and weights that leave channels silent."""
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        for vector in (net.norm.weight, net.norm.bias, net.norm.running_mean):
            vector.uniform_(0.5, 1.0)
        net.a.weight[[1, 2, 5, 6]] = 0
        net.norm.bias[1] = -5.0  # zero behind the ReLU
        net.a.bias[5] = 0.1
        net.b.weight[[0, 3, 4]] = 0
        net.b.bias[[0, 3, 4]] = torch.tensor([1.0, 0.5, -1.0])
    return net


def test_constant_channels_are_joined_exactly() -> None:
    net, x = made(), torch.randn(4, 2, 3, 3)
    wanted = net(x)
    alike = copy.deepcopy(net)
    removed = shrink(net, x)
    # of four silent channels that at zero goes, and all but one of the others; likewise in the flattened layer
    assert removed == {"a": 3, "b": 2}
    assert net.a.weight.shape == (5, 2, 3, 3) and net.norm.num_features == 5 and net.b.weight.shape == (4, 5, 3, 3)
    assert net.c.weight.shape == (5, 4 * 9) and net.c.in_features == 36
    assert torch.allclose(net(x), wanted, atol=1e-5)
    other = torch.randn(2, 2, 3, 3) * 3
    assert torch.allclose(net(other), alike(other), atol=1e-5)


def test_a_channel_that_only_happens_to_be_zero_stays() -> None:
    net, x = made(), torch.randn(4, 2, 3, 3)
    with torch.no_grad():
        net.a.weight[0] = 1e-6
        net.norm.bias[0] = -5.0  # zero on these images, but not on all
    assert shrink(net, x)["a"] == 3
    big = x.abs() * 1e9
    alike = made()
    with torch.no_grad():
        alike.a.weight[0], alike.norm.bias[0] = 1e-6, -5.0
    assert torch.allclose(net(big), alike(big), rtol=1e-4)


def test_a_residual_stream_goes_when_all_that_write_it_have_emptied_it() -> None:
    torch.manual_seed(0)
    net, x = ResNetCifar(depth=8, width=4, num_classes=3, in_chans=1).eval(), torch.randn(4, 1, 8, 8)
    first = next(g for g in channel_groups(net, x[:1]) if "stage1.0.conv2" in {s.module for s in g.producers})
    with torch.no_grad():
        for slot in first.producers[1:]:
            getattr(net.get_submodule(slot.module), slot.attribute)[2] = 0
    with pytest.raises(UserError, match="nothing can be taken out"):
        shrink(net, x)
    with torch.no_grad():
        slot = first.producers[0]
        getattr(net.get_submodule(slot.module), slot.attribute)[2] = 0
    wanted = net(x)
    assert shrink(net, x) == {first.name: 1}
    assert torch.allclose(net(x), wanted, atol=1e-5)


def test_silent_units_of_an_lstm_go() -> None:
    from papermix.models.lstm_lm import LSTMLM

    torch.manual_seed(0)
    net, x = LSTMLM(11, layers=2, width=6).eval(), torch.randint(0, 11, (3, 7))
    with torch.no_grad():
        for value in net.lstm[0].parameters():
            value.view(4, 6, *value.shape[1:])[:, 4] = 0
    wanted = net(x)[0]
    removed = shrink(net, x)
    assert list(removed.values()) == [1] and net.lstm[0].hidden_size == 5 and net.head.in_features == 5
    assert torch.allclose(net(x)[0], wanted, atol=1e-5)
