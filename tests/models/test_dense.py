"""Dense networks: sizes, heads, backbones, the equations of their decoders, gradients, precision, cost, bad input."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.metrics.count import flops
from papermix.models.dense.backbone import Backbone, choose
from papermix.models.dense.deeplabv3 import ASPP, DeepLabV3, ImageNorm
from papermix.models.dense.dense import DenseModel, conv_block, norm_layer
from papermix.models.dense.fpn import FPN, TopDown, Upsampling
from papermix.models.dense.unet import Encoder, UNet, strides_to_one

CONF = Path(__file__).parents[2] / "conf"
HEADS = {"semantic": 5, "center": 1, "offset": 2}
# arguments that make ours small
RESNET = {"depth": 8, "width": 4}
CNN = {"widths": (4, 8), "convs": (1, 1)}

# the smallest of each network and kind of backbone; called with in_chans
SMALL: dict[str, Callable[..., DenseModel]] = {
    "fpn_resnet": lambda **k: FPN("test_resnet", pyramid_width=8, width=12, **k),
    "fpn_convnext": lambda **k: FPN("test_convnext", pyramid_width=8, width=8, norm="none", head_convs=0, **k),
    "fpn_vit": lambda **k: FPN("test_vit", pyramid_width=8, width=8, levels=2, norm="batch", **k),
    "fpn_channels_behind": lambda **k: FPN("test_mambaout", pyramid_width=8, width=8, **k),
    "fpn_ours": lambda **k: FPN("resnet20_cifar", pyramid_width=8, width=8, args=RESNET, **k),
    "fpn_small_cnn": lambda **k: FPN("small_cnn_cifar", pyramid_width=8, width=8, args=CNN, **k),
    "unet": lambda **k: UNet(width=4, levels=4, **k),
    "unet_group": lambda **k: UNet(width=4, levels=3, norm="group", head_convs=2, head_width=6, **k),
    "unet_resnet": lambda **k: UNet("test_resnet", width=4, norm="none", **k),
    "unet_vit": lambda **k: UNet("test_vit", width=2, **k),
    "unet_ours": lambda **k: UNet("resnet20_cifar", width=4, args=RESNET, **k),
    "deeplab": lambda **k: DeepLabV3("test_resnet", width=8, **k),
    "deeplab_8_plus": lambda **k: DeepLabV3("test_convnext", width=8, output_stride=8, plus=True, low_width=4, norm="group", **k),
    "deeplab_vit": lambda **k: DeepLabV3("test_vit", width=8, norm="none", **k),
    "deeplab_ours_plus": lambda **k: DeepLabV3("resnet20_cifar", width=8, plus=True, args=RESNET, **k),
}
STRIDES = {
    "fpn_resnet": 4, "fpn_convnext": 4, "fpn_vit": 16, "fpn_channels_behind": 4, "fpn_ours": 1, "fpn_small_cnn": 1,
    "unet": 1, "unet_group": 1, "unet_resnet": 1, "unet_vit": 1, "unet_ours": 1,
    "deeplab": 16, "deeplab_8_plus": 4, "deeplab_vit": 16, "deeplab_ours_plus": 2,
}  # fmt: skip


def image(in_chans: int = 3, height: int = 40, width: int = 56, batch: int = 2) -> Tensor:
    return torch.randn(batch, in_chans, height, width, generator=torch.Generator().manual_seed(0))


def build(name: str, **kwargs: Any) -> DenseModel:
    torch.manual_seed(0)
    model = SMALL[name](**kwargs)
    model.reset_heads(HEADS)
    return model


@pytest.mark.parametrize("name", SMALL)
def test_any_size_gives_maps_of_the_announced_stride_for_every_head(name: str) -> None:
    model = build(name, in_chans=2).eval()
    assert model.stride == STRIDES[name] and model.heads == HEADS
    for height, width in ((33, 47), (32, 64), (7, 70), (1, 1)):
        size = (math.ceil(height / model.stride), math.ceil(width / model.stride))
        x = image(2, height, width)
        assert model.forward_features(x).shape == (2, model.num_features, *size)
        assert {k: v.shape for k, v in model(x).items()} == {k: (2, c, *size) for k, c in HEADS.items()}


@pytest.mark.parametrize("name", SMALL)
def test_an_image_is_filled_up_with_zeros_and_the_maps_are_cut(name: str) -> None:
    model = build(name).eval()
    x = image(height=35, width=50)
    filled = F.pad(x, (0, -50 % model.divisor, 0, -35 % model.divisor))
    full = model.features(filled)
    assert full.shape[2:] == (filled.shape[2] // model.stride, filled.shape[3] // model.stride)
    h, w = math.ceil(35 / model.stride), math.ceil(50 / model.stride)
    assert torch.equal(model.forward_features(x), full[..., :h, :w])


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    model = build(name).train()
    for key, p in model.named_parameters():  # residual branches that start at zero would hide what lies before them
        if p.ndim == 1 and key.endswith(("weight", "gamma")):
            nn.init.ones_(p)
    # random, since a sum has no gradient behind a batch norm
    output = model(image())
    sum((v * torch.randn_like(v)).sum() for v in output.values()).backward()
    for key, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), key
        assert p.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_and_half_precision_give_the_same(name: str) -> None:
    model = build(name).eval()
    x = image(height=33, width=48)
    wanted = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
        sum(v.float().sum() for v in half.values()).backward()
    turned = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    for head, expected in wanted.items():
        assert torch.allclose(turned[head], expected, atol=1e-4, rtol=1e-3)
        assert half[head].dtype == torch.bfloat16
        assert (half[head].float() - expected).norm() < 0.1 * expected.norm()


def test_heads_are_renewed_and_dropped_on_the_device_and_in_the_type_of_the_network() -> None:
    model = SMALL["unet"]()
    assert model.heads == {}
    with pytest.raises(UserError, match="no heads yet"):
        model(image())
    model.double().eval()
    model.reset_heads({"semantic": 3, "depth": 1})
    first = model.head["semantic"][-1].weight
    assert first.dtype == torch.float64 and not model.head.training
    assert set(model(image().double())) == {"semantic", "depth"}
    model.train().reset_heads({"semantic": 4})
    assert model.heads == {"semantic": 4} and model.head.training
    assert not any("depth" in key for key in model.state_dict())
    model.reset_heads({"semantic": 3})
    assert not torch.equal(model.head["semantic"][-1].weight, first)
    with torch.device("meta"):
        model = SMALL["unet"]()
    model.reset_heads({"semantic": 3})
    assert all(p.is_meta for p in model.parameters())


def test_heads_have_the_layers_asked_for_and_start_small() -> None:
    torch.manual_seed(0)
    for convs, width in ((0, None), (1, None), (2, 6)):
        model = UNet(width=8, levels=2, head_convs=convs, head_width=width, norm="group", dropout=0.5)
        model.reset_heads({"a": 300})
        found = [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in model.head.modules() if isinstance(m, nn.Conv2d)]
        inner = width or 8
        assert found == [(8 if i == 0 else inner, inner, 3) for i in range(convs)] + [(inner if convs else 8, 300, 1)]
        last = model.head["a"][-1]
        assert last.weight.std().item() == pytest.approx(0.01, rel=0.1) and not last.bias.any()
        assert not torch.equal(model(image())["a"], model(image())["a"])  # dropout
        model.eval()
        assert torch.equal(model(image())["a"], model(image())["a"])


@pytest.mark.parametrize(
    ("heads", "sentence"),
    [
        ({}, "at least one head"),
        ({"se.mantic": 2}, "called 'se.mantic'"),
        ({"pop": 2}, "called 'pop'"),
        ({3: 2}, "called 3"),
        ({"semantic": 0}, r"heads\['semantic'\]=0"),
    ],
)
def test_bad_heads_are_refused_and_leave_the_old_ones(heads: dict[Any, int], sentence: str) -> None:
    model = build("unet")
    with pytest.raises(UserError, match=sentence):
        model.reset_heads(heads)
    assert model.heads == HEADS


def test_norms() -> None:
    for channels, groups in ((256, 32), (128, 32), (64, 16), (48, 12), (12, 3), (6, 1), (3, 1)):
        norm = norm_layer("group", channels)
        assert isinstance(norm, nn.GroupNorm) and norm.num_groups == groups
    assert isinstance(norm_layer("batch", 4), nn.BatchNorm2d) and isinstance(norm_layer("none", 4), nn.Identity)
    assert conv_block(2, 4, "none")[0].bias is not None and conv_block(2, 4, "group")[0].bias is None


def test_without_batch_norm_an_image_does_not_depend_on_the_others() -> None:
    for name in ("fpn_convnext", "unet_group", "deeplab_vit", "deeplab_8_plus"):
        model = build(name).train()
        assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()), name
        x = image()
        assert torch.allclose(model(x)["semantic"][:1], model(x[:1])["semantic"], atol=1e-5)


def test_top_down_adds_every_coarser_map() -> None:
    top_down = TopDown([1, 1, 1], 1)
    for lateral, smooth, factor in zip(top_down.lateral, top_down.smooth, (1.0, 10.0, 100.0)):
        nn.init.constant_(lateral.weight, factor)
        nn.init.zeros_(lateral.bias)
        nn.init.dirac_(smooth.weight)
        nn.init.zeros_(smooth.bias)
    coarse = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    maps = top_down([torch.ones(1, 1, 8, 8), torch.ones(1, 1, 4, 4), coarse[None, None]])
    assert torch.equal(maps[2][0, 0], 100 * coarse)
    assert torch.equal(maps[1][0, 0], 10 + 100 * coarse.repeat_interleave(2, 0).repeat_interleave(2, 1))  # nearest neighbour
    assert torch.equal(maps[0][0, 0], 11 + 100 * coarse.repeat_interleave(4, 0).repeat_interleave(4, 1))
    alike = top_down([torch.ones(1, 1, 2, 2)] * 3)  # a ViT's maps
    assert [m.unique().tolist() for m in alike] == [[111.0], [110.0], [100.0]]
    smooth = top_down.smooth[2]
    nn.init.ones_(smooth.weight)
    assert top_down([torch.ones(1, 1, 2, 2)] * 3)[2].unique().tolist() == [400.0]  # four of nine pixels lie inside


def test_upsampling_has_a_block_for_each_doubling() -> None:
    for doublings, blocks in ((0, 1), (1, 1), (3, 3)):
        branch = Upsampling(3, 4, doublings, "none")
        assert len(branch.blocks) == blocks
        for conv in (block[0] for block in branch.blocks):
            nn.init.dirac_(conv.weight)
            nn.init.zeros_(conv.bias)
        x = torch.rand(1, 3, 2, 3)
        expected = x
        for _ in range(doublings):
            expected = F.interpolate(expected, scale_factor=2, mode="bilinear")
        got = branch(x, torch.empty(1, 1, 2 * 2**doublings, 3 * 2**doublings))
        assert torch.allclose(got[:, :3], expected) and not got[:, 3:].any()


def test_fpn_is_the_sum_of_its_branches_at_the_finest_size() -> None:
    model = build("fpn_resnet").eval()
    assert [len(branch.blocks) for branch in model.branches] == [1, 1, 2, 3]  # Kirillov et al. 2019, fig. 3
    x = image(height=64, width=32)
    pyramid = model.top_down(model.backbone(x))
    assert [tuple(p.shape[1:]) for p in pyramid] == [(8, 16, 8), (8, 8, 4), (8, 4, 2), (8, 2, 1)]
    summed = sum(branch(level, pyramid[0]) for branch, level in zip(model.branches, pyramid))
    assert torch.allclose(model.forward_features(x), summed, atol=1e-5)


def unet_parameters(in_chans: int, width: int, each: int, classes: int) -> int:
    """Of five resolutions; ``each``: parameters for each channel of a 3x3 convolution beside its kernel (bias, or norm)."""
    chans = [in_chans, *(width * 2**i for i in range(5))]
    encoder = sum(9 * i * o + 9 * o * o + 2 * each * o for i, o in pairwise(chans))
    decoder = sum(4 * 2 * c * c + c + 9 * 2 * c * c + 9 * c * c + 2 * each * c for c in chans[1:-1])
    return encoder + decoder + (width + 1) * classes


def test_unet_has_the_papers_layers() -> None:
    with torch.device("meta"):
        model = UNet(in_chans=1, width=64, norm="none")
        model.reset_heads({"semantic": 2})
    count = sum(p.numel() for p in model.parameters())
    assert count == unet_parameters(1, 64, 1, 2) and round(count / 1e6, 1) == 31.0


def test_unet_joins_every_map_of_its_encoder() -> None:
    for backbone, joined, ratios in ((None, 4, [2] * 4), ("test_resnet", 4, [2] * 5), ("test_vit", 3, [1, 1, 1, 2, 2, 2, 2])):
        model = UNet(backbone, width=4).eval()
        assert [up.up.stride[0] for up in model.ups] == ratios
        with torch.no_grad():
            x = image(height=32, width=32)
            maps, got = model.backbone(x), model.features(x)
            for i in range(joined):  # without a map the result is another
                fewer = [torch.zeros_like(m) if j == i else m for j, m in enumerate(maps)]
                model.backbone.forward = lambda _, fewer=fewer: fewer
                assert not torch.allclose(model.features(x), got), (backbone, i)
        assert len(maps) == joined + 1
    assert strides_to_one(14) == [7, 1] and strides_to_one(4) == [2, 1] and strides_to_one(1) == []


def test_up_convolution_keeps_the_variance() -> None:
    torch.manual_seed(0)
    for up in UNet(width=16, levels=3).ups:
        x = torch.randn(2, up.up.in_channels, 16, 16)
        assert up.up(x).std().item() == pytest.approx(1, abs=0.2)


def test_encoder_is_a_backbone_of_halved_sizes() -> None:
    encoder = Encoder(3, 2, 4, "batch")
    maps = encoder(image(height=16, width=24))
    assert [tuple(m.shape[1:]) for m in maps] == [(2, 16, 24), (4, 8, 12), (8, 4, 6), (16, 2, 3)]
    assert encoder.channels == [2, 4, 8, 16] and encoder.strides == [1, 2, 4, 8] and encoder.divisor == 8


def test_aspp_looks_as_far_as_its_rates_say() -> None:
    aspp = ASPP(1, 1, (2, 5), "none")
    for p in aspp.parameters():  # every weight 1, no bias: outputs count paths
        nn.init.constant_(p, float(p.ndim > 1))
    x = torch.zeros(1, 1, 17, 17)
    x[0, 0, 8, 8] = 17.0 * 17
    expected = torch.full((17, 17), 1.0)  # the mean, everywhere
    for rate, kernel in ((1, 1), (2, 3), (5, 3)):
        for dy in (-rate, 0, rate) if kernel == 3 else (0,):
            for dx in (-rate, 0, rate) if kernel == 3 else (0,):
                expected[8 + dy, 8 + dx] += 17.0 * 17
    assert torch.allclose(aspp(x)[0, 0], expected)


@pytest.mark.parametrize(
    ("backbone", "stride", "rates", "expected"),
    [
        ("test_resnet", 16, None, [6, 12, 18]),
        ("test_resnet", 8, None, [12, 24, 36]),
        ("test_resnet", 32, None, [3, 6, 9]),
        ("test_resnet", 16, [1, 3], [1, 3]),
        ("resnet20_cifar", 16, None, [24, 48, 72]),
    ],
)
def test_deeplab_dilates_the_backbone_and_scales_its_rates(
    backbone: str, stride: int, rates: list[int] | None, expected: list[int]
) -> None:
    with torch.device("meta"):
        model = DeepLabV3(backbone, width=8, output_stride=stride, rates=rates)
        assert [branch[0].dilation[0] for branch in model.aspp.branches] == [1, *expected]
        deep = model.backbone(torch.empty(1, 3, 64, 64))[-1]
    assert 64 // deep.shape[2] == model.stride == (4 if backbone == "resnet20_cifar" else stride)
    dilations = {m.dilation[0] for m in model.backbone.modules() if isinstance(m, nn.Conv2d)}
    assert dilations == ({1} if model.stride in (4, 32) else {1, 2} if stride == 16 else {1, 2, 4})


def test_deeplab_plus_decodes_at_the_map_nearest_to_stride_four() -> None:
    for backbone, stride, channels in (("test_resnet", 4, 32), ("resnet20_cifar", 2, 32), ("test_convnext", 4, 24)):
        model = DeepLabV3(backbone, width=8, plus=True, low_width=3)
        assert model.stride == stride and model.reduce[0].weight.shape == (3, channels, 1, 1)
        assert model.fuse[0].in_channels == 8 + 3


def test_image_norm_takes_a_lone_image() -> None:
    norm = ImageNorm(3)
    x = torch.randn(4, 3, 1, 1)
    assert torch.allclose(norm(x), F.batch_norm(x, None, None, training=True))
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    lone = norm.train()(x[:1])
    assert torch.equal(norm.running_mean, mean) and torch.equal(norm.running_var, var)
    assert torch.equal(lone, norm.eval()(x[:1]))
    model = build("deeplab").train()
    output = model(image(batch=1))
    output["semantic"].square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.aspp.parameters())


def test_maps_are_chosen_by_their_strides() -> None:
    assert choose([2, 4, 8, 16, 32], 4) == (1, 2, 3, 4)
    assert choose([1, 1, 2, 4], 4) == (1, 2, 3)
    assert choose([1, 2, 4, 8, 16, 32]) == (0, 1, 2, 3, 4, 5)
    assert choose([2, 4, 8, 16, 16]) == (0, 1, 2, 4)
    assert choose([16] * 12) == (2, 5, 8, 11) and choose([16] * 12, 2) == (5, 11) and choose([16] * 3, 4) == (0, 1, 2)
    assert choose([16] * 5, 4) == (0, 1, 2, 4)


def test_backbones_are_timms_features() -> None:
    import timm

    backbone = Backbone("test_convnext", in_chans=2, levels=2).eval()
    features = timm.create_model("test_convnext", in_chans=2, features_only=True, out_indices=(2, 3)).eval()
    features.load_state_dict(backbone.body.state_dict())
    x = image(2, 64, 96)
    assert all(torch.equal(a, b) for a, b in zip(backbone(x), features(x), strict=True))
    assert backbone.strides == [16, 32] and backbone.channels == [48, 64] and backbone.divisor == 32
    turned = Backbone("test_mambaout", levels=1).eval()
    assert torch.equal(turned(image(3, 64, 96))[0], turned.body(image(3, 64, 96))[0].permute(0, 3, 1, 2))


def test_a_vit_sees_the_whole_of_an_image_of_another_size() -> None:
    model = build("fpn_vit").eval()
    x = image(height=50, width=65, batch=1).requires_grad_()
    model(x)["semantic"].square().sum().backward()
    assert x.grad is not None and (x.grad[..., -1] != 0).any() and (x.grad[..., -1, :] != 0).any()


def test_trying_a_blank_image_changes_nothing() -> None:
    torch.manual_seed(0)
    backbone = Backbone("test_resnet")
    after = torch.rand(1)
    assert all(m.training for m in backbone.modules())
    assert all(not b.any() for k, b in backbone.named_buffers() if k.endswith(("running_mean", "num_batches_tracked")))
    torch.manual_seed(0)
    import timm

    timm.create_model("test_resnet", features_only=True)
    assert torch.equal(after, torch.rand(1))


@pytest.mark.parametrize("name", ["fpn_resnet", "unet", "deeplab_ours_plus"])
def test_flops_are_counted(name: str) -> None:
    model = build(name)
    assert model.training
    count = flops(model, image(height=64, width=64))
    assert model.training
    expected = 0

    def conv(module: nn.Conv2d | nn.ConvTranspose2d, args: tuple[Tensor], output: Tensor) -> None:
        nonlocal expected
        positions = args[0] if isinstance(module, nn.ConvTranspose2d) else output
        expected += 2 * module.weight.numel() * positions.shape[2] * positions.shape[3]

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(conv)  # type: ignore[arg-type]
    model.eval()(image(height=64, width=64, batch=1))
    assert count == expected


R50 = 25_557_032 - 2049 * 1000  # without its classifier
PYRAMID = (256 + 512 + 1024 + 2048 + 4) * 256 + 4 * (9 * 256 + 1) * 256
FPN_PART = PYRAMID + 4 * 9 * 256 * 128 + 3 * 9 * 128**2 + 7 * 256 + 9 * 128**2 + 256 + 129 * 21  # ... seven blocks, the head


@pytest.mark.parametrize(
    ("option", "parameters", "stride"),
    [("fpn", R50 + FPN_PART, 4), ("unet", unet_parameters(3, 32, 2, 21), 1), ("deeplabv3", 39_638_869, 16)],  # torchvision's
)
def test_config_options_build_the_published_networks(option: str, parameters: int, stride: int) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = compose(f"model/{option}", overrides=["+dataset={in_chans: 3}"])
    model_node = OmegaConf.to_container(node, resolve=True)["model"]
    assert model_node.pop("_needs_") == ["image", "dense"]
    assert model_node.pop("_gives_") == ["dense_model"]
    with torch.device("meta"):
        model = instantiate(model_node)
        model.reset_heads({"semantic": 21})
        assert sum(p.numel() for p in model.parameters()) == parameters
        output = model(torch.empty(2, 3, 800, 1333))["semantic"]
    assert output.shape == (2, 21, math.ceil(800 / stride), math.ceil(1333 / stride))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: FPN("resnett18"), r"no model 'resnett18' \(did you mean 'resnet18'\?\)"),
        (lambda: UNet("resnet20_cifr"), "did you mean 'resnet20_cifar'"),
        (lambda: FPN("resnet18.a1_in2k"), "tagged 'a1_in2k'"),
        (lambda: FPN("resnet20_cifar", pretrained=True), "no pretrained weights for resnet20_cifar"),
        (lambda: FPN("test_resnet", args={"blok_args": 1}), "does not take 'blok_args'.*did you mean 'block_args'"),
        (lambda: FPN("mlp_256x2_cifar"), "mlp_256x2_cifar does not take images of any size"),
        (lambda: FPN("vit_relpos_small_patch16_224", args={"depth": 1}), "224 does not take images of any size .*Input height"),
        (lambda: FPN("inception_v3"), "inception_v3 turns a 96x160 image into .* no maps of .* at its strides"),
        (lambda: DeepLabV3("test_mambaout"), "test_mambaout cannot have output_stride=16: use its own, 32"),
        (lambda: DeepLabV3("test_resnet", output_stride=7), "test_resnet cannot have output_stride=7"),
        (lambda: DeepLabV3("test_vit", plus=True), "no map finer than stride 16"),
        (lambda: DeepLabV3("test_resnet", rates=[6, 0]), r"rates\[1\]=0"),
        (lambda: DeepLabV3("test_resnet", output_stride=0), "output_stride=0"),
        (lambda: DeepLabV3("test_resnet", low_width=0), "low_width=0"),
        (lambda: UNet(pretrained=True), "pretrained=true needs a backbone"),
        (lambda: UNet(args={"depth": 8}), "args={'depth': 8} needs a backbone"),
        (lambda: UNet(levels=0), "levels=0"),
        (lambda: UNet(in_chans=0), "in_chans=0"),
        (lambda: UNet(width=0), "width=0"),
        (lambda: UNet(norm="grup"), r"norm='grup' is not known \(did you mean 'group'\?\)"),
        (lambda: UNet(dropout=1.0), "dropout=1.0"),
        (lambda: UNet(head_convs=-1), "head_convs=-1"),
        (lambda: UNet(head_width=0), "head_width=0"),
        (lambda: FPN("test_resnet", in_chans=0), "in_chans=0"),
        (lambda: FPN("test_resnet", levels=0), "levels=0"),
        (lambda: FPN("test_resnet", pyramid_width=0), "pyramid_width=0"),
    ],
)
def test_bad_input_is_answered_in_one_sentence(make: Callable[[], nn.Module], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        make()
    assert "\n" not in str(error.value)
