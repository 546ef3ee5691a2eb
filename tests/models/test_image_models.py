"""The small-image networks: published sizes, shapes, gradients, timm's interface, exact properties of their blocks, bad input."""

import math
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.models.densenet_cifar import DenseLayer, DenseNetCifar
from papermix.models.image_model import ImageModel
from papermix.models.mlp import MLP
from papermix.models.resnet_cifar import BasicBlock, PadShortcut, PreActBlock, ResNetCifar
from papermix.models.small_cnn import SmallCNN
from papermix.models.vgg_cifar import VGGCifar
from papermix.models.wide_resnet import WideResNet

# the smallest of each network; called with num_classes, in_chans, ...
SMALL: dict[str, Callable[..., ImageModel]] = {
    "resnet_v1_a": lambda **k: ResNetCifar(depth=8, width=4, **k),
    "resnet_v1_b": lambda **k: ResNetCifar(depth=8, width=4, shortcut="B", **k),
    "resnet_v2_a": lambda **k: ResNetCifar(depth=8, width=4, version=2, **k),
    "resnet_v2_b": lambda **k: ResNetCifar(depth=8, width=4, version=2, shortcut="B", **k),
    "wide_resnet": lambda **k: WideResNet(depth=10, widen=1, dropout=0.1, **k),
    "vgg": lambda **k: VGGCifar(depth=11, width=4, **k),
    "densenet": lambda **k: DenseNetCifar(depth=10, growth=4, bottleneck=False, compression=1.0, dropout=0.1, **k),
    "densenet_bc": lambda **k: DenseNetCifar(depth=16, growth=4, **k),
    "small_cnn": lambda **k: SmallCNN(widths=(4, 8), convs=(1, 2), **k),
}
ALL = {**SMALL, "mlp": lambda **k: MLP(img_size=28, hidden=(12, 8), **k)}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def image(in_chans: int = 1, size: int = 28, batch: int = 3) -> Tensor:
    return torch.randn(batch, in_chans, size, size, generator=torch.Generator().manual_seed(0))


def resnet_parameters(depth: int, version: int, shortcut: str) -> int:
    n = (depth - 2) // 6
    convs = 3 * 16 * 9 + 9 * (2 * n * 16**2 + 16 * 32 + (2 * n - 1) * 32**2 + 32 * 64 + (2 * n - 1) * 64**2)
    if version == 1:  # a norm behind every convolution
        norms = 2 * 16 + 2 * 2 * n * (16 + 32 + 64)
    else:  # a norm before every convolution but the stem, and one at the end
        norms = 2 * (2 * n * 16 + 16 + (2 * n - 1) * 32 + 32 + (2 * n - 1) * 64 + 64)
    projections = 16 * 32 + 32 * 64 + (2 * (32 + 64) if version == 1 else 0)
    return convs + norms + (projections if shortcut == "B" else 0) + 64 * 10 + 10


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_resnet_has_the_published_number_of_parameters(depth: int, millions: float) -> None:
    for version in (1, 2):
        for shortcut in ("A", "B"):
            with torch.device("meta"):
                count = parameters(ResNetCifar(depth, version, shortcut))
            assert count == resnet_parameters(depth, version, shortcut)
            if shortcut == "A":  # table 6 of He et al. 2015
                digits = 1 if depth == 110 else 2
                assert round(count / 1e6, digits) == pytest.approx(millions, abs=0.011 if digits == 2 else 0)


@pytest.mark.parametrize(("depth", "widen", "millions"), [(16, 4, 2.7), (28, 10, 36.5), (40, 4, 8.9)])
def test_wide_resnet_has_the_published_number_of_parameters(depth: int, widen: int, millions: float) -> None:
    with torch.device("meta"):
        count = parameters(WideResNet(depth, widen))
    expected, chans = 3 * 16 * 9, 16
    for out in (16 * widen, 32 * widen, 64 * widen):
        for _ in range((depth - 4) // 6):
            expected += 2 * chans + 9 * chans * out + 2 * out + 9 * out * out + (chans * out if chans != out else 0)
            chans = out
    assert count == expected + 2 * chans + 10 * chans + 10
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(("depth", "millions"), [(11, 9.2), (13, 9.4), (16, 14.7), (19, 20.0)])
def test_vgg_has_the_published_number_of_parameters(depth: int, millions: float) -> None:
    columns = {
        11: [64, 128, 256, 256, 512, 512, 512, 512],
        13: [64, 64, 128, 128, 256, 256, 512, 512, 512, 512],
        16: [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512],
        19: [64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512],
    }
    with torch.device("meta"):
        count = parameters(VGGCifar(depth))
    chans = [3, *columns[depth]]
    assert count == sum(9 * i * o + 2 * o for i, o in pairwise(chans)) + 512 * 10 + 10
    assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("depth", "growth", "bc", "millions"),
    [(40, 12, False, 1.0), (100, 12, True, 0.8), (250, 24, True, 15.3), (190, 40, True, 25.6)],
)
def test_densenet_has_the_published_number_of_parameters(depth: int, growth: int, bc: bool, millions: float) -> None:
    with torch.device("meta"):
        count = parameters(DenseNetCifar(depth, growth, bottleneck=bc, compression=0.5 if bc else 1.0))
    chans = 2 * growth if bc else 16
    expected = 27 * chans
    for block in range(3):
        for _ in range((depth - 4) // (6 if bc else 3)):
            inner = 4 * growth if bc else chans
            expected += (2 * chans + chans * inner if bc else 0) + 2 * inner + 9 * inner * growth
            chans += growth
        if block < 2:
            out = chans // 2 if bc else chans
            expected += 2 * chans + chans * out
            chans = out
    assert count == expected + 2 * chans + 10 * chans + 10
    assert round(count / 1e6, 1) == millions


def test_small_networks_have_the_numbers_their_formulas_give() -> None:
    assert parameters(MLP(8, hidden=(256, 256), in_chans=1)) == 64 * 256 + 512 + 256**2 + 512 + 2570
    assert parameters(MLP((4, 6), hidden=(5,), norm=False, in_chans=2, num_classes=3)) == 48 * 5 + 5 + 5 * 3 + 3
    chans = [1, 32, 64, 64, 128, 128]
    assert parameters(SmallCNN(in_chans=1)) == sum(9 * i * o + 2 * o for i, o in pairwise(chans)) + 1290


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("in_chans", "size"), [(1, 8), (1, 28), (3, 32), (2, 9)])
def test_every_image_size_works_and_maps_are_as_announced(name: str, in_chans: int, size: int) -> None:
    model = SMALL[name](num_classes=7, in_chans=in_chans).eval()
    x = image(in_chans, size)
    last, maps = model.forward_intermediates(x)
    assert model(x).shape == (3, 7)
    assert len(maps) == len(model.feature_info)
    for got, info in zip(maps, model.feature_info):
        side = math.ceil(size / info["reduction"])
        assert got.shape == (3, info["num_chs"], side, side)
    assert torch.equal(maps[-1], last)
    assert torch.equal(last, model.forward_features(x))
    assert last.shape[1] == model.num_features == model.head_hidden_size


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    torch.manual_seed(0)
    model = ALL[name](num_classes=5, in_chans=1)
    nn.functional.cross_entropy(model(image()), torch.tensor([0, 3, 4])).backward()
    for key, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), key
        assert p.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", ALL)
def test_forward_is_head_of_features_and_classifiers_are_replaced(name: str) -> None:
    model = ALL[name](num_classes=5, in_chans=1).eval()
    x = image()
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert torch.equal(model(x), model.forward_head(features))
    assert pooled.shape == (3, model.num_features)
    assert torch.equal(model.get_classifier()(pooled), model(x))

    model.double().reset_classifier(2)
    assert model.num_classes == 2 and model(x.double()).shape == (3, 2)
    assert not model.get_classifier().bias.any()
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert torch.equal(model(x.double()), model.forward_head(model.forward_features(x.double()), pre_logits=True))


def test_pooling_is_mean_maximum_or_none() -> None:
    model = SmallCNN((4, 6), (1, 1), num_classes=0, in_chans=1).eval()
    features = model.forward_features(image())
    assert torch.allclose(model.forward_head(features), features.flatten(2).mean(2), atol=1e-6)
    model.reset_classifier(0, "max")
    assert torch.equal(model.forward_head(features), features.flatten(2).amax(2))
    model.reset_classifier(0, "")
    assert torch.equal(model.forward_head(features), features)


def test_intermediates_can_be_chosen() -> None:
    model = ResNetCifar(8, width=4, in_chans=1).eval()
    x = image()
    last, maps = model.forward_intermediates(x)
    assert [m.shape[1] for m in model.forward_intermediates(x, 2, intermediates_only=True)] == [8, 16]
    chosen = model.forward_intermediates(x, [1, -1], intermediates_only=True)
    assert torch.equal(chosen[0], maps[1]) and torch.equal(chosen[1], maps[3])
    early, only = model.forward_intermediates(x, [0], stop_early=True)
    assert torch.equal(early, maps[0]) and len(only) == 1
    assert torch.equal(model.forward_intermediates(x, [0])[0], last)
    for wrong in ([4], [-5], 5, [], 0):
        with pytest.raises(UserError, match="has 4 feature maps"):
            model.forward_intermediates(x, wrong)
    with pytest.raises(UserError, match="NCHW"):
        model.forward_intermediates(x, output_fmt="NHWC")


@pytest.mark.parametrize("name", SMALL)
def test_initialisation_is_that_of_the_papers(name: str) -> None:
    torch.manual_seed(0)
    model = SMALL[name](num_classes=10, in_chans=3)
    drawn = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            drawn.append(module.weight.detach().flatten() * math.sqrt(fan_out / 2))
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any()
    unit = torch.cat(drawn)
    assert unit.std().item() == pytest.approx(1, abs=4 / math.sqrt(2 * len(unit)))
    assert unit.mean().item() == pytest.approx(0, abs=4 / math.sqrt(len(unit)))
    assert not model.get_classifier().bias.any()


def test_mlp_hidden_weights_have_variance_two_over_fan_in() -> None:
    torch.manual_seed(0)
    model = MLP(8, hidden=(300, 200), norm=False, in_chans=1)
    for linear, fan_in in ((model.stage1[1], 64), (model.stage2[1], 300)):
        assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.03)
        assert not linear.bias.any()


def test_option_a_subsamples_and_adds_zero_channels() -> None:
    x = torch.arange(2 * 3 * 5 * 5.0).reshape(2, 3, 5, 5)
    y = PadShortcut(3, 6, 2)(x)
    assert y.shape == (2, 6, 3, 3)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2]) and not y[:, 3:].any()


def test_blocks_without_a_residual_branch_are_their_shortcuts() -> None:
    x = image(4, 8)
    post = BasicBlock(4, 8, 2, "A").eval()
    nn.init.zeros_(post.norm2.weight)
    assert torch.equal(post(x), PadShortcut(4, 8, 2)(x).relu())
    activated = nn.functional.relu(x / math.sqrt(1 + 1e-5))  # a fresh norm in eval mode
    for shortcut, stride, out, first, expected in (
        ("A", 1, 4, False, x),
        ("A", 1, 4, True, activated),
        ("A", 2, 8, False, PadShortcut(4, 8, 2)(x)),
        ("B", 2, 8, False, None),
    ):
        pre = PreActBlock(4, out, stride, shortcut, first).eval()
        nn.init.zeros_(pre.conv2.weight)
        wanted = pre.shortcut(activated) if expected is None else expected
        assert torch.allclose(pre(x), wanted, atol=1e-6)


def test_only_the_first_block_of_a_preactivation_resnet_shares_its_activation() -> None:
    blocks = [m.activated_shortcut for m in ResNetCifar(20, 2).modules() if isinstance(m, PreActBlock)]
    assert blocks == [True] + [False] * 8
    blocks = [m.activated_shortcut for m in ResNetCifar(20, 2, "B").modules() if isinstance(m, PreActBlock)]
    assert blocks == [True, False, False] * 3
    with torch.device("meta"):
        wide = WideResNet(16, 2)
    assert [m.activated_shortcut for m in wide.modules() if isinstance(m, PreActBlock)] == [True, False] * 3


def test_dense_layers_keep_their_input_in_front() -> None:
    x = image(6, 4)
    for bottleneck in (False, True):
        y = DenseLayer(6, 5, bottleneck, 0.0)(x)
        assert y.shape == (3, 11, 4, 4) and torch.equal(y[:, :6], x)


@pytest.mark.parametrize(
    "model",
    [
        WideResNet(10, 1, dropout=0.5, in_chans=1),
        DenseNetCifar(10, 4, dropout=0.5, in_chans=1),
        SmallCNN((4,), (1,), in_chans=1, drop_rate=0.5),
        MLP(28, (16, 16), in_chans=1, drop_rate=0.5),
    ],
    ids=lambda m: type(m).__name__,
)
def test_dropout_acts_in_training_alone(model: ImageModel) -> None:
    x = image()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 0.0
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: ResNetCifar(21), r"depth=21 .* 6n\+2, for example 20"),
        (lambda: ResNetCifar(2), r"for example 8"),
        (lambda: ResNetCifar(version=3), "version=3"),
        (lambda: ResNetCifar(shortcut="C"), "shortcut='C'"),
        (lambda: ResNetCifar(width=0), "width=0"),
        (lambda: ResNetCifar(num_classes=-1), "num_classes=-1"),
        (lambda: ResNetCifar(in_chans=0), "in_chans=0"),
        (lambda: ResNetCifar(global_pool="mean"), "global_pool='mean'"),
        (lambda: ResNetCifar(global_pool=""), "num_classes=0"),
        (lambda: ResNetCifar(drop_rate=1.0), "drop_rate=1.0"),
        (lambda: WideResNet(30), r"6n\+4, for example 28"),
        (lambda: WideResNet(widen=0), "widen=0"),
        (lambda: WideResNet(dropout=-0.1), "dropout=-0.1"),
        (lambda: VGGCifar(12), "11, 13, 16, 19"),
        (lambda: DenseNetCifar(41), r"6n\+4, for example 40"),
        (lambda: DenseNetCifar(41, bottleneck=False), r"3n\+4, for example 40"),
        (lambda: DenseNetCifar(compression=0.0), "compression=0.0"),
        (lambda: MLP(hidden=()), "hidden layer"),
        (lambda: MLP(hidden=(8, 0)), r"hidden\[1\]=0"),
        (lambda: MLP().reset_classifier(3, "avg"), "no positions to pool"),
        (lambda: SmallCNN((8, 8), (1,)), "one number for each stage"),
        (lambda: SmallCNN((8, -8), (1, 1)), r"widths\[1\]=-8"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(build: Callable[[], nn.Module], sentence: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=sentence) as error:
        build()
    assert "\n" not in str(error.value)


def test_networks_of_ours_are_built_without_timm() -> None:
    modules = "resnet_cifar, wide_resnet, vgg_cifar, densenet_cifar, mlp, small_cnn, timm_model"
    code = f"import sys; from papermix.models import {modules}; resnet_cifar.ResNetCifar(); sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
