"""Growing: the function and the variance at a growth, birth blocks and their rates, schedules, optimizers, copies, bad input."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from papermix.errors import UserError
from papermix.metrics.count import flops
from papermix.models.mlp import MLP
from papermix.models.nested.width_nested import NestedResNet
from papermix.models.resnet_cifar import ResNetCifar
from papermix.models.vgg_cifar import VGGCifar
from papermix.optimizers import AvaGrad
from papermix.sparsity.growing import MULTIPLIER, Growing
from papermix.sparsity.widening import Axis, Blocks, cost, lengths, norms, rates, widths


def timm_model(name: str, **options) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=5, **options)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.rnn = nn.LSTM(8, 12, num_layers=2, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(x))[0])


class ConvBias(nn.Sequential):
    """Convolutions with biases and no norm, a flatten behind them."""

    def __init__(self) -> None:
        conv = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*conv, nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5))


IMAGE = (4, 3, 8, 8)
MODELS = {
    "mlp": lambda: MLP(8, [16, 24], num_classes=5),
    "mlp_without_norm": lambda: MLP(8, [16, 24], norm=False, num_classes=5),
    "conv_bias": ConvBias,
    "vgg": lambda: VGGCifar(11, width=4, num_classes=5),
    "resnet_padded": lambda: ResNetCifar(8, width=8, num_classes=5),
    "resnet_projected": lambda: ResNetCifar(8, shortcut="B", width=8, num_classes=5),
    "resnet_preactivated": lambda: ResNetCifar(8, version=2, width=8, num_classes=5),
    "timm_resnet": lambda: timm_model("test_resnet"),
    "timm_depthwise": lambda: timm_model("test_efficientnet"),
    "timm_vit": lambda: timm_model("vit_tiny_patch16_224", img_size=8, patch_size=4, depth=1),
    "nested_width": lambda: NestedResNet(exits=2, width=4, blocks=[1, 1], num_classes=5),
    "lstm": Recurrent,
}


def example(name: str) -> Tensor:
    torch.manual_seed(5)
    if name == "lstm":
        return torch.randint(11, (4, 6))
    return torch.randn(4, 3, 64, 64) if name.startswith("timm_") and name != "timm_vit" else torch.randn(IMAGE)


def made(name: str, **options) -> tuple[nn.Module, Growing, Tensor]:
    torch.manual_seed(0)
    model, x = MODELS[name](), example(name)
    growing = Growing(**{"stages": 3, **options})
    growing.attach(model, x)
    return model, growing, x


def train(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        out = model(x)
        nn.functional.cross_entropy(out.flatten(0, -2), torch.arange(out[..., 0].numel()) % 5).backward()
        optimizer.step()
    model.eval()


@torch.no_grad()
def change(model: nn.Module, growing: Growing, x: Tensor, *optimizers: torch.optim.Optimizer) -> float:
    """Largest relative change of an output at a growth."""
    model.eval()
    before = model(x)
    growing.grow(optimizers)
    return float((model(x) - before).abs().max() / before.abs().max())


# ---- check 1: the function stays; check 7: the stock network at the end ------------------------------------------------------


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("options", [{}, {"new": "copies", "variance_transfer": False}], ids=["twins", "copies"])
def test_outputs_stay_and_the_end_is_the_stock_network(name: str, options: dict) -> None:
    model, growing, x = made(name, **options)
    stock = {k: v.shape for k, v in MODELS[name]().state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    growing.watch(optimizer)
    for _ in range(2):
        train(model, x, optimizer)
        assert change(model, growing, x, optimizer) < 1e-5
    train(model, x, optimizer)
    before = model(x)
    growing.finish()
    assert torch.allclose(model(x), before, rtol=1e-4, atol=1e-5)
    assert {k: v.shape for k, v in model.state_dict().items()} == stock
    assert repr(model) == repr(MODELS[name]())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(UserError, match="full width"):
        growing.grow()


def test_random_channels_preserve_nothing() -> None:
    model, growing, x = made("mlp", new="random", variance_transfer=False)
    train(model, x, torch.optim.SGD(model.parameters(), lr=0.01))
    assert change(model, growing, x) > 0.1


def test_a_stochastic_function_stays_too_in_training_mode() -> None:
    model, growing, x = made("resnet_padded")
    model.train()
    with torch.no_grad():
        before = model(x)
        growing.grow()
        assert torch.allclose(model(x), before, rtol=1e-3, atol=1e-3)


# ---- check 2: twins ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "mlp_without_norm", "conv_bias"])
def test_twins_enter_alike_leave_opposite_and_part_at_the_first_step(name: str) -> None:
    model, growing, x = made(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    growing.watch(optimizer)
    train(model, x, optimizer)
    growing.grow([optimizer])
    first = next(m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    second = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)][1]
    (old, new, *_) = growing.widths[growing.groups[0].name]
    a, b = first.weight[old::2], first.weight[old + 1 :: 2]
    assert len(a) == (new - old) // 2 > 0
    assert torch.equal(a, b) and (first.bias is None or torch.equal(first.bias[old::2], first.bias[old + 1 :: 2]))
    assert not torch.equal(a[0], first.weight[0]) and a.std() > 0
    out = second.weight[:, old::2], second.weight[:, old + 1 :: 2]
    assert torch.equal(out[0], -out[1]) and out[0].std() > 0
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm1d)):
        for vector in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert torch.equal(vector[old::2], vector[old + 1 :: 2])
        break
    train(model, x, optimizer, 1)
    assert not torch.allclose(first.weight[old::2], first.weight[old + 1 :: 2], atol=1e-6)


# ---- checks 3 and 4: variance -----------------------------------------------------------------------------------------------


def test_variance_of_the_whole_matrix_is_that_of_a_new_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 512), nn.ReLU(), nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 4))
    nn.init.normal_(model[2].weight, std=512**-0.5)
    growing = Growing(stages=2, start=0.5)
    growing.attach(model, torch.randn(2, 3))
    assert float(model[2].weight.detach().std()) == pytest.approx(256**-0.5, rel=0.02)
    growing.grow()
    assert float(model[2].weight.detach().std()) == pytest.approx(512**-0.5, rel=0.02)
    assert float(model[2].weight.detach()[256:].std()) == pytest.approx(512**-0.5, rel=0.02)


def test_old_weights_shrink_by_kind_of_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 20))
    model.append(nn.ReLU()).append(nn.Linear(20, 4))
    growing = Growing(stages=2, start=0.25)
    growing.attach(model, torch.randn(2, 3))
    old = {i: model[i].weight.clone() for i in (0, 2, 5, 7)}
    model[3].running_var.fill_(2.0)
    growing.grow()
    (a, c), (d, _) = growing.widths["2"], growing.widths["5"]
    assert torch.equal(model[0].weight[:8], old[0])
    assert torch.allclose(model[2].weight[:a, :8], old[2] * (8 / 32) ** 0.5)  # a batch norm behind it
    assert torch.allclose(model[5].weight[:d, :a], old[5] * (a / c) ** 0.5)  # none
    assert torch.allclose(model[7].weight[:, :d], old[7] * d / 20)  # the output
    assert getattr(model[5], MULTIPLIER) == pytest.approx((c / a) ** 0.5)
    assert getattr(model[7], MULTIPLIER) == pytest.approx(20 / d)
    assert not hasattr(model[2], MULTIPLIER) and not hasattr(model[0], MULTIPLIER)
    assert torch.allclose(model[3].running_var[:a], torch.tensor((2 + 1e-5) / 4 - 1e-5))
    plain = Growing(stages=2, variance_transfer=False)
    model = MODELS["mlp"]()
    plain.attach(model, example("mlp"))
    old = model.stage2[0 if isinstance(model.stage2[0], nn.Linear) else 1].weight.clone()
    plain.grow()
    assert torch.equal(model.stage2[1].weight[: old.shape[0], : old.shape[1]], old)


def test_layers_of_zeros_break_the_symmetry_of_twins() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    nn.init.zeros_(model[2].weight)
    growing = Growing(stages=2)
    growing.attach(model, torch.randn(2, 3))
    growing.grow()
    assert model[2].weight[:, 2:].abs().min() > 0


# ---- check 5: rate adaptation -----------------------------------------------------------------------------------------------


def axis(dim: int, birth: list[int], inputs: bool = False) -> Axis:
    return Axis(dim, inputs, torch.tensor(birth), torch.zeros(len(birth), 3, dtype=torch.int64))


def test_blocks_are_l_shaped_and_their_factors_are_relative_to_the_first() -> None:
    blocks = Blocks([axis(0, [0, 0, 1, 2]), axis(1, [0, 1, 1], True)], 2, 2, torch.device("cpu"))
    weight = torch.tensor([[3.0, 1, 1], [4.0, 1, 1], [4.0, 4, 8], [6.0, 8, 0]])
    # block 1: the new columns of the old rows, and the whole new row
    expected = [5.0, (4 + 16 + 16 + 64) ** 0.5, 10.0]
    assert norms(blocks.squares(weight)[None])[0].tolist() == pytest.approx(expected)
    factors = rates([blocks], [weight])[0].expand(4, 3)
    assert factors.tolist() == [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    younger = Blocks([axis(0, [0, 0, 1, 2]), axis(1, [0, 1, 1], True)], 1, 2, torch.device("cpu"))
    assert rates([younger], [weight[:3]])[0].tolist() == [[1, 2, 2], [1, 2, 2], [2, 2, 2]]
    one = Blocks([axis(1, [0, 1])], 1, 4, torch.device("cpu"))
    kernel = torch.ones(2, 2, 3, 3)
    kernel[:, 1] = 0
    # several weights at once, each with its own factors
    two = Blocks([axis(0, [0, 1]), axis(1, [0, 1])], 1, 4, torch.device("cpu"))
    alone, together = rates([one, two], [kernel, 3 * kernel + torch.eye(2)[..., None, None]])
    assert together.flatten().tolist() == pytest.approx([1, *3 * [((9 * 9 + 9) / (16 * 9)) ** 0.5]])
    assert alone.flatten().tolist() == [1, 1]  # a block of zeros could not move otherwise


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        lambda p: AvaGrad(p, lr=0.1),
    ],
    ids=["sgd", "adamw", "avagrad"],
)
def test_steps_are_multiplied_by_the_factors(make) -> None:
    model, growing, x = made("mlp", stages=2)
    growing.grow()
    twin = copy.deepcopy(model)
    optimizer, plain = make(model.parameters()), make(twin.parameters())
    growing.watch(optimizer)
    for _ in range(3):
        before = [p.detach().clone() for p in model.parameters()]
        twin.load_state_dict(model.state_dict())
        train(model, x, optimizer, 1)
        train(twin, x, plain, 1)
        for (name, p), old, q in zip(model.named_parameters(), before, twin.parameters()):
            grown = growing.tensors.get(tuple(name.rsplit(".", 1)))  # type: ignore[arg-type]
            factors = torch.ones(1)
            if p.ndim > 1 and grown:
                [factors] = rates([growing.blocks((grown.module, grown.attribute))], [old])
            assert torch.allclose(p - old, factors * (q - old), atol=1e-6), name
            if p.ndim > 1:
                one = (factors == 1).expand_as(p)
                assert (factors - 1).abs().max() > 0.1 and torch.equal(p[one], q[one])


def test_one_stage_is_the_plain_optimizer() -> None:
    torch.manual_seed(0)
    model, x = MODELS["mlp"](), example("mlp")
    plain = copy.deepcopy(model)
    growing = Growing(stages=1)
    growing.attach(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    growing.watch(optimizer)
    train(model, x, optimizer, 3)
    train(plain, x, torch.optim.SGD(plain.parameters(), lr=0.1), 3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters()))


# ---- checks 6 and 8: schedules and cost --------------------------------------------------------------------------------------


def test_widths_and_lengths() -> None:
    assert widths(64, 9, rate=0.2) == [16, 18, 20, 24, 28, 32, 38, 44, 64]
    assert widths(64, 9) == [16, 20, 22, 26, 32, 38, 46, 54, 64] and widths(256, 5) == [64, 90, 128, 182, 256]
    assert widths(16, 9) == [4, 4, 6, 6, 8, 10, 12, 14, 16]  # a narrow layer waits for the others
    assert widths(7, 3) == [3, 5, 7] and widths(1, 3) == [1, 1, 1] and widths(5, 1) == [5]
    for target in (2, 3, 10, 33, 100, 511, 512):
        for found in (widths(target, 9), widths(target, 9, rate=0.2)):
            assert found[-1] == target and all((b - a) % 2 == 0 and b >= a for a, b in pairwise(found))
            assert target < 64 or all(b > a for a, b in pairwise(found))
        assert all(b > a or b == target for a, b in pairwise(widths(target, 9, rate=0.2)))
    assert lengths(20, 5, 0.3) == [2, 3, 4, 5, 6] and lengths(160, 9) == [8, 9, 11, 13, 16, 19, 23, 28, 33]
    for total in (9, 50, 90, 160, 161):
        found = lengths(total, 9)
        assert sum(found) == total and all(a <= b + 1 for a, b in pairwise(found)) and min(found) >= (total > 20)
    assert cost([2, 3, 5], [10, 20, 40]) == pytest.approx((20 + 60 + 200) / 400)


def test_flops_of_every_stage() -> None:
    model, growing, x = made("resnet_padded", stages=4)
    for stage in range(4):
        assert growing.flops[stage] == flops(model, x)
        if stage < 3:
            growing.grow()
    assert growing.flops == sorted(set(growing.flops)) and growing.flops[0] < growing.flops[-1] / 8


# ---- copies -----------------------------------------------------------------------------------------------------------------


def test_copies_share_their_outgoing_weights_and_noise_parts_them() -> None:
    model, growing, x = made("mlp", stages=2, new="copies", variance_transfer=False)
    old = model.stage1[1].weight.clone()
    growing.grow()
    rows = model.stage1[1].weight[len(old) :]
    assert all(any(torch.equal(row, other) for other in old) for row in rows)
    noisy, growing, x = made("mlp", stages=2, new="copies", variance_transfer=False, noise=0.1)
    before = noisy(x)
    growing.grow()
    apart = (noisy.stage1[1].weight - model.stage1[1].weight)[len(old) :]
    assert torch.equal(noisy.stage1[1].weight[: len(old)], old)
    assert float(apart.std()) == pytest.approx(0.1 * float(old.std()), rel=0.1)
    assert not torch.allclose(noisy(x), before)


# ---- optimizers and states --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
def test_optimizer_states_grow_with_zeros_or_start_anew(keep: bool) -> None:
    model, growing, x = made("mlp", optimizer_state="keep" if keep else "reset")
    layer = model.stage1[1]
    groups = [{"params": [layer.weight], "name": "first"}, {"params": list(model.stage2.parameters())}]
    optimizer = torch.optim.Adam(groups, lr=0.01)
    train(model, x, optimizer)
    old = {k: v.clone() for k, v in optimizer.state[layer.weight].items()}
    bias = layer.weight
    growing.grow([optimizer])
    assert optimizer.param_groups[0]["params"] == [layer.weight] and optimizer.param_groups[0]["name"] == "first"
    assert bias not in optimizer.state and layer.weight.grad is None
    if keep:
        state, n = optimizer.state[layer.weight], len(old["exp_avg"])
        assert state["step"] == 2 and len(state["exp_avg"]) == len(layer.weight) > n
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[key][:n], old[key]) and not state[key][n:].any() and old[key].any()
    else:
        assert not optimizer.state
    train(model, x, optimizer)
    assert optimizer.state[layer.weight]["step"] == (4 if keep else 2)


def test_states_of_another_shape_start_anew(caplog: pytest.LogCaptureFixture) -> None:
    model, growing, x = made("mlp")
    optimizer = torch.optim.Adafactor(model.parameters())
    train(model, x, optimizer)
    growing.grow([optimizer])
    assert "starts anew" in caplog.text
    train(model, x, optimizer)


@pytest.mark.parametrize("name", ["mlp_without_norm", "resnet_padded", "lstm"])
def test_a_state_brings_a_model_to_its_stage(name: str) -> None:
    model, growing, x = made(name)
    growing.grow()
    model.eval()
    middle, output = copy.deepcopy(model.state_dict()), model(x).detach()
    growing.grow()
    growing.finish()
    final, last = copy.deepcopy(model.state_dict()), model(x).detach()
    other, later, _ = made(name)
    other.eval()
    for state, stage, expected in ((middle, 1, output), (final, 2, last), (middle, 1, output)):
        other.load_state_dict(state)
        assert later.stage == stage
        assert torch.allclose(other(x), expected, atol=1e-6)
        assert other.state_dict().keys() == state.keys()
    # it goes on as the first one did
    later.grow()
    later.finish()
    assert all(torch.equal(a, final[k]) for k, a in other.state_dict().items())
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict({k: v[:1] if v.ndim else v for k, v in final.items()})


def test_twice_the_same_whatever_else_draws_numbers() -> None:
    states = []
    for draws in (0, 3):
        model, growing, _ = made("resnet_padded", new="copies", variance_transfer=False, noise=0.1, seed=4)
        torch.rand(draws)
        growing.grow()
        states.append(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values()))


# ---- what grows, and what cannot ----------------------------------------------------------------------------------------------


def test_what_stays_at_its_full_number_says_why() -> None:
    model, growing, _ = made("timm_vit", exclude=())
    assert any("layer norm" in why for why in growing.left.values())
    assert all("mlp" in group.name or "attn" in group.name for group in growing.groups)
    model, growing, _ = made("mlp", exclude=["stage1*"])
    assert "exclude" in growing.left["stage1.1"] and list(growing.widths) == ["stage2.1"]
    assert model.stage1[1].weight.shape[0] == 16 and model.stage2[1].weight.shape[0] < 24


def test_bad_input() -> None:
    x = example("mlp")
    for options, words in (
        ({"stages": 0}, "stages=0"),
        ({"start": 0.0}, "start=0.0"),
        ({"width_rate": -0.1}, "width_rate"),
        ({"new": "twin"}, "did you mean 'twins'"),
        ({"optimizer_state": "drop"}, "keep or reset"),
        ({"noise": 0.1}, "new=copies"),
        ({"new": "copies"}, "variance_transfer"),
    ):
        with pytest.raises(UserError, match=words):
            Growing(**options)
    with pytest.raises(UserError, match="nothing in this Sequential can grow"):
        Growing().attach(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), x)
    with pytest.raises(UserError, match="weights are parametrized"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4))
        parametrize.register_parametrization(model[1], "weight", nn.Tanh())
        Growing().attach(model, x)
    model, growing, x = made("mlp")
    with pytest.raises(UserError, match="attached to a model already"):
        growing.attach(model, x)
    tied = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 7, bias=False))
    tied[1].weight = tied[0].weight
    with pytest.raises(UserError, match="tied weight"):
        Growing().attach(tied, torch.zeros(1, 3, dtype=torch.int64))
