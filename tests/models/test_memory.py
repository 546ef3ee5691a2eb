"""All networks with a memory: time, states, queries, sparsity, bad input; the parts of the DNC by hand."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from papermix.errors import UserError
from papermix.models.memory.conv_lstm import ConvLSTMMemory
from papermix.models.memory.dnc import DNC, allocation_weights, content_weights, links_after, usage_after
from papermix.models.memory.interface import MemoryModel
from papermix.models.memory.lstm import LSTMMemory
from papermix.models.multigrid.memory import MultigridMemory
from papermix.sparsity.continuous import ContinuousSparsification
from papermix.sparsity.growing import Growing
from papermix.sparsity.hard_concrete import HardConcrete
from papermix.sparsity.magnitude import Magnitude
from papermix.sparsity.structured import Structured

MODELS = {
    "multigrid": lambda *shapes: MultigridMemory(*shapes, (1, 2, 2), (2, 3, 3), (2, 1), 4),
    "peepholes": lambda *shapes: MultigridMemory(*shapes, (2, 2, 2), (2, 3, 3), (2, 1), 4, peepholes=True, norm="batch"),
    "conv_lstm": lambda *shapes: ConvLSTMMemory(*shapes, channels=(2, 3, 3), decoder_channels=(4,)),
    "lstm": lambda *shapes: LSTMMemory(*shapes, width=6, layers=2),
    "dnc": lambda *shapes: DNC(*shapes, width=6, layers=2, slots=5, word=4, reads=2),
}
SHAPES = [([2, 3, 3], [1, 3, 3], [1, 6, 6]), ([9], None, [4]), ([1, 8, 8], [1, 8, 8], [3]), ([7], [5], [2, 5, 5])]
B, T = 3, 4


@pytest.fixture(params=list(MODELS))
def make(request):
    torch.manual_seed(0)
    return MODELS[request.param]


def inputs(shapes) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(B, T, *shapes[0], generator=generator)
    return frames, None if shapes[1] is None else torch.randn(B, T, *shapes[1], generator=generator)


def step(x: Tensor | None, t: int) -> Tensor | None:
    return None if x is None else x[:, t : t + 1]


# ---- all of them ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", SHAPES)
def test_single_steps_equal_one_call(make, shapes):
    model: MemoryModel = make(*shapes).eval()
    assert model.stateful
    frames, query = inputs(shapes)
    whole, after = model(frames, None, query)
    assert whole.shape == (B, T, *shapes[2])
    state, answers = None, []
    for t in range(T):
        answer, state = model(step(frames, t), state, step(query, t))
        answers.append(answer)
    torch.testing.assert_close(torch.cat(answers, 1), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, after, rtol=1e-5, atol=1e-6)
    assert all(len(x) == B for x in tree_leaves(state))


def test_zeros_are_where_all_begins(make):
    model = make(*SHAPES[0]).eval()
    frames, query = inputs(SHAPES[0])
    answers, state = model(frames, None, query)
    again = model(frames, tree_map(torch.zeros_like, state), query)[0]
    torch.testing.assert_close(again, answers)
    assert not torch.allclose(model(frames, state, query)[0], answers)


def test_reset_zeroes_the_sequences_that_start(make):
    model = make(*SHAPES[0]).eval()
    frames, query = inputs(SHAPES[0])
    answers, state = model(frames, None, query)
    fresh = torch.tensor([True, False, True])
    reset = model.reset(state, fresh)
    for x, y in zip(tree_leaves(state), tree_leaves(reset)):
        assert not y[fresh].any() and torch.equal(x[~fresh], y[~fresh])
    mixed = model(frames, reset, query)[0]
    torch.testing.assert_close(mixed[fresh], answers[fresh])
    assert not torch.allclose(mixed[1], answers[1])
    assert model.reset(state, torch.ones(5, dtype=torch.bool)) is None
    with pytest.raises(UserError, match="a state of 3 sequences cannot go on with 5"):
        model.reset(state, torch.zeros(5, dtype=torch.bool))


def test_gradients_flow_through_states_unless_detached(make):
    model = make(*SHAPES[0])
    frames, query = inputs(SHAPES[0])
    first = frames[:, :2].clone().requires_grad_()
    _, state = model(first, None, query[:, :2])
    later = model(frames[:, 2:], state, query[:, 2:])[0].square().sum()
    (gradient,) = torch.autograd.grad(later, first, retain_graph=True)
    assert gradient.abs().sum() > 0
    cut = model(frames[:, 2:], tree_map(Tensor.detach, state), query[:, 2:])[0].square().sum()
    assert torch.autograd.grad(cut, first, allow_unused=True) == (None,)


@pytest.mark.parametrize("shapes", SHAPES[:2])
def test_every_parameter_gets_a_finite_gradient(make, shapes):
    model = make(*shapes)
    for steps in (T, 1):
        model.zero_grad()
        frames, query = inputs(shapes)
        answers, _ = model(frames[:, :steps], None, None if query is None else query[:, :steps])
        answers.square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        # one step from zeros says nothing about what recurs, several do
        assert steps == 1 or all(p.grad.any() for p in model.parameters())


def test_weights_come_back_from_a_state_dict(make):
    model, other = make(*SHAPES[0]).eval(), make(*SHAPES[0]).eval()
    frames, query = inputs(SHAPES[0])
    answers = model(frames, None, query)[0]
    assert not torch.allclose(other(frames, None, query)[0], answers)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(frames, None, query)[0], answers)
    assert torch.equal(copy.deepcopy(model)(frames, None, query)[0], answers)


def test_half_precision(make):
    model = make(*SHAPES[0])
    frames, query = inputs(SHAPES[0])
    answers, _ = model(frames, None, query)
    with torch.autocast("cpu", torch.bfloat16):
        half, state = model(frames, None, query)
        half, _ = model(frames, state, query)
        half.float().square().mean().backward()
    assert half.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters())
    model = model.to(torch.bfloat16)
    half, state = model(frames.bfloat16(), None, query.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), answers, atol=0.1, rtol=0.1)
    assert model(frames.bfloat16(), state, query.bfloat16())[0].isfinite().all()


@pytest.mark.parametrize("sparsity", [Magnitude, ContinuousSparsification, HardConcrete])
def test_sparse_weights(make, sparsity):
    model = make(*SHAPES[0])
    frames, query = inputs(SHAPES[0])
    sparse = sparsity(density=0.5) if sparsity is Magnitude else sparsity()
    sparse.attach(model)
    sparse.update(0, 10)
    calls = []
    for name, part in sparse.parts.items():
        part.register_forward_hook(lambda *_, name=name: calls.append(name))
    before = model(frames, None, query)[0]
    # one mask for all steps of a call
    assert sorted(calls) == sorted(sparse.parts)
    before.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    if sparsity is Magnitude:
        sparse.harden()
        assert sparse.density() == pytest.approx(0.5, abs=0.05)
        masked = model.eval()(frames, None, query)[0]
        assert not torch.allclose(masked, before)
        torch.testing.assert_close(sparse.finalize(model)(frames, None, query)[0], masked)


@pytest.mark.parametrize("sparsity", [Structured, Growing])
def test_changing_widths(make, sparsity):
    model = make(*SHAPES[0])
    frames, query = inputs(SHAPES[0])
    whole = sum(p.numel() for p in model.parameters())
    given = {"seed_channels": 2} if sparsity is Structured else {"stages": 2, "start": 0.5}
    changed = sparsity(**given)
    if isinstance(model, DNC):
        with pytest.raises(UserError, match=r"can gate no channels of this DNC|nothing in this DNC can grow"):
            changed.attach(model, frames)
        return
    changed.attach(model, frames)
    for _ in range(2):
        answers, state = model(frames, None, query)
        answers, _ = model(frames, state, query)
        answers.square().mean().backward()
        if sparsity is Growing and changed.stage == 0:
            assert sum(p.numel() for p in model.parameters()) < whole
            changed.grow([])
    if sparsity is Growing:
        assert sum(p.numel() for p in model.parameters()) >= whole


@pytest.mark.parametrize(
    "frames, query, message",
    [
        ((B, T, 2, 3, 4), None, r"frames of size \[3, 4, 2, 3, 4\] do not fit \w+: give \[B, T, 2, 3, 3\]"),
        ((B, 2, 3, 3), None, "frames of size"),
        ((B, 0, 2, 3, 3), None, "frames of size"),
        ((B, T, 2, 3, 3), (B, T, 2, 3, 3), r"query of size \[3, 4, 2, 3, 3\] do not fit \w+: give \[B, T, 1, 3, 3\]"),
        ((B, T, 2, 3, 3), (B, 2, 1, 3, 3), r"queries \[3, 2\] do not go with frames \[3, 4\]"),
    ],
)
def test_shapes_that_do_not_fit(make, frames, query, message):
    with pytest.raises(UserError, match=message):
        make(*SHAPES[0])(torch.zeros(frames), None, None if query is None else torch.zeros(query))


def test_states_and_queries_that_do_not_fit(make):
    model = make(*SHAPES[1])
    _, state = model(torch.zeros(B, T, 9))
    with pytest.raises(UserError, match="a state of 3 sequences cannot go on with 2: keep the batch size"):
        model(torch.zeros(2, T, 9), state)
    with pytest.raises(UserError, match=r"this \w+ takes no queries: set model.query_shape"):
        model(torch.zeros(B, T, 9), None, torch.zeros(B, T, 1))


# ---- LSTM -------------------------------------------------------------------------------------------------------------------


def test_an_lstm_memory_is_an_lstm_with_a_linear_layer():
    torch.manual_seed(0)
    model = LSTMMemory([2, 3, 3], [1, 3, 3], [4], width=6, layers=2, forget_bias=1.5)
    frames, query = inputs(([2, 3, 3], [1, 3, 3]))
    plain = nn.LSTM(27, 6, 2, batch_first=True)
    plain.load_state_dict(model.lstm.state_dict())
    out, (h, c) = plain(torch.cat([frames.flatten(2), query.flatten(2)], 2))
    answers, state = model(frames, None, query)
    torch.testing.assert_close(answers, model.head(out))
    torch.testing.assert_close(state, (h.transpose(0, 1), c.transpose(0, 1)))
    forget = [(model.lstm.bias_ih_l0 + model.lstm.bias_hh_l0)[6:12], (model.lstm.bias_ih_l1 + model.lstm.bias_hh_l1)[6:12]]
    assert all(torch.equal(f, torch.full((6,), 1.5)) for f in forget)
    assert model.cells == 12


# ---- DNC --------------------------------------------------------------------------------------------------------------------


def test_allocation_gives_out_the_least_used_slots():
    usage = torch.tensor([[0.9, 0.1, 0.5], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    expected = torch.tensor([[0.1 * 0.1 * 0.5, 0.9, 0.1 * 0.5], [1, 0, 0], [0, 0, 1], [0, 0, 0]])
    torch.testing.assert_close(allocation_weights(usage), expected)


def test_allocation_has_a_gradient_also_where_slots_are_empty():
    usage = torch.tensor([[0.0, 0.3, 0.0, 0.7]], requires_grad=True)
    allocation_weights(usage)[0, 1].backward()
    # (1 - u1) u0 u2 with the order held fixed
    torch.testing.assert_close(usage.grad, torch.zeros(1, 4))
    usage = torch.tensor([[0.2, 0.3]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(allocation_weights, (usage,))


def test_usage_grows_by_writing_and_falls_by_freeing():
    usage, written = torch.tensor([[0.5, 0.2, 0.0]]), torch.tensor([[0.4, 0.0, 1.0]])
    read = torch.tensor([[[1.0, 0.5, 0.0], [0.0, 0.5, 0.5]]])
    torch.testing.assert_close(usage_after(usage, written, read, torch.zeros(1, 2)), torch.tensor([[0.7, 0.2, 1.0]]))
    freed = usage_after(usage, written, read, torch.tensor([[1.0, 0.5]]))
    torch.testing.assert_close(freed, torch.tensor([[0.0, 0.2 * 0.5 * 0.75, 0.75]]))


def test_links_remember_the_order_of_writing():
    link, precedence = torch.zeros(1, 4, 4), torch.zeros(1, 4)
    for slot in (0, 2, 1):
        link, precedence = links_after(link, precedence, F.one_hot(torch.tensor([slot]), 4).float())
    expected = torch.zeros(4, 4)
    expected[2, 0] = expected[1, 2] = 1
    assert torch.equal(link[0], expected) and precedence.tolist() == [[0, 1, 0, 0]]
    # a slot that is written again loses its old links
    link, _ = links_after(link, precedence, torch.tensor([[0.0, 0.0, 1.0, 0.0]]))
    expected = torch.zeros(4, 4)
    expected[2, 1] = 1
    assert torch.equal(link[0], expected)


def test_links_of_soft_writes():
    torch.manual_seed(0)
    link, precedence = torch.rand(2, 3, 3) / 3, torch.rand(2, 3) / 3
    link = link * (1 - torch.eye(3))
    w = torch.rand(2, 3) / 3
    now, after = links_after(link, precedence, w)
    for b in range(2):
        for i in range(3):
            for j in range(3):
                value = 0.0 if i == j else (1 - w[b, i] - w[b, j]) * link[b, i, j] + w[b, i] * precedence[b, j]
                assert now[b, i, j] == pytest.approx(float(value))
            assert after[b, i] == pytest.approx(float((1 - w[b].sum()) * precedence[b, i] + w[b, i]))


def test_content_is_found_by_its_direction():
    memory = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, 0.0]]])
    weights = content_weights(memory, torch.tensor([[[5.0, 0.0], [0.0, 0.1]]]), torch.tensor([[2.0, 50.0]]))
    torch.testing.assert_close(weights[0, 0], torch.tensor([2.0, 0.0, -2.0, 0.0]).softmax(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(weights[0, 1], torch.tensor([0.0, 1.0, 0.0, 0.0]), atol=1e-4, rtol=0)
    memory = torch.zeros(1, 3, 2, requires_grad=True)
    content_weights(memory, torch.ones(1, 1, 2), torch.ones(1, 1))[0, 0, 0].backward()
    assert memory.grad.isfinite().all()


def sig(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def by_hand(model: DNC, xs: Tensor) -> Tensor:
    """The equations of the paper's Methods for one sequence [T, D], slot by slot and head by head."""
    n, w, r, width, layers = model.slots, model.word, model.reads, model.width, model.layers
    memory, usage, written, precedence = torch.zeros(n, w), torch.zeros(n), torch.zeros(n), torch.zeros(n)
    link, read, vectors = torch.zeros(n, n), torch.zeros(r, n), torch.zeros(r, w)
    hs, cs = [torch.zeros(width)] * layers, [torch.zeros(width)] * layers
    answers = []

    def found(key: Tensor, strength: Tensor) -> Tensor:
        cosine = torch.stack([m @ key / ((m @ m + 1e-6).sqrt() * (key @ key + 1e-6).sqrt()) for m in memory])
        exponent = (strength * cosine).exp()
        return exponent / exponent.sum()

    for x in xs:
        given = model.input.weight @ x + model.input.bias
        for k in range(layers):
            below = [hs[k - 1]] if k else []
            own = model.recurrent[k].weight @ torch.cat([*vectors, *below, hs[k]])
            i, f, o, g = (given[4 * width * k : 4 * width * (k + 1)] + own).view(4, width)
            cs[k] = sig(f) * cs[k] + sig(i) * g.tanh()
            hs[k] = sig(o) * cs[k].tanh()
        xi = model.interface.weight @ torch.cat(hs) + model.interface.bias
        assert len(xi) == w * r + 3 * w + 5 * r + 3
        keys, xi = xi[: r * w].view(r, w), xi[r * w :]
        strengths, xi = 1 + (1 + xi[:r].exp()).log(), xi[r:]
        key, strength, xi = xi[:w], 1 + (1 + xi[w].exp()).log(), xi[w + 1 :]
        erase, value, xi = sig(xi[:w]), xi[w : 2 * w], xi[2 * w :]
        free, allocate, write, modes = sig(xi[:r]), sig(xi[r]), sig(xi[r + 1]), xi[r + 2 :].view(r, 3).softmax(1)
        # write
        kept = torch.stack([1 - free[h] * read[h] for h in range(r)]).prod(0)
        usage = (usage + written - usage * written) * kept
        allocation, product = torch.zeros(n), torch.ones(())
        for slot in sorted(range(n), key=lambda s: float(usage[s])):
            allocation[slot] = (1 - usage[slot]) * product
            product = product * usage[slot]
        written = write * (allocate * allocation + (1 - allocate) * found(key, strength))
        memory = memory * (1 - torch.outer(written, erase)) + torch.outer(written, value)
        old = link.clone()
        for a in range(n):
            for b in range(n):
                link[a, b] = 0 if a == b else (1 - written[a] - written[b]) * old[a, b] + written[a] * precedence[b]
        precedence = (1 - written.sum()) * precedence + written
        # read
        heads = [
            modes[h, 0] * (link.T @ read[h]) + modes[h, 1] * found(keys[h], strengths[h]) + modes[h, 2] * (link @ read[h])
            for h in range(r)
        ]
        read = torch.stack(heads)
        vectors = read @ memory
        answers.append(model.head.weight @ torch.cat([*hs, *vectors]) + model.head.bias)
    return torch.stack(answers)


def test_a_dnc_follows_the_papers_equations():
    torch.manual_seed(0)
    model = DNC([3], [2], [4], width=5, layers=2, slots=4, word=3, reads=2)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # gates that open and close
        frames, query = torch.randn(2, 5, 3), torch.randn(2, 5, 2)
        answers, (_, memory) = model(frames, None, query)
        for b in range(2):
            torch.testing.assert_close(answers[b], by_hand(model, torch.cat([frames[b], query[b]], 1)), rtol=1e-4, atol=1e-5)
    _, usage, written, precedence, link, read, _ = memory
    assert all((x >= 0).all() and (x <= 1 + 1e-6).all() for x in (usage, written, precedence, link, read))
    assert (written.sum(1) <= 1 + 1e-6).all() and (read.sum(2) <= 1 + 1e-6).all()
    assert model.cells == 4 * 3 + 2 * 5 and all(x.dtype == torch.float32 for x in memory)
