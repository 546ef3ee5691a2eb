"""Soft sharing: equations of the bank, published sizes, which layers share, folding, plain networks again, mixing, bad input."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.models.image_model import conv3x3
from papermix.models.sharing import (
    Loop,
    Shared,
    SharedConv2d,
    SharedLinear,
    TemplateBank,
    above,
    banks,
    fold,
    materialise,
    recurrence,
    share,
    similarities,
    similarity,
)
from papermix.models.sharing.bank import attach
from papermix.models.sharing.iterative_cnn import IterativeCNN
from papermix.models.sharing.networks import IsotropicCNN, SharedWideResNet, shared_model
from papermix.models.wide_resnet import WideResNet
from papermix.optimizers import param_groups
from papermix.sparsity.magnitude import Magnitude


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def image(size: int = 8, batch: int = 4, chans: int = 3) -> Tensor:
    return torch.randn(batch, chans, size, size, generator=torch.Generator().manual_seed(0))


def trained(model: nn.Module, **kwargs: Any) -> nn.Module:
    """The network with running statistics, and norms that differ from layer to layer."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    with torch.no_grad():
        model(image())
    return model.eval()


def collinear(model: nn.Module, where: Callable[[str], int]) -> None:
    """Make coefficients of layers with the same ``where`` multiples of each other, signs included."""
    torch.manual_seed(2)
    for bank, layers in banks(model).items():
        directions = torch.eye(bank.count) + 0.1
        for i, (name, layer) in enumerate(layers.items()):
            factor = (0.5 + 0.25 * i) * (-1) ** i
            layer.coefficients.data.copy_(factor * directions[where(name) % bank.count])


# ---- the bank ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_layer_convolves_with_the_sum_of_templates_or_sums_their_convolutions(channels_last: bool) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(6, 4, 3, stride=s, padding=s, groups=2, bias=True) for s in (1, 2, 3)]
    bank = TemplateBank(2, (4, 3, 3, 3))
    attach(bank, layers)
    net = nn.ModuleList(layers)
    if channels_last:
        net.to(memory_format=torch.channels_last)
    x = image(9, chans=6)
    for s, layer in zip((1, 2, 3), layers):
        assert type(layer) is SharedConv2d and isinstance(layer, nn.Conv2d)
        assert layer.weight.is_contiguous(memory_format=torch.channels_last) or not channels_last
        kernel = sum(a * t for a, t in zip(layer.coefficients, bank.stacked()))
        options = {"stride": s, "padding": s, "groups": 2}
        assert torch.allclose(layer(x), F.conv2d(x, kernel, layer.bias, **options), atol=1e-6)
        apart = sum(a * F.conv2d(x, t, None, **options) for a, t in zip(layer.coefficients, bank.stacked()))
        assert torch.allclose(layer(x), apart + layer.bias[:, None, None], atol=1e-5)


def test_worked_example() -> None:
    layer = nn.Conv2d(1, 1, 1, bias=False)
    bank = TemplateBank(2, (1, 1, 1, 1))
    bank.templates.data.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
    attach(bank, [layer], torch.tensor([[0.5, -1.0]]))
    out = layer(torch.full((1, 1, 1, 1), 4.0))
    out.backward()
    assert layer.weight.item() == -1.5 and out.item() == -6
    assert layer.coefficients.grad.tolist() == [4, 8]
    assert bank.templates.grad.flatten().tolist() == [2, -4]


def test_the_gradient_of_a_template_sums_over_its_layers() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)]
    bank = TemplateBank(3, (5, 5))
    attach(bank, layers)
    x, kernels = torch.randn(7, 5), [layer.weight.detach().requires_grad_() for layer in layers]
    layers[1](layers[0](x).relu()).square().sum().backward()
    F.linear(F.linear(x, kernels[0]).relu(), kernels[1]).square().sum().backward()
    assert all(type(layer) is SharedLinear for layer in layers)
    for j, grad in enumerate(bank.templates.grad.unflatten(0, (3, 5))):
        expected = sum(layer.coefficients[j] * kernel.grad for layer, kernel in zip(layers, kernels))
        assert torch.allclose(grad, expected, atol=1e-5)


def test_templates_start_as_kaiming_and_coefficients_orthogonal() -> None:
    torch.manual_seed(0)
    for count, layers in ((6, 4), (4, 4), (2, 6)):
        convs = [conv3x3(32, 16) for _ in range(layers)]
        bank = TemplateBank(count, (16, 32, 3, 3))
        attach(bank, convs)
        a = torch.stack([conv.coefficients for conv in convs])
        gram = a @ a.T if layers <= count else a.T @ a
        assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-5)
        for template in bank.stacked():
            assert template.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.05)
    model = SharedWideResNet(16, 4, 2)
    for bank in banks(model):
        assert bank.templates.std().item() == pytest.approx((2 / (bank.shape[1] * 9)) ** 0.5, rel=0.03)


def test_mixed_precision_mixes_in_full() -> None:
    model = trained(SharedWideResNet(16, 1, 2))
    kernel = model.stage1[1].conv1.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.stage1[1].conv1.weight, kernel) and kernel.dtype == torch.float32
        half = model(image())
    assert (half.float() - model(image())).norm() < 0.1 * model(image()).norm()


# ---- which layers share ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "widen", "templates", "count"),
    [
        (28, 10, 6, 36_479_302),
        (28, 10, 2, 17_125_630),
        (28, 10, 1, 12_287_212),
        (28, 1, 2, 175_998),
        (28, 1, 6, 369_606),
        (28, 10, None, 36_479_302),
    ],
)
def test_swrn_has_the_published_number_of_parameters(depth: int, widen: int, templates: int | None, count: int) -> None:
    with torch.device("meta"):
        model = SharedWideResNet(depth, widen, templates)
        hundred = SharedWideResNet(depth, widen, templates, num_classes=100)
    assert parameters(model) == count
    assert parameters(hundred) == count + 90 * (64 * widen + 1)
    found = banks(model)
    assert [bank.name for bank in found] == ["stage1", "stage2", "stage3"]
    assert all(list(layers) == [f"{b.name}.{i}.conv{j}" for i in (1, 2, 3) for j in (1, 2)] for b, layers in found.items())


def test_any_network_shares_within_its_stages() -> None:
    with torch.device("meta"):
        fifty = shared_model("resnet50", 1000)
    assert {b.name: list(layers) for b, layers in banks(fifty).items()} == {
        f"layer{i}": [f"layer{i}.{j}.conv2" for j in range(1, n)] for i, n in ((1, 3), (2, 4), (3, 6), (4, 3))
    }
    resnet = share(WideResNet(16, 1), None, skip_first=False, exclude=["stage1.*"])
    assert {b.name: (b.count, len(layers)) for b, layers in banks(resnet).items()} == {"stage2": (3, 3), "stage3": (3, 3)}
    whole = share(nn.Sequential(conv3x3(3, 4), conv3x3(4, 4), nn.Sequential(conv3x3(4, 4), conv3x3(4, 4))), 1, scope="network")
    assert [list(layers) for layers in banks(whole).values()] == [["1", "2.1"]]
    vit = shared_model("test_vit", 10, kinds=("linear",), image_size=160)
    assert {len(layers) for layers in banks(vit).values()} and all("blocks" in b.name for b in banks(vit))
    assert all(isinstance(m, SharedLinear) for layers in banks(vit).values() for m in layers.values())


def test_pointwise_grouped_and_tied_layers_are_kept_apart() -> None:
    tied = nn.Linear(4, 4)
    tied.weight = (other := nn.Linear(4, 4)).weight
    net = nn.ModuleDict({
        "a": nn.Conv2d(4, 4, 1), "b": nn.Conv2d(4, 4, 1), "c": nn.Conv2d(8, 4, 3, groups=2),
        "d": nn.Conv2d(4, 4, 3), "e": nn.Conv2d(4, 4, 3), "t": tied, "u": other,
    })  # fmt: skip
    with pytest.raises(UserError, match="no two layers"):
        share(copy.deepcopy(net), kinds=["linear"], skip_first=False)
    assert [list(v) for v in banks(share(copy.deepcopy(net), skip_first=False)).values()] == [["d", "e"]]
    every = share(net, skip_first=False, pointwise=True)
    assert [list(v) for v in banks(every).values()] == [["a", "b"], ["d", "e"]]
    assert len({b.name for b in banks(every)}) == 2


def test_fitting_keeps_a_network_with_as_many_templates_as_layers_and_comes_nearest_with_fewer() -> None:
    model = trained(WideResNet(22, 1))
    whole = share(copy.deepcopy(model), None, init="fit")
    assert torch.allclose(whole(image()), model(image()), atol=1e-4)
    error = []
    for templates in (1, 2, 3):
        fitted = share(copy.deepcopy(model), templates, init="fit")
        layers = {n: layer for found in banks(fitted).values() for n, layer in found.items()}
        error.append(
            sum(float((layer.weight - model.get_submodule(n).weight).detach().square().sum()) for n, layer in layers.items())
        )
    best = 0.0
    for stage in (model.stage1, model.stage2, model.stage3):
        kernels = torch.stack([c.weight.flatten() for b in stage[1:] for c in (b.conv1, b.conv2)])
        best += float(torch.linalg.svdvals(kernels.detach())[2:].square().sum())
    assert error[0] > error[1] > error[2] and error[1] == pytest.approx(best, rel=1e-4)


# ---- what the rest of the house sees -----------------------------------------------------------------------------------------


def test_every_template_is_met_once_and_coefficients_are_not_decayed() -> None:
    for model in (
        SharedWideResNet(16, 1, 2),
        copy.deepcopy(SharedWideResNet(16, 1, 2)),
        pickle.loads(pickle.dumps(SharedWideResNet(16, 1, 2))),
    ):
        names = [n for n, _ in model.named_parameters(remove_duplicate=False)]
        assert [n for n in names if "templates" in n] == [f"stage{i}.1.conv1.bank.templates" for i in (1, 2, 3)]
        assert list(model.state_dict()) and sum("templates" in k for k in model.state_dict()) == 3
        for decay in (True, False):
            groups = {g["name"]: g for g in param_groups(model, decay_norm_and_bias=decay)}
            inside = {k: {id(p) for p in g["params"]} for k, g in groups.items()}
            assert groups["no_decay"]["weight_decay"] == 0 and "weight_decay" not in groups["decay"]
            for bank, layers in banks(model).items():
                assert id(bank.templates) in inside["decay"]
                assert all(id(layer.coefficients) in inside["no_decay"] for layer in layers.values())
            assert sum(len(g["params"]) for g in groups.values()) == len({id(p) for p in model.parameters()})
        before = model.stage1[1].conv2.weight.clone()  # a copy draws from its own bank
        model.stage1[1].conv1.bank.templates.data.mul_(2)
        assert torch.allclose(model.stage1[1].conv2.weight, 2 * before)


def test_state_round_trip() -> None:
    first, second = SharedWideResNet(16, 1, 2), SharedWideResNet(16, 1, 2)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.eval()(image()), second.eval()(image()))


def test_templates_can_be_sparse() -> None:
    model = SharedWideResNet(16, 1, 2)
    sparsity = Magnitude(density=0.25, types=["other"], include=["*.templates"])
    sparsity.attach(model)
    assert sorted(sparsity.parts) == [f"stage{i}.1.conv1.bank.templates" for i in (1, 2, 3)]
    sparsity.harden()
    trained(model)
    for bank in banks(model):
        assert float((bank.templates != 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    expected = model(image())
    plain = materialise(copy.deepcopy(model))
    assert torch.allclose(plain(image()), expected, atol=1e-5)
    sparsity.finalize(model)
    assert torch.allclose(model(image()), expected, atol=1e-6) and not any("original" in k for k in model.state_dict())


# ---- similarity, folding -----------------------------------------------------------------------------------------------------


def test_similarity_and_recurrence() -> None:
    a = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    s = similarity(a)
    root = 0.5**0.5
    assert torch.allclose(s, torch.tensor([[1, 1, 0, root], [1, 1, 0, root], [0, 0, 1, root], [root, root, root, 1]]))
    assert above([s], 0.9) == pytest.approx(1 / 6) and above([s], 0.5) == pytest.approx(4 / 6) and above([]) == 0
    model = SharedWideResNet(16, 1, 1)
    assert all(torch.allclose(s, torch.ones(2, 2)) for s in similarities(model).values())
    assert recurrence(model).item() == pytest.approx(12)
    model = SharedWideResNet(16, 1, 2)  # orthogonal at the start
    assert recurrence(model).item() == pytest.approx(6, abs=1e-4)
    model.stage1[1].conv1.coefficients.data.copy_(torch.tensor([1.0, 0.0]))
    model.stage1[1].conv2.coefficients.data.copy_(torch.tensor([1.0, 0.2]))
    recurrence(model).backward()
    assert model.stage1[1].conv2.coefficients.grad[1] < 0  # towards each other
    with pytest.raises(UserError, match="no shared layers"):
        recurrence(WideResNet(10, 1))


def test_one_template_makes_collinear_kernels() -> None:
    model = SharedWideResNet(22, 1, 1)
    for layers in banks(model).values():
        kernels = F.normalize(torch.stack([m.weight.flatten() for m in layers.values()]), dim=1)
        assert torch.allclose((kernels @ kernels.T).abs(), torch.ones(4, 4), atol=1e-5)


@pytest.mark.parametrize(
    ("where", "loops"),
    [
        (lambda name: 0, {f"stage{i}.1": (1, 3) for i in (1, 2, 3)}),  # every layer the same
        (lambda name: int(name[-1]), {f"stage{i}.1": (1, 3) for i in (1, 2, 3)}),  # conv1 of all blocks, conv2 of all blocks
        (lambda name: int(name.split(".")[1]) % 2, {}),  # blocks 1 and 3 alike, 2 alone: no repetition of neighbours
    ],
)
def test_folding_collinear_layers_keeps_the_outputs(where: Callable[[str], int], loops: dict[str, tuple[int, int]]) -> None:
    model = SharedWideResNet(28, 1, 2)
    collinear(model, where)
    trained(model)
    expected, plain = model(image()), materialise(copy.deepcopy(model))
    folded = copy.deepcopy(model)
    done = fold(folded, 0.99)
    assert torch.allclose(folded(image()), expected, atol=1e-5)
    assert done.loops == loops and done.before == parameters(model) and done.after == parameters(folded)
    assert {sum(isinstance(m, Loop) for m in folded.modules())} == {len(loops)}
    if where("x.1.conv1") == where("x.2.conv2") == 0:
        assert done.after < done.before - 2304  # half of the templates are gone
    again = copy.deepcopy(folded)
    again.load_state_dict(folded.state_dict())
    assert torch.allclose(again(image()), expected, atol=1e-5)
    # a folded network can be trained on, and each turn has its own statistics
    folded.train()(image()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in folded.parameters())
    names = {id(p): g["name"] for g in param_groups(folded) for p in g["params"]}
    assert all(names[id(p)] == "no_decay" for n, p in folded.named_parameters() if n.endswith("coefficients"))
    flat = materialise(again)
    assert not any(isinstance(m, Shared | Loop | TemplateBank) for m in flat.modules())
    assert list(flat.state_dict()) == list(plain.state_dict()) == list(WideResNet(28, 1).state_dict())
    WideResNet(28, 1).load_state_dict(flat.state_dict())
    assert torch.allclose(flat(image()), expected, atol=1e-5) and torch.allclose(plain(image()), expected, atol=1e-5)


def test_a_loop_runs_over_several_blocks() -> None:
    model = IsotropicCNN(8, 4, 2)
    collinear(model, lambda name: int(name.split(".")[1]) % 2)  # kernels a a, b b, a a, b b
    trained(model)
    expected = model(image())
    assert fold(model, 0.99).loops == {"stage1.0": (2, 2)}
    assert torch.allclose(model(image()), expected, atol=1e-5) and len(model.stage1) == 1
    assert list(materialise(model).stage1._modules) == ["0", "1", "2", "3"]
    assert torch.allclose(model(image()), expected, atol=1e-5)


def test_folding_nearly_alike_layers_takes_the_mean_of_their_directions() -> None:
    layers = [conv3x3(2, 2) for _ in range(3)]
    net = nn.Sequential(*layers)
    angles = torch.tensor([0.0, 0.1, 1.5])
    attach(
        TemplateBank(2, (2, 2, 3, 3)), layers, torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([[2.0], [-3.0], [1.0]])
    )
    bank, alone = layers[0].bank, layers[2].weight.clone()
    done = fold(net, 0.99)
    assert done.clusters == [["0", "1"]] and done.loops == {"0": (1, 2)}
    middle = torch.tensor(0.05)
    expected = bank.mix(torch.stack([middle.cos(), middle.sin()]))
    # the longer of the two gives the sign
    assert torch.allclose(net[0].body.bank.stacked()[0], -expected, atol=1e-6)
    assert [turn.coefficients.item() for turn in net[0].turns] == pytest.approx([-2, 3])
    assert torch.equal(layers[2].weight, alone) and layers[2].bank is bank  # now its first layer
    assert any("bank.templates" in k and k.startswith("2") for k in net.state_dict())


def test_whatever_is_not_alike_stays() -> None:
    model = SharedWideResNet(16, 1, 2)  # orthogonal
    before = model.state_dict()
    done = fold(model, 0.5)
    assert not done.clusters and not done.loops and list(model.state_dict()) == list(before) and done.before == done.after


# ---- networks and bad input --------------------------------------------------------------------------------------------------


def test_iterative_network_has_one_bank_and_sees_as_far_as_its_layers() -> None:
    for templates, bank in ((2, [(2, 6)]), (None, [])):
        model = IterativeCNN(6, 4, templates)
        model.reset_heads({"semantic": 2})
        assert [(b.count, len(v)) for b, v in banks(model).items()] == bank
        model.eval()
        x = image(21).requires_grad_()
        out = model(x)["semantic"]
        assert out.shape == (4, 2, 21, 21)
        (seen,) = torch.autograd.grad(out[0, 0, 10, 10], x)
        rows = seen[0].abs().sum((0, 2)).nonzero().flatten()
        assert rows.min() >= 3 and rows.max() <= 17 and rows.max() - rows.min() >= 10
    sizes = [parameters(IterativeCNN(6, 4, k)) for k in (None, 2, 1)]
    assert sizes[0] - sizes[1] == 4 * 144 - 12 and sizes[1] - sizes[2] == 144 + 6


def test_networks_are_timm_models() -> None:
    import timm

    import papermix.models.registry  # noqa: F401

    with torch.device("meta"):
        assert parameters(timm.create_model("swrn28_10_2_cifar")) == 17_125_630
    model = timm.create_model("isotropic8_32_cifar", templates=2, width=4, num_classes=7)
    assert model(image()).shape == (4, 7) and len(banks(model)) == 1


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SharedWideResNet(10, 1, 2), "depth=10 leaves nothing to share"),
        (lambda: SharedWideResNet(16, 1, 0), "templates=0"),
        (lambda: IsotropicCNN(layers=5), "take 6"),
        (lambda: share(WideResNet(16, 1), kinds=["convs"]), "did you mean 'conv'"),
        (lambda: share(WideResNet(16, 1), scope="stages"), "did you mean 'stage'"),
        (lambda: share(WideResNet(16, 1), init="fitted"), "did you mean 'fit'"),
        (lambda: share(WideResNet(16, 1), include=["stage4.*"]), "matches no layer"),
        (lambda: share(nn.Linear(3, 3)), "no kind asked for"),
        (lambda: share(SharedWideResNet(16, 1)), "shares already"),
        (lambda: SharedConv2d(3, 3, 3), "made of a plain layer"),
        (lambda: TemplateBank(2, (3,)), "outputs and inputs"),
        (lambda: attach(TemplateBank(2, (3, 3)), []), "at least one"),
        (lambda: attach(TemplateBank(2, (3, 3)), [nn.Linear(4, 3)]), r"shape \(3, 4\)"),
        (lambda: attach(TemplateBank(2, (3, 3)), [nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))]), "no plain parameter"),
        (lambda: attach(TemplateBank(2, (3, 3)), [nn.ReLU()]), "no plain parameter"),
        (lambda: fold(WideResNet(10, 1)), "no shared layers to fold"),
        (lambda: fold(SharedWideResNet(16, 1), 1.5), r"must lie in \(0, 1\]"),
        (lambda: materialise(WideResNet(10, 1)), "plain network already"),
        (lambda: Loop([nn.Linear(2, 2), nn.Linear(2, 2)]), "same kernels"),
        (lambda: shared_model("resnet18", 10, pretrained=True), "model.init=fit"),
    ],
)
def test_bad_input_is_one_sentence(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)
