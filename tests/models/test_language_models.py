"""LSTM and transformer language models: equality with PyTorch's, tying, dropout masks, causality, counts, bad input."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from papermix.errors import UserError
from papermix.models.generate import generate
from papermix.models.lstm_lm import LSTMLM, LockedDropout
from papermix.models.transformer_lm import TransformerLM, rotate

V, B, T = 11, 3, 7


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(0))


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# ---- LSTM -------------------------------------------------------------------------------------------------------------------


def test_lstm_without_dropout_is_a_plain_lstm(tokens):
    torch.manual_seed(0)
    model = LSTMLM(V, layers=2, width=8, embedding=6)
    assert len(model.lstm) == 1
    plain = nn.LSTM(6, 8, 2, batch_first=True)
    plain.load_state_dict(model.lstm[0].state_dict())
    logits, state = model(tokens)
    out, (h, c) = plain(model.embedding(tokens))
    torch.testing.assert_close(logits, model.head(out), rtol=0, atol=0)
    assert torch.equal(state[0][0], h) and torch.equal(state[0][1], c)


def test_lstm_layers_one_by_one_equal_the_fused_stack(tokens):
    torch.manual_seed(0)
    fused, single = LSTMLM(V, 2, 8), LSTMLM(V, 2, 8, dropout_hidden=0.5).eval()
    assert len(single.lstm) == 2
    for name, parameter in fused.lstm[0].named_parameters():
        layer = int(name[-1])
        with torch.no_grad():
            getattr(single.lstm[layer], name[:-1] + "0").copy_(parameter)
    single.embedding.load_state_dict(fused.embedding.state_dict())
    single.head.load_state_dict(fused.head.state_dict())
    torch.testing.assert_close(single(tokens)[0], fused(tokens)[0])


@pytest.mark.parametrize("options", [{}, {"layers": 2, "tied": True, "embedding": 5}])
def test_lstm_state_carries_on(tokens, options):
    model = LSTMLM(V, width=8, **options).eval()
    whole, after = model(tokens)
    first, state = model(tokens[:, :4])
    second, state = model(tokens[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(state, after)


def test_lstm_reset_zeroes_the_streams_that_start(tokens):
    model = LSTMLM(V, layers=2, width=8, dropout_hidden=0.1).eval()
    _, state = model(tokens)
    fresh = torch.tensor([True, False, True])
    reset = model.reset(state, fresh)
    for before, after in zip(state, reset):
        for x, y in zip(before, after):
            assert not y[:, fresh].any() and torch.equal(x[:, ~fresh], y[:, ~fresh])
    torch.testing.assert_close(model(tokens, reset)[0][0], model(tokens)[0][0])
    assert model.reset(state, torch.ones(5, dtype=torch.bool)) is None
    with pytest.raises(UserError, match="a state of 3 streams cannot go on with 5"):
        model.reset(state, torch.zeros(5, dtype=torch.bool))


def test_lstm_tied_weights_are_one_tensor():
    model = LSTMLM(V, layers=2, width=8, embedding=6, tied=True)
    assert model.head.weight is model.embedding.weight
    assert [lstm.hidden_size for lstm in model.lstm] == [8, 6]
    # embedding = output, output bias, two layers of 4 gates
    assert count(model) == V * 6 + V + 4 * (8 * (6 + 8) + 2 * 8) + 4 * (6 * (8 + 6) + 2 * 6)
    untied = LSTMLM(V, width=8)
    assert untied.head.weight is not untied.embedding.weight
    assert count(untied) == 2 * V * 8 + V + 4 * (8 * 16 + 2 * 8)


def test_locked_dropout_is_constant_over_time():
    torch.manual_seed(0)
    drop = LockedDropout(0.5)
    x = torch.ones(4, 9, 100)
    y = drop(x)
    assert torch.equal(y, y[:, :1].expand_as(y)) and set(y.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(y[0], y[1]) and not torch.equal(drop(x), y)
    assert drop.eval()(x) is x


def test_embedding_dropout_drops_a_token_everywhere():
    torch.manual_seed(0)
    model = LSTMLM(50, width=8, dropout_embedding=0.5)
    seen = {}
    model.input_dropout.register_forward_hook(lambda module, args, out: seen.update(x=out))
    tokens = torch.arange(50).repeat(2, 2)
    model(tokens)
    zero = (seen["x"] == 0).all(-1)
    assert 5 < int(zero[0, :50].sum()) < 45
    assert torch.equal(zero[:, :50], zero[:, 50:]) and torch.equal(zero[0], zero[1])
    kept = ~zero
    torch.testing.assert_close(seen["x"][kept], 2 * model.embedding(tokens)[kept])


def test_weight_drop_acts_in_training_only(tokens):
    torch.manual_seed(0)
    model = LSTMLM(V, layers=2, width=8, weight_drop=0.5)
    plain = LSTMLM(V, layers=2, width=8)
    names = {n.replace("parametrizations.", "").replace(".original", ""): p for n, p in model.named_parameters()}
    plain.load_state_dict({name: names[name] for name, _ in plain.named_parameters()})
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    torch.testing.assert_close(model.eval()(tokens)[0], plain(tokens)[0])
    model.train()(tokens)[0].sum().backward()
    copied = copy.deepcopy(model)
    assert parametrize.is_parametrized(copied.lstm[0])
    for layer in range(2):
        grad = model.lstm[0].parametrizations[f"weight_hh_l{layer}"].original.grad
        assert grad is not None and 0.2 < (grad == 0).float().mean() < 0.8


def test_forget_bias():
    for name, parameter in LSTMLM(V, layers=2, width=8, forget_bias=1.0).lstm.named_parameters():
        if "bias" in name:
            gate = parameter[8:16]
            assert torch.equal(gate, torch.full((8,), 1.0 if "bias_ih" in name else 0.0))
            assert parameter[:8].abs().max() > 0


@pytest.mark.parametrize(
    "model",
    [
        lambda: LSTMLM(V, 2, 8, 6, True, 0.1, 0.1, 0.1, 0.1, 0.1, 1.0),
        lambda: LSTMLM(V),
        lambda: TransformerLM(V, 2, 8, 2, positions="learned"),
        lambda: TransformerLM(V, 2, 8, 2, tied=False),
    ],
)
def test_every_parameter_gets_a_finite_gradient(model, tokens):
    torch.manual_seed(0)
    model = model()
    out = model(tokens)
    logits = out[0] if model.stateful else out
    assert logits.shape == (B, T, V)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


# ---- transformer ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_transformer_sees_no_future(tokens, positions):
    torch.manual_seed(0)
    model = TransformerLM(V, 2, 8, 2, positions=positions).eval()
    before = model(tokens)
    changed = tokens.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % V
    after = model(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any(-1).all()


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("tied", [True, False])
def test_transformer_parameter_count(positions, tied):
    layers, d, length, hidden = 3, 8, 32, 24
    model = TransformerLM(V, layers, d, 2, mlp_ratio=3.0, max_length=length, positions=positions, tied=tied)
    block = 4 * d * d + 4 * d + 2 * d * hidden + hidden + d + 4 * d
    expected = V * d * (1 if tied else 2) + (length * d if positions == "learned" else 0) + layers * block + 2 * d
    assert count(model) == expected
    assert (model.head.weight is model.embedding.weight) == tied


def test_transformer_has_gpt2s_size():
    with torch.device("meta"):
        model = TransformerLM(50257, 12, 768, 12, max_length=1024, positions="learned")
    assert count(model) == 124_439_808


def test_rotary_products_depend_on_distance():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 1, 10, 8)
    products = rotate(q)[0, 0] @ rotate(k)[0, 0].T
    for distance in range(-3, 4):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    torch.testing.assert_close(rotate(q).norm(dim=-1), q.norm(dim=-1))


# ---- sampling ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stateful", [True, False])
def test_greedy_sampling_repeats_the_models_own_choice(stateful):
    torch.manual_seed(0)
    model = LSTMLM(V, width=8, init_range=1.0) if stateful else TransformerLM(V, 1, 8, 2, max_length=64, tied=False)
    prompt = torch.tensor([1, 2, 3])
    written = generate(model, prompt, 6, temperature=0)
    model.eval()
    whole = torch.cat([prompt, written])[None]
    logits = model(whole)[0] if stateful else model(whole)
    assert torch.equal(logits.view(-1, V)[2:-1].argmax(-1), written)


def test_sampling_keeps_within_max_length_and_restores_modes():
    model = TransformerLM(V, 1, 8, 2, max_length=4)
    model.norm.eval()
    tokens = generate(model, torch.zeros(6, dtype=torch.int64), 10)
    assert tokens.shape == (10,) and model.training and not model.norm.training


# ---- errors -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: LSTMLM(V, width=0), "width=0"),
        (lambda: LSTMLM(V, dropout_out=1.0), "dropout_out=1.0"),
        (lambda: LSTMLM(V, dropout_hidden=0.2), "acts between LSTM layers"),
        (lambda: TransformerLM(V, width=10, heads=4), "heads=4 must divide width=10"),
        (lambda: TransformerLM(V, width=9, heads=3), "even width / heads"),
        (lambda: TransformerLM(V, positions="sine"), "positions='sine' must be learned or rotary"),
        (lambda: TransformerLM(V, 1, 8, 2, max_length=4)(torch.zeros(1, 5).long()), "5 tokens exceed model.max_length=4"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(UserError, match=message):
        make()
