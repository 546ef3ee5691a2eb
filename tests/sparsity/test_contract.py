"""The contract of sparsities, shown on magnitude pruning: scope, any module, tied weights, stacking, baking."""

import copy
import logging
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from papermix.errors import UserError
from papermix.sparsity.base import Sparsity
from papermix.sparsity.magnitude import Magnitude
from papermix.sparsity.mask import Mask, finalize, plain_state


def convnet() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))


def transposed() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 8, 3, groups=1), nn.ConvTranspose1d(8, 6, 3, groups=2), nn.Flatten())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.layer(x)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM, **options) -> None:
        super().__init__()
        self.rnn = kind(5, 7, num_layers=2, batch_first=True, **options)
        self.head = nn.Linear(7 * (1 + self.rnn.bidirectional) if not self.rnn.proj_size else self.rnn.proj_size, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


def small_vit() -> nn.Module:
    import timm

    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3)


def small_resnet() -> nn.Module:
    import timm

    return timm.create_model("resnet10t", num_classes=3)


MODELS = {
    "convnet": (convnet, (2, 3, 8, 8)),
    "transposed": (transposed, (2, 3, 9)),
    "attention": (Attention, (2, 6, 16)),
    "lstm": (Recurrent, (2, 6, 5)),
    "lstm_proj": (lambda: Recurrent(proj_size=4), (2, 6, 5)),
    "gru_both_ways": (lambda: Recurrent(nn.GRU, bidirectional=True), (2, 6, 5)),
    "rnn": (lambda: Recurrent(nn.RNN), (2, 6, 5)),
    "timm_vit": (small_vit, (1, 3, 32, 32)),
    "timm_resnet": (small_resnet, (1, 3, 32, 32)),
    "one_layer": (lambda: nn.Linear(5, 4), (2, 5)),
}


@pytest.mark.parametrize("name", MODELS)
def test_any_model_masks_and_bakes(name) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x = make(), torch.randn(shape)
    model.eval()
    plain, dense = {k: v.clone() for k, v in model.state_dict().items()}, model(x)
    sparsity = Magnitude(density=0.3)
    sparsity.attach(model)
    torch.testing.assert_close(model(x), dense)
    sparsity.harden()
    # zero the tensors underneath by hand in a never-masked model: the same outputs
    by_hand = make().eval()
    by_hand.load_state_dict(plain)
    with torch.no_grad():
        for weight, part in zip(sparsity.weights.values(), sparsity.parts.values()):
            by_hand.get_parameter(weight.name).mul_(part.mask)
    masked = model(x)
    torch.testing.assert_close(masked, by_hand(x))
    assert not torch.allclose(masked, dense)

    # gradients of the masked model: finite, and zero where masked
    masked.square().mean().backward()
    for weight, part in zip(sparsity.weights.values(), sparsity.parts.values()):
        grad = weight.tensor.grad
        assert grad is not None and grad.isfinite().all() and not grad[~part.mask].any()
    assert any(weight.tensor.grad.any() for weight in sparsity.weights.values())
    copied = copy.deepcopy(model)

    for target in (copied, model):  # a copy bakes too, and leaves the original as it is
        assert finalize(target) is target
        assert target.state_dict().keys() == plain.keys() and not any(parametrize.is_parametrized(m) for m in target.modules())
        torch.testing.assert_close(target(x), masked, rtol=1e-6, atol=1e-6)
        for weight in sparsity.weights.values():
            assert int(target.get_parameter(weight.name).count_nonzero()) == int(0.3 * weight.numel + 0.5)
        torch.testing.assert_close(copy.deepcopy(target)(x), masked, rtol=1e-6, atol=1e-6)
    with pytest.raises(UserError, match="nothing to bake"):
        finalize(model)


def test_lstm_trains_and_moves_devices_under_masks() -> None:
    """The flat weights follow the optimizer, ``to`` and ``deepcopy`` between forwards."""
    torch.manual_seed(0)
    model, x = Recurrent(), torch.randn(2, 6, 5)
    sparsity = Magnitude(density=0.5, start=0.0, end=1.0, updates=3)
    sparsity.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    outputs = []
    for step in range(4):
        sparsity.update(step, 4)
        outputs.append(model(x))
        optimizer.zero_grad()
        outputs[-1].square().sum().backward()
        optimizer.step()
        model.rnn.flatten_parameters()
    assert all(not torch.equal(a, b) for a, b in pairwise(outputs))
    sparsity.harden()
    doubled = copy.deepcopy(model).double()
    torch.testing.assert_close(doubled(x.double()).float(), model(x))
    with torch.no_grad():
        doubled.rnn.weight_hh_l0.mul_(0)  # a computed tensor: no effect
        doubled.rnn.weight_hh_l0 = torch.zeros(28, 7, dtype=torch.float64)  # assigning goes to the tensor underneath
    assert not torch.allclose(doubled(x.double()).float(), model(x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(6, 4)
        self.decoder = nn.Linear(4, 6)
        self.decoder.weight = self.encoder.weight
        self.other = nn.Linear(4, 4)

    def forward(self, x):
        return self.decoder(self.other(self.encoder(x)))


def test_tied_weights_share_one_mask_or_stay_dense(caplog) -> None:
    model, x = Tied(), torch.arange(6)
    shape = {k: v.shape for k, v in model.state_dict().items()}
    sparsity = Magnitude(density=0.5, types=["linear", "embedding"])
    sparsity.attach(model)
    sparsity.harden()
    assert list(sparsity.densities()) == ["encoder.weight", "other.weight"] and sparsity.density() == 20 / 40
    assert torch.equal(model.encoder.weight, model.decoder.weight) and int(model.encoder.weight.count_nonzero()) == 12
    assert len({id(p) for p in model.parameters()}) == 4
    masked = model(x)
    masked.sum().backward()
    assert not sparsity.weights["encoder.weight"].tensor.grad[~sparsity.parts["encoder.weight"].mask].any()
    finalize(model)
    assert {k: v.shape for k, v in model.state_dict().items()} == shape and model.encoder.weight is model.decoder.weight
    torch.testing.assert_close(model(x), masked)

    with caplog.at_level(logging.WARNING):
        half = Magnitude(density=0.5)
        half.attach(Tied())
    assert list(half.parts) == ["other.weight"]
    assert "encoder.weight (embedding) = decoder.weight (linear)" in caplog.text


@pytest.mark.parametrize("order", [1, -1])
def test_two_sparsities_on_one_model(order) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), torch.randn(3, 8)
    plain = model.state_dict().keys()
    filters, fine = [Magnitude(density=0.5, pattern="filter", include=["0.*"]), Magnitude(density=0.25)][::order]
    filters.attach(model)
    fine.attach(model)
    filters.harden()
    fine.harden()
    # the second sees zeros where the first masks: the largest quarter is within what the first keeps
    expected = {1: 16, -1: int((filters.parts["0.weight"].mask & fine.parts["0.weight"].mask).sum())}[order]
    assert int(model[0].weight.count_nonzero()) == expected
    masked = model(x)
    fine.finalize(model)
    assert model.state_dict().keys() == plain
    torch.testing.assert_close(model(x), masked)


def test_weight_norm_stays_weight_norm() -> None:
    torch.manual_seed(0)
    model, x = parametrizations.weight_norm(nn.Linear(6, 4)), torch.randn(2, 6)
    sparsity = Magnitude(density=0.5)
    sparsity.attach(model)
    sparsity.harden()
    assert list(sparsity.densities()) == ["weight"] and int(model.weight.count_nonzero()) == 12
    masked = model(x)
    masked.sum().backward()
    finalize(model)
    assert [type(part).__name__ for part in model.parametrizations.weight] == ["_WeightNorm"]
    torch.testing.assert_close(model(x), masked)


def test_what_cannot_be_baked_says_so() -> None:
    class Square(nn.Module):
        def forward(self, weight):
            return weight.square()

    model = parametrize.register_parametrization(nn.Linear(6, 4), "weight", Square())
    sparsity = Magnitude(density=0.5)
    sparsity.attach(model)
    sparsity.harden()
    with pytest.raises(UserError, match="cannot be baked in under Square"):
        finalize(model)


def test_scope() -> None:
    def chosen(**options) -> list[str]:
        sparsity = Magnitude(**options)
        sparsity.attach(convnet())
        return list(sparsity.parts)

    assert chosen() == ["0.weight", "4.weight"]
    assert chosen(types=["conv"]) == chosen(include=["0.*"]) == chosen(exclude=["4.weight"]) == ["0.weight"]
    custom = nn.Module()
    custom.kernel = nn.Parameter(torch.randn(3, 3))
    other = Magnitude(types=["other"])
    other.attach(custom)
    assert list(other.parts) == ["kernel"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"types": ["lstm"]}, "no 'lstm'.*choose from linear, conv, recurrent"),
        ({"types": ["convs"]}, "did you mean 'conv'"),
        ({"include": ["0.wieght"]}, r"matches no weight \(did you mean '0.weight'\?\): there are 0.weight, 4.weight"),
        ({"types": ["embedding"]}, r"selects no weight of Sequential.*0.weight \(conv\), 4.weight \(linear\)"),
        ({"exclude": ["*"]}, "selects no weight"),
    ],
)
def test_errors(options, words) -> None:
    with pytest.raises(UserError, match=words):
        Magnitude(**options).attach(convnet())


def test_life_cycle_errors() -> None:
    sparsity = Magnitude()
    with pytest.raises(UserError, match="attach it"):
        sparsity.density()
    sparsity.attach(nn.Linear(4, 4))
    with pytest.raises(UserError, match="attached to a model already"):
        sparsity.attach(nn.Linear(4, 4))
    assert sparsity.penalty_backward() is None


def test_a_newcomer_needs_three_methods() -> None:
    """The smallest sparsity: what the base asks for is enough."""

    class Half(Sparsity):
        def make(self, weight):
            return Mask(weight.tensor)

        def update(self, step, total_steps):
            return False

        def harden(self):
            return any(m.set(torch.arange(m.mask.numel()).view_as(m.mask) % 2 == 0, 1) for m in self.parts.values())

    model, half = nn.Linear(4, 4), Half()
    half.attach(model)
    assert half.harden() and half.density() == 0.5 and not half.harden()
    assert int(half.finalize(model).weight.count_nonzero()) == 8


def test_plain_state_of_a_masked_model() -> None:
    for make in (lambda: nn.Linear(6, 4), Tied):
        model = make()
        for _ in range(2):
            sparsity = Magnitude(density=0.5, types=["linear", "embedding"], include=["*weight"])
            sparsity.attach(model)
            sparsity.harden()
        state = plain_state(model.state_dict())
        fresh = make()
        fresh.load_state_dict(state)
        finalize(model)
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert plain_state(state) == state
    with pytest.raises(UserError, match="bake the sparsity in first"):
        plain_state(parametrizations.weight_norm(nn.Linear(2, 2)).state_dict())
