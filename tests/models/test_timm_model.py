"""Our networks in timm, timm's networks here: registration, features, arguments, bad input; the config's options."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from timm.models import group_parameters, model_entrypoint
from torch import nn

from papermix.errors import UserError
from papermix.models.registry import MODELS
from papermix.models.resnet_cifar import ResNetCifar
from papermix.models.timm_model import timm_model

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_all_names_are_ours_and_clash_with_none_of_timms() -> None:
    for name in MODELS:
        assert model_entrypoint(name).__module__ == "papermix.models.registry"
        assert not hasattr(timm.models, name), name  # timm's own entry points stand there
        assert not timm.models.is_model_pretrained(name)


@pytest.mark.parametrize("name", MODELS)
def test_timm_builds_every_name(name: str) -> None:
    cls, arguments, first = MODELS[name]
    with torch.device("meta"):
        model = timm.create_model(name)
        assert isinstance(model, cls)
        direct = cls(**arguments)
        assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in direct.state_dict().items()}
        assert model.num_classes == 10 and model.in_chans == 3
        stem = model.get_submodule(first)  # what timm's tools take for the first layer
        assert isinstance(stem, nn.Conv2d | nn.Linear) and (stem.weight.shape[1] == 3 or stem.weight.shape[1] == 3 * 32 * 32)
        assert model.get_submodule(model.pretrained_cfg["classifier"]) is model.get_classifier()


@pytest.mark.parametrize(
    "name",
    ["resnet20_cifar", "preact_resnet20_cifar", "wrn16_4_cifar", "vgg11_bn_cifar", "densenet40_12_cifar", "small_cnn_cifar"],
)
@pytest.mark.parametrize("feature_cls", ["list", "getter", "hook"])
def test_features_only(name: str, feature_cls: str) -> None:
    torch.manual_seed(0)
    whole = timm.create_model(name, in_chans=1).eval()
    x = torch.randn(2, 1, 8, 8)
    wanted = whole.forward_intermediates(x, intermediates_only=True)
    features = timm.create_model(name, in_chans=1, features_only=True, feature_cls=feature_cls).eval()
    features.load_state_dict(
        {(f"{prefix}.{k}" if (prefix := {"getter": "model", "hook": "body"}.get(feature_cls)) else k): v
         for k, v in whole.state_dict().items()}, strict=False,
    )  # fmt: skip
    maps = features(x)
    assert len(maps) == len(whole.feature_info)
    for got, expected, chans in zip(maps, wanted, features.feature_info.channels()):
        assert got.shape[1] == chans
        assert torch.allclose(got, expected, atol=1e-5)
    two = timm.create_model(name, features_only=True, out_indices=(0, 1), feature_cls=feature_cls)
    assert [m.shape[1] for m in two(torch.randn(2, 3, 8, 8))] == two.feature_info.channels()


def test_arguments_go_through_timm() -> None:
    with torch.device("meta"):
        model = timm.create_model(
            "resnet20_cifar", num_classes=7, in_chans=1, depth=32, shortcut="B", global_pool="max", drop_rate=0.1
        )
        assert sum(p.numel() for p in model.parameters()) == sum(
            p.numel() for p in ResNetCifar(32, 1, "B", num_classes=7, in_chans=1).parameters()
        )
        assert model.global_pool.pool_type == "max" and model.drop_rate == 0.1
        assert timm.create_model("mlp_256x2_cifar", img_size=28, in_chans=1).stage1[1].in_features == 784


@pytest.mark.parametrize(
    ("name", "layers"),
    [("resnet20_cifar", 11), ("wrn16_4_cifar", 8), ("vgg11_bn_cifar", 9), ("small_cnn_cifar", 6), ("mlp_512x3_cifar", 4)],
)
def test_timm_groups_parameters_by_block(name: str, layers: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    for coarse in (False, True):
        layer = group_parameters(model, model.group_matcher(coarse), reverse=True)
        depths = [layer[k] for k, _ in model.named_parameters()]
        assert depths == sorted(depths)
        assert layer["head.weight"] == layer["head.bias"] == max(depths)
        if not coarse:  # stem, blocks (the last norm with the last of them), head
            assert max(depths) == layers - 1


def test_timms_models_take_our_images() -> None:
    assert timm_model("resnet18", 10, in_chans=1, image_size=28)(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    vit = timm_model("vit_tiny_patch16_224", 5, in_chans=1, image_size=28, drop_path_rate=0.1, args={"patch_size": 7, "depth": 1})
    assert vit.training and vit(torch.randn(2, 1, 28, 28)).shape == (2, 5)
    with torch.device("meta"):
        assert timm_model("mlp_256x2_cifar", 10, in_chans=1, image_size=8).stage1[1].in_features == 64
        assert timm_model("resnet18.a1_in1k", 0, drop_rate=0.2).num_features == 512


def test_trying_a_blank_image_changes_nothing() -> None:
    torch.manual_seed(0)
    tried = timm_model("small_cnn_cifar", 10, image_size=32)
    after = torch.rand(1)
    torch.manual_seed(0)
    fresh = timm.create_model("small_cnn_cifar")
    assert torch.equal(after, torch.rand(1)) and tried.training
    assert all(torch.equal(a, b) for a, b in zip(tried.state_dict().values(), fresh.state_dict().values()))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "resnett18"}, r"no model 'resnett18' \(did you mean 'resnet18'\?\)"),
        ({"name": "resnet20_cifr"}, "did you mean 'resnet20_cifar'"),
        ({"name": "owner/resnet18"}, "no model 'owner/resnet18'"),
        ({"name": "resnet18.a1_in2k"}, "tagged 'a1_in2k'.*did you mean 'resnet18.a1_in1k'"),
        ({"name": "resnet18", "args": {"drop_block": 0.1}}, "does not take 'drop_block'.*did you mean 'drop_block_rate'"),
        ({"name": "wrn16_4_cifar", "drop_path_rate": 0.1}, "does not take 'drop_path_rate'"),
        ({"name": "resnet20_cifar", "pretrained": True}, "no pretrained weights for resnet20_cifar"),
        ({"name": "resnet18", "pretrained": True}, "weights of resnet18 cannot be loaded"),
        ({"name": "local-dir:nowhere"}, "local-dir:nowhere cannot be loaded"),
        ({"name": "resnet20_cifar", "args": {"depth": 21}}, "depth=21"),
        ({"name": "resnet18", "args": {"output_stride": 3}}, "cannot be built with .*output_stride=3"),
        ({"name": "vgg11", "image_size": 8, "args": {"feature_window_size": 1}}, "does not take 'feature_window_size'"),
        ({"name": "regnetx_002", "in_chans": 1, "image_size": 28, "args": {"global_pool": "fish"}}, "global_pool=fish"),
        (
            {"name": "vit_tiny_patch16_224", "image_size": 28, "args": {"depth": 1}},
            "patches of 16 pixels, of which 28 is no multiple.*patch_size=7",
        ),
        ({"name": "densenet121", "image_size": 4, "in_chans": 3}, "densenet121 cannot take images of 3x4x4"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(
    arguments: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UserError, match=sentence) as error:
        timm_model(**{"num_classes": 10, **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "parameters"),
    [
        ("resnet_cifar", 269722), ("resnet20", 269722), ("resnet32", 464154), ("resnet44", 658586), ("resnet56", 853018),
        ("resnet110", 1727962), ("preact_resnet20", 269722), ("preact_resnet110", 1727962), ("wide_resnet", 36479194),
        ("wrn28_10", 36479194), ("wrn16_4", 2748890), ("wrn40_4", 8949210), ("vgg_cifar", 14724042), ("vgg11", 9228362),
        ("vgg13", 9413066), ("vgg16", 14724042), ("vgg19", 20035018), ("densenet_cifar", 769162), ("densenet_bc100", 769162),
        ("densenet40", 1019722), ("mlp", 32 * 32 * 3 * 256 + 256**2 + 1024 + 2570), ("small_cnn", 279466), ("timm", 11181642),
    ],
)  # fmt: skip
def test_config_options_build_the_published_networks(option: str, parameters: int) -> None:
    facts = "+dataset={num_classes: 10, in_chans: 3, image_size: 32}"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose(f"model/{option}", overrides=[facts])
    model_node = OmegaConf.to_container(node, resolve=True)["model"]
    assert model_node.pop("_needs_") == ["image"]
    assert model_node.pop("_gives_") == ["features", "image_model"]
    with torch.device("meta"):
        model = instantiate(model_node)
        assert sum(p.numel() for p in model.parameters()) == parameters
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, 10)
