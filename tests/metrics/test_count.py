"""Parameters, density and FLOPs against sums by hand."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from papermix.metrics.count import density, flops, parameters
from papermix.sparsity.magnitude import Magnitude


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(6, 4)
        self.decoder = nn.Linear(4, 6, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(self.encoder(x))


def prune(model: nn.Module, **options) -> nn.Module:
    sparsity = Magnitude(**options)
    sparsity.attach(model)
    sparsity.harden()
    return model


def test_parameters() -> None:
    assert parameters(Tied()) == {"total": 24, "trainable": 24}
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    assert parameters(model) == {"total": 23, "trainable": 8}
    assert parameters(prune(model, density=0.5)) == {"total": 23, "trainable": 8}
    model[1].bias.is_mask = True
    assert parameters(model) == {"total": 21, "trainable": 6}


def test_density_masked_baked_and_dense() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10), nn.Linear(10, 10))
    assert density(model) == 1.0 and density(nn.BatchNorm1d(3)) == 1.0
    prune(model, density=0.2, include=["0.*"])
    assert density(model) == 0.6
    from papermix.sparsity.mask import finalize

    assert density(finalize(model)) == 0.6
    assert density(prune(Tied(), density=0.5, types=["linear", "embedding"])) == 0.5


def test_convnet() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8 * 36, 5))
    convs = 2 * (8 * 8) * 8 * 3 * 9 + 2 * 36 * 8 * 9
    assert flops(model, torch.randn(4, 3, 8, 8)) == convs + 2 * 288 * 5
    assert flops(model, torch.randn(4, 3, 8, 8), effective=True) == convs + 2 * 288 * 5
    prune(model, density=0.25, types=["linear"])
    assert flops(model, torch.randn(1, 3, 8, 8)) == convs + 2 * 288 * 5
    assert flops(model, torch.randn(1, 3, 8, 8), effective=True) == convs + 2 * 288 * 5 // 4


def test_baked_zeros_count_like_masked_ones() -> None:
    from papermix.sparsity.mask import finalize

    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 5)), torch.randn(1, 3, 4, 4)
    effective = flops(prune(model, density=0.3), x, effective=True)
    assert 0 < effective < 0.32 * flops(model, x)
    assert flops(finalize(model), x, effective=True) == effective


@pytest.mark.parametrize(
    ("rnn", "matrices"),
    [
        (nn.LSTM(5, 7, num_layers=2, batch_first=True), 28 * 5 + 28 * 7 + 28 * 7 + 28 * 7),
        (nn.LSTM(5, 7, proj_size=3, batch_first=True), 28 * 5 + 28 * 3 + 3 * 7),
        (nn.GRU(5, 7, bidirectional=True, batch_first=True), 2 * (21 * 5 + 21 * 7)),
        (nn.RNN(5, 7, batch_first=True), 7 * 5 + 7 * 7),
    ],
    ids=["lstm", "projected", "gru", "rnn"],
)
@pytest.mark.parametrize("flag", [True, False])
def test_recurrent(rnn, matrices, flag) -> None:
    rnn.train(flag)
    assert flops(rnn, torch.randn(3, 11, 5)) == 2 * 11 * matrices


def test_recurrent_sparse_packed_and_cell() -> None:
    model = nn.LSTM(6, 8, batch_first=True)
    dense = 2 * 10 * (32 * 6 + 32 * 8)
    prune(model, density=0.25)
    assert flops(model, torch.randn(2, 10, 6)) == dense
    assert flops(model, torch.randn(2, 10, 6), effective=True) == dense // 4

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(6, 8)

        def forward(self, x):
            return self.rnn(input=pack_sequence([x[0], x[0, :4]]))

    assert flops(Packed(), torch.randn(1, 10, 6)) == 2 * 14 * (32 * 6 + 32 * 8)

    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(6, 8)

        def forward(self, x):
            state = None
            for t in range(x.shape[1]):
                state = self.cell(x[:, t], state)
            return state

    assert flops(Unrolled(), torch.randn(2, 10, 6)) == dense


def test_attention() -> None:
    T, E = 6, 16
    layer = nn.TransformerEncoderLayer(E, 2, 32, batch_first=True)
    linear = 2 * T * (4 * E * E + 2 * E * 32)
    products = 2 * 2 * T * T * E
    x = torch.randn(3, T, E)
    for flag in (True, False):
        assert flops(layer.train(flag), x) == linear + products
    prune(layer, density=0.25)
    assert flops(layer, x) == linear + products
    assert flops(layer, x, effective=True) == linear // 4 + products


def test_tied_weights_and_tokens() -> None:
    model = prune(Tied(), density=0.5, types=["linear", "embedding"])
    tokens = torch.zeros(2, 9, dtype=torch.int64)
    assert flops(model, tokens) == 2 * 9 * 24 and flops(model, tokens, effective=True) == 9 * 24


@pytest.mark.parametrize("effective", [True, False])
def test_leaves_no_trace(effective) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)).train()
    prune(model, density=0.5)
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rng, flags = torch.get_rng_state(), [m.training for m in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    flops(model, torch.ones(8, 4), effective=effective)
    with pytest.raises(RuntimeError):
        flops(model, torch.ones(8, 5), effective=effective)
    assert torch.equal(rng, torch.get_rng_state()) and flags == [m.training for m in model.modules()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and torch.backends.mha.get_fastpath_enabled() is fused
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
