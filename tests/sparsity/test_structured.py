"""Structured Continuous Sparsification: the properties that the paper's method rests on."""

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.models.densenet_cifar import DenseNetCifar
from papermix.models.lstm_lm import LSTMLM
from papermix.models.mlp import MLP
from papermix.models.nested.width_nested import NestedResNet
from papermix.models.resnet_cifar import ResNetCifar
from papermix.models.small_cnn import SmallCNN
from papermix.models.transformer_lm import TransformerLM
from papermix.models.vgg_cifar import VGGCifar
from papermix.optimizers import param_groups
from papermix.optimizers.masks import with_masks
from papermix.sparsity.compact import Gate, shrink
from papermix.sparsity.magnitude import Magnitude
from papermix.sparsity.structured import Structured

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LARGER = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(0, 20, (3, 6), generator=torch.Generator().manual_seed(0))
NETWORKS: dict[str, Any] = {
    "small_cnn": (lambda: SmallCNN((6, 10), (1, 2)), IMAGES, {}),
    "vgg": (lambda: VGGCifar(depth=11, width=4), IMAGES, {}),
    "resnet": (lambda: ResNetCifar(depth=14, width=4), IMAGES, {}),
    "resnet_streams": (lambda: ResNetCifar(depth=14, width=4), IMAGES, {"streams": True}),
    "pre_activation": (lambda: ResNetCifar(depth=14, width=4, version=2), IMAGES, {"streams": True}),
    "densenet": (lambda: DenseNetCifar(depth=16, growth=4), IMAGES, {"streams": True}),
    "mlp": (lambda: MLP(img_size=16, hidden=(12, 8)), IMAGES, {}),
    "nested": (lambda: NestedResNet(2, 2, [1, 1]), IMAGES, {}),
    "transformer": (lambda: TransformerLM(20, 2, 8, 2, dropout=0.0), TOKENS, {}),
    "lstm": (lambda: LSTMLM(20, 2, 9, embedding=6), TOKENS, {}),
    "lstm_tied": (lambda: LSTMLM(20, 2, 9, embedding=6, tied=True, weight_drop=1e-9), TOKENS, {}),
    "test_resnet": (lambda: timm.create_model("test_resnet", num_classes=5), LARGER, {"streams": True}),
    "mobilenet": (lambda: timm.create_model("test_efficientnet", num_classes=5), LARGER, {}),
    "convnext": (lambda: timm.create_model("test_convnext", num_classes=5), LARGER, {}),
}


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def attached(name: str, **options: Any) -> tuple[nn.Module, Tensor, Structured]:
    """A gated network in a random structure, the same for the same name."""
    make, x, more = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    sparsity = Structured(**{"seed_channels": 2, **more, **options})
    sparsity.attach(model, x[:2])
    sparsity.steps_per_epoch = 2
    sparsity.structure.draw(3, 5)
    return model, x, sparsity


def train_step(model: nn.Module, x: Tensor) -> Tensor:
    model.train()
    output = first(model(x))
    output.square().sum().backward()
    return output.detach()


@pytest.mark.parametrize("name", list(NETWORKS))
def test_cut_execution_equals_masked_execution(name: str) -> None:
    small, x, sparsity = attached(name)
    masked, _, other = attached(name, compact=False)
    assert sparsity.widths() == other.widths()
    assert sparsity.density() < 0.8, "a structure that leaves nothing out would say nothing"
    before = {key: value.clone() for key, value in small.named_buffers()}
    a, b = train_step(small, x), train_step(masked, x)
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)
    full = dict(masked.named_parameters())
    for key, p in small.named_parameters():
        expected = torch.zeros_like(p) if full[key].grad is None else full[key].grad
        got = torch.zeros_like(p) if p.grad is None else p.grad
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5), key
    # statistics of channels in use move, those of the rest do not, in both
    buffers = dict(masked.named_buffers())
    for key, value in small.named_buffers():
        assert torch.allclose(value.float(), buffers[key].float(), atol=1e-5), key
    used = sparsity.structure.in_use()
    for module in small.modules():
        if isinstance(module, nn.BatchNorm2d) and module.weight in used:
            key = next(n for n, m in small.named_modules() if m is module) + ".running_var"
            moved = dict(small.named_buffers())[key] != before[key]
            assert torch.equal(moved, used[module.weight])
    # gradients go to what is in use, and nowhere else
    assert used
    for p, mask in used.items():
        assert p.grad is None or not p.grad[~mask].any()


@pytest.mark.parametrize("name", list(NETWORKS))
def test_what_is_taken_out_changes_no_output(name: str) -> None:
    model, x, sparsity = attached(name)
    model.eval()
    with torch.no_grad():
        for gate in sparsity.parts.values():
            gate.logits.copy_(torch.where(gate.active, 0.02, -1.0))
        soft = first(model(x))
        sparsity.update(0, 4)
        sparsity.harden()
        expected = first(model(x))
        # the gates' values are part of the weights now
        assert torch.allclose(soft, expected, rtol=1e-5, atol=1e-5)
        density = sparsity.density()
        weights = {n: int(c.used()) for n, c in sparsity.structure.costs.items()}
        smaller = shrink(copy.deepcopy(model))
        assert torch.allclose(first(smaller(x)), expected, rtol=1e-5, atol=1e-5)
        assert torch.allclose(first(model(x)), expected), "the copy's surgery must leave the model alone"
    plain = dict(smaller.named_parameters())
    assert not any("structure" in key for key in smaller.state_dict())
    assert all("forward" not in vars(module) for module in smaller.modules())
    for key, count in weights.items():
        p = plain.get(key, plain.get(f"{key.rpartition('.')[0]}.parametrizations.{key.rpartition('.')[2]}.original"))
        if p is not None:
            assert p.numel() == count, key
        else:
            assert count == 0 or "head" in key
    total = sum(cost.total for cost in sparsity.structure.costs.values())
    assert sum(weights.values()) == pytest.approx(density * total)


def test_gates_that_are_closed_contribute_nothing() -> None:
    model, x, sparsity = attached("small_cnn")
    model.eval()
    gate = sparsity.parts["stage2.1.0"]
    with torch.no_grad():
        before = model(x)
        layer = model.get_submodule("stage2.1.0")
        layer.weight[~gate.active] = 1e4
        model.get_submodule("stage2.1.1").bias[~gate.active] = 1e4
        assert torch.equal(model(x), before)
        layer.weight[gate.active] *= 2
        model.get_submodule("stage2.1.1").bias[gate.active] += 1
        assert not torch.allclose(model(x), before)


def test_gate_values_and_chances() -> None:
    gate = Gate(torch.tensor([-0.1, 0.0, 0.2]))
    assert torch.allclose(gate.value(), torch.sigmoid(torch.tensor([-0.1, 0.0, 0.2])))
    gate.beta.fill_(1e6)
    assert torch.equal(gate.value().round(decimals=4), torch.tensor([0.0, 0.5, 1.0]))
    # at s = 0 and any temperature, q is a fair coin
    model = MLP(img_size=4, hidden=(1000,))
    sparsity = Structured()
    sparsity.attach(model, torch.randn(2, 3, 4, 4))
    gate = sparsity.parts["stage1.1"]
    with torch.no_grad():
        gate.logits.zero_()
        gate.beta.uniform_(1, 100)
        counts = []
        for number in range(20):
            sparsity.structure.draw(0, number)
            counts.append(gate.count)
    assert abs(sum(counts) / 20 - 500) < 5 * (250 / 20) ** 0.5 and len(set(counts)) > 10


def test_the_penalty_rewards_below_the_target_and_punishes_above() -> None:
    model = MLP(img_size=4, hidden=(40, 40))
    sparsity = Structured(target=0.4, penalty=0.1)
    sparsity.attach(model, torch.randn(2, 3, 4, 4))
    gates = list(sparsity.parts.values())

    def slope(active: int) -> float:
        for gate in gates:
            gate.active.copy_(torch.arange(40) < active)
        sparsity.structure._write()
        sparsity._set_lambda()
        for gate in gates:
            gate.logits.grad = None
        sparsity.penalty_backward()
        return 0.0 if gates[0].logits.grad is None else float(gates[0].logits.grad[0])

    u = (48 * 10 + 10 * 10 + 10 * 10) / (48 * 40 + 40 * 40 + 40 * 10)
    s = gates[0].logits[0].detach()
    expected = 0.1 * (u - 0.4) / 0.4 * torch.sigmoid(s) * (1 - torch.sigmoid(s))
    assert slope(10) == pytest.approx(float(expected)) and slope(10) < 0
    assert slope(40) == pytest.approx(0.1 * float(torch.sigmoid(s) * (1 - torch.sigmoid(s)))), "the distance counts as 1 at most"
    sparsity.target = sparsity.density()
    sparsity._set_lambda()
    assert sparsity.structure.weight == 0


def test_cost_of_a_stack_of_convolutions() -> None:
    model = SmallCNN((16, 32, 32), (1, 1, 1), in_chans=1)
    sparsity = Structured()
    sparsity.attach(model, torch.randn(2, 1, 8, 8))
    structure, total = sparsity.structure, 9 * 16 + 9 * 16 * 32 + 9 * 32 * 32 + 10 * 32
    assert sum(cost.total for cost in structure.costs.values()) == total == 14288

    def set_counts(*counts: int) -> None:
        for gate, count in zip(sparsity.parts.values(), counts):
            gate.active.copy_(torch.arange(len(gate.active)) < count)
        structure._write()

    set_counts(6, 8, 15)
    assert sparsity.density() == pytest.approx((9 * 6 + 9 * 6 * 8 + 9 * 8 * 15 + 10 * 15) / total)
    from papermix.metrics.count import flops

    x = torch.randn(1, 1, 8, 8)
    counted = flops(model, x)
    set_counts(16, 32, 32)
    assert sparsity.density() == 1 and structure.cost("flops") == 1
    whole = flops(model, x)
    set_counts(6, 8, 15)
    assert structure.cost("flops") == pytest.approx(counted / whole)
    assert sparsity.densities()["stage2.1.0.weight"] == pytest.approx(6 * 8 / (16 * 32))


def test_a_block_that_is_off_is_its_shortcut() -> None:
    model, x, sparsity = attached("resnet")
    assert sparsity.structure.block_names == ["stage1.0", "stage1.1", "stage2.1", "stage3.1"]
    gate = sparsity.parts["stage2.1 (block)"]
    gate.active.fill_(False)
    sparsity.structure._write()
    block = model.get_submodule("stage2.1")
    calls: list[int] = []
    block.conv2.register_forward_hook(lambda *_: calls.append(1))
    inside = torch.rand(2, 8, 4, 4)
    model.train()
    assert torch.equal(block(inside), inside)
    assert int(block.norm2.num_batches_tracked) == 0
    assert sparsity.widths()["stage2.1"] == sparsity.widths()["stage2.1.conv1"] == 0
    assert sparsity.densities()["stage2.1.conv1.weight"] == 0
    # its logits, and those of the channels inside, are still pulled by the penalty
    train_step(model, x)
    assert gate.logits.grad is None or not gate.logits.grad.any()
    sparsity.penalty_backward()
    assert gate.logits.grad.any() and sparsity.parts["stage2.1.conv1"].logits.grad.any()


def test_temperature_rises_only_for_what_is_in_use() -> None:
    _, _, sparsity = attached("resnet", temperature=16.0, interval=1.0)
    gates = dict(zip([*sparsity.structure.names, *sparsity.structure.block_names], sparsity.parts.values()))
    used = {name: gate.active.clone() for name, gate in gates.items()}
    off = [name for name in sparsity.structure.block_names if not used[name].item()]
    assert off and not all(mask.all() for mask in used.values())
    sparsity.update(2, 10)  # five intervals: 16 ** (1 / 4) each
    for name, gate in gates.items():
        inside_off = any(name.startswith(f"{block}.") for block in off)
        expected = torch.where(used[name] & (not inside_off), 2.0, 1.0)
        assert torch.allclose(gate.beta, expected), name


def test_something_always_survives() -> None:
    model, x, sparsity = attached("small_cnn")
    with torch.no_grad():
        for gate in sparsity.parts.values():
            gate.logits.fill_(-50.0)
            gate.logits[3] = -49.0
    sparsity.structure.draw(0, 1)
    assert all(gate.index.tolist() == [3] for gate in sparsity.parts.values())
    sparsity.update(0, 2)
    sparsity.harden()
    assert set(sparsity.widths().values()) == {1}
    assert torch.isfinite(model(x)).all()
    assert shrink(model).stage1[0][0].weight.shape[0] == 1


def loop(model: nn.Module, sparsity: Structured, optimizer: torch.optim.Optimizer, x: Tensor, steps: range, total: int) -> None:
    for step in steps:
        sparsity.update(step, total)
        optimizer.zero_grad()
        torch.manual_seed(step)
        F.cross_entropy(first(model(x)), torch.arange(len(x)) % 5).backward()
        sparsity.penalty_backward()
        optimizer.step()


@pytest.mark.parametrize("make", [torch.optim.Adam, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1)])
def test_what_rests_keeps_weights_and_optimizer_state(make: Any) -> None:
    model, x, sparsity = attached("resnet_streams", interval=3.0)
    optimizer = with_masks(make, param_groups(model))
    sparsity.watch(optimizer)
    masks = sparsity.structure.in_use()
    before = {p: p.detach().clone() for p in masks}
    loop(model, sparsity, optimizer, x, range(3), 60)
    state = {
        p: {k: v.clone() for k, v in optimizer.state[p].items() if torch.is_tensor(v)} for p in masks if p in optimizer.state
    }
    assert any(not torch.equal(p, before[p]) for p in masks)
    for p, mask in masks.items():
        assert torch.equal(p[~mask], before[p][~mask])
        assert all(not v[~mask].any() for v in state.get(p, {}).values() if v.shape == p.shape)
    # at the next draw some come back, and what leaves now rests with the momentum it has
    loop(model, sparsity, optimizer, x, range(3, 7), 60)
    later = sparsity.structure.in_use()
    moments = {p: {k: v.clone() for k, v in optimizer.state[p].items() if torch.is_tensor(v)} for p in later}
    kept = {p: p.detach().clone() for p in later}
    resting = [v[~later[p]] for p in later for v in moments[p].values() if v.shape == p.shape]
    assert any(bool(v.any()) for v in resting), "nothing that rests has a momentum to keep"
    loop(model, sparsity, optimizer, x, range(7, 10), 60)
    for p, mask in later.items():
        assert torch.equal(p[~mask], kept[p][~mask])
        for key, value in optimizer.state[p].items():
            if torch.is_tensor(value) and value.shape == p.shape:
                assert torch.equal(value[~mask], moments[p][key][~mask])


def test_grows_from_a_seed_and_shrinks_from_the_whole_to_the_same_budget() -> None:
    final = {}
    for seeds in (2, None):
        torch.manual_seed(0)
        model, x = MLP(img_size=8, hidden=(48, 48)), torch.randn(16, 3, 8, 8)
        sparsity = Structured(target=0.3, penalty=0.2, seed_channels=seeds, closed=-0.1, interval=2.0)
        sparsity.attach(model, x)
        sparsity.steps_per_epoch = 1
        optimizer = with_masks(lambda groups: torch.optim.SGD(groups, lr=0.05), param_groups(model))
        sparsity.watch(optimizer)
        at_first = sparsity.density()
        loop(model, sparsity, optimizer, x, range(120), 120)
        sparsity.harden()
        final[seeds] = sparsity.density()
        assert (at_first < 0.1 and final[seeds] > 2 * at_first) if seeds else (at_first == 1 and final[seeds] < 0.6)
        assert sparsity.training_cost() < 0.75
    assert abs(final[2] - final[None]) < 0.2 and all(0.15 < v < 0.5 for v in final.values()), final


def test_a_continued_run_goes_on_in_the_middle_of_an_interval() -> None:
    def made() -> tuple[nn.Module, Tensor, Structured, torch.optim.Optimizer]:
        model, x, sparsity = attached("resnet", interval=3.0)
        optimizer = with_masks(lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9), param_groups(model))
        sparsity.watch(optimizer)
        return model, x, sparsity, optimizer

    model, x, sparsity, optimizer = made()
    loop(model, sparsity, optimizer, x, range(8), 30)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    loop(model, sparsity, optimizer, x, range(8, 30), 30)
    other, _, again, second = made()
    other.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    again.watch(second)
    loop(other, again, second, x, range(8, 30), 30)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
    sparsity.harden()
    again.harden()
    assert sparsity.training_cost() == again.training_cost() and sparsity.widths() == again.widths()


def test_draws_are_the_same_for_everybody() -> None:
    a, b = attached("resnet")[2], attached("resnet")[2]
    torch.manual_seed(99)  # nothing else that is random matters
    for number in range(3):
        a.structure.draw(1, number)
        b.structure.draw(1, number)
        assert a.widths() == b.widths()
    b.structure.draw(2, 2)
    assert [g.index.tolist() for g in a.parts.values()] != [g.index.tolist() for g in b.parts.values()]


def test_goes_with_masks_of_another_sparsity() -> None:
    torch.manual_seed(0)
    model = SmallCNN((6, 10), (1, 2))
    pruning = Magnitude(density=0.5)
    pruning.attach(model)
    pruning.harden()
    sparsity = Structured(seed_channels=3)
    sparsity.attach(model, IMAGES)
    sparsity.structure.fix()
    model.eval()
    with torch.no_grad():
        expected = model(IMAGES)
        small = pruning.finalize(sparsity.finalize(model))
        assert torch.allclose(small(IMAGES), expected, atol=1e-5)
    assert small.stage1[0][0].weight.shape[0] == 3 and "parametrizations" not in str(list(small.state_dict()))


def test_a_carried_state_stays_of_full_width() -> None:
    model, tokens, sparsity = attached("lstm")
    model.eval()
    with torch.no_grad():
        _, state = model(tokens)
        assert all(s.shape[-1] == 9 for pair in state for s in pair)
        gate = sparsity.parts["lstm.0"]
        assert not any(s[..., ~gate.active].any() for pair in state for s in pair)
        sparsity.structure.draw(4, 2)
        model(tokens, state)


def test_a_network_that_cannot_be_cut_says_so() -> None:
    class Counts(nn.Module):
        """Knows its own number of channels by heart."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).mean((2, 3)).view(-1, 8))

    with pytest.raises(UserError, match=r"cannot be computed with some of its channels.*sparsity.exclude"):
        Structured(seed_channels=1).attach(Counts(), IMAGES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": 1.0}, "between 0 and 1"),
        ({"budget": "flop"}, "did you mean 'flops'"),
        ({"penalty": 0.0}, "penalty > 0"),
        ({"fix": 1.5}, "shares"),
        ({"seed_channels": 0}, "at least 1"),
        ({"closed": 0.2}, "closed <= 0 < open"),
        ({"lr": 0.0}, "above 0"),
    ],
)
def test_bad_settings(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Structured(**options)


def test_bad_networks() -> None:
    with pytest.raises(UserError, match=r"can gate no channels.*network's output"):
        Structured().attach(nn.Linear(3, 2), torch.randn(2, 3))
    with pytest.raises(UserError, match=r"matches no channel group or block.*did you mean 'stage1.0.conv1'"):
        Structured(include=["stage1.0.conv"]).attach(ResNetCifar(8, width=4), IMAGES)
    with pytest.raises(UserError, match="attach\\(model, example\\)"):
        Structured().attach(ResNetCifar(8, width=4))
    _, x, sparsity = attached("mlp")
    with pytest.raises(UserError, match="attached to a model already"):
        sparsity.attach(MLP(), x)
    with pytest.raises(UserError, match="carries no structured sparsity"):
        shrink(MLP())
    sparsity.steps_per_epoch = 0
    with pytest.raises(UserError, match="steps_per_epoch"):
        sparsity.update(0, 10)
