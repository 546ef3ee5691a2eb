"""Gradients made orthogonal: the card's worked numbers, exact properties, scopes and orders, PCGrad, bad input."""

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.optimizers.projection import Blocks, orthogonalize, orthogonalize_rows_, pcgrad, weighted_sum

SHAPES = [(7, 5), (11,), (3, 2, 4)]


def random_gradients(
    count: int, seed: int = 0, common: float = 1.0, shapes: list[tuple[int, ...]] | None = None
) -> list[list[Tensor]]:
    """Gradients that share a direction, of very different lengths."""
    g = torch.Generator().manual_seed(seed)
    shapes = shapes or SHAPES
    shared = [torch.randn(s, generator=g) for s in shapes]
    return [[10.0**k * (common * c + torch.randn(c.shape, generator=g)) for c in shared] for k in range(count)]


def dot(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b))


def test_worked_numbers() -> None:
    g = [[torch.tensor([1.0, 0.0])], [torch.tensor([1.0, 1.0])], [torch.tensor([3.0, 4.0])]]
    h = orthogonalize(g)
    assert [x[0].tolist() for x in h] == [[1, 0], [0, 1], [0, 0]]
    assert weighted_sum(torch.stack([x[0] for x in h[:2]]), [1.0, 1.0]).tolist() == [1, 1]


@pytest.mark.parametrize("common", [0.0, 1.0, 10.0])
def test_each_is_orthogonal_to_all_gradients_before_it(common: float) -> None:
    g = random_gradients(5, common=common)
    h = orthogonalize(g)
    assert all(torch.equal(a, b) for a, b in zip(h[0], g[0]))
    for j, k in combinations(range(5), 2):
        assert abs(dot(h[k], g[j])) <= 1e-5 * (dot(g[k], g[k]) * dot(g[j], g[j])) ** 0.5
        assert dot(h[k], g[k]) > 0  # still downhill for its own loss


def test_millions_of_entries_and_half_precision_do_not_spoil_it() -> None:
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 5e-3)):
        g = [[t.to(dtype) for t in one] for one in random_gradients(3, shapes=[(1000, 1500)])]
        h = orthogonalize(g)
        assert h[2][0].dtype == dtype and h[2][0].isfinite().all()
        for j, k in combinations(range(3), 2):
            assert abs(dot(h[k], g[j])) <= bound * (dot(g[k], g[k]) * dot(g[j], g[j])) ** 0.5
    assert orthogonalize([[torch.ones(3, dtype=torch.float64)]])[0][0].dtype == torch.float64


def test_parallel_and_zero_gradients() -> None:
    g = random_gradients(1)[0]
    zero = [torch.zeros_like(t) for t in g]
    other = random_gradients(1, seed=1)[0]
    h = orthogonalize([g, [0.3 * t for t in g], zero, other])
    assert all(not t.any() for t in h[1] + h[2])  # exactly, so that noise is no direction for the next
    (alone,) = orthogonalize([g, other])[1:]
    assert all(torch.equal(a, b) for a, b in zip(h[3], alone))
    assert all(not t.any() for one in orthogonalize([zero, zero]) for t in one)


def test_disjoint_supports_are_left_bit_for_bit_and_none_is_zero() -> None:
    a, b, c = random_gradients(1)[0]
    h = orthogonalize([[a, None, None], [None, b, None], [None, None, c]])
    for k, own in enumerate((a, b, c)):
        assert torch.equal(h[k][k], own)
        assert all(not t.any() for i, t in enumerate(h[k]) if i != k)
    # a tensor that only one of two losses reaches counts in the length of the vector
    one = torch.tensor([1.0])
    g: list[list[Tensor | None]] = [[one, one], [one, None]]
    assert [t.tolist() for t in orthogonalize(g)[1]] == [[0.5], [-0.5]]
    assert orthogonalize([[a, None], [a, None]])[0][1].numel() == 0


def test_scopes() -> None:
    g = random_gradients(3)
    own = orthogonalize(g, scope="tensor")
    for i in range(len(SHAPES)):
        single = orthogonalize([[one[i]] for one in g])
        assert all(torch.allclose(own[k][i], single[k][0], rtol=1e-4, atol=1e-4 * 10**k) for k in range(3))
    layers = orthogonalize(g, scope=["a", "b", "a"])
    pair, middle = orthogonalize([[one[0], one[2]] for one in g]), orthogonalize([[one[1]] for one in g])
    for k in range(3):
        for found, wanted in ((layers[k][0], pair[k][0]), (layers[k][2], pair[k][1]), (layers[k][1], middle[k][0])):
            assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4 * 10**k)
    assert all(torch.equal(a, b) for x, y in zip(orthogonalize(g, scope=[0, 0, 0]), orthogonalize(g)) for a, b in zip(x, y))


def test_priority() -> None:
    g = random_gradients(3)
    latest = orthogonalize(g, priority="latest")
    turned = orthogonalize(g[::-1])[::-1]
    given = orthogonalize(g, priority=[2, 1, 0])
    for one, two, three in zip(latest, turned, given):
        assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(one, two, three))
    assert all(torch.equal(a, b) for a, b in zip(orthogonalize(g, priority=[1, 0, 2])[1], g[1]))


@pytest.mark.parametrize("normalise", ["first", "mean"])
def test_normalise(normalise: str) -> None:
    g = random_gradients(3, common=0.0)
    zero = [torch.zeros_like(t) for t in g[0]]
    norms = [dot(one, one) ** 0.5 for one in g]
    target = norms[0] if normalise == "first" else sum(norms) / 4
    scaled = orthogonalize([*g, zero], normalise=normalise)  # type: ignore[arg-type]
    wanted = orthogonalize([[t * target / n for t in one] for one, n in zip(g, norms)])
    for k in range(3):
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5 * target) for a, b in zip(scaled[k], wanted[k]))
    assert not any(t.any() for t in scaled[3])


def test_a_small_step_along_a_projected_gradient_leaves_the_first_loss() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x, y = torch.randn(16, 6).double(), torch.randn(16, 2).double()
    parameters = list(net.parameters())

    def losses() -> list[Tensor]:
        out = net(x)
        return [(out[:, 0] - y[:, 0]).square().mean(), (out.sum(1) - y[:, 1]).square().mean()]

    g = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses()]
    h = orthogonalize(g)[1]

    def change(direction: list[Tensor], lr: float) -> float:
        before = losses()[0].item()
        with torch.no_grad():
            for p, d in zip(parameters, direction):
                p.sub_(lr * d)
            after = losses()[0].item()
            for p, d in zip(parameters, direction):
                p.add_(lr * d)
        return abs(after - before)

    assert change(h, 1e-3) / change(h, 5e-4) == pytest.approx(4, rel=0.05)
    assert change(list(g[1]), 1e-3) / change(list(g[1]), 5e-4) == pytest.approx(2, rel=0.05)


def test_pcgrad() -> None:
    g = [[torch.tensor([1.0, 0.0])], [torch.tensor([-1.0, 1.0])]]
    h = pcgrad(g)
    assert h[0][0].tolist() == [0.5, 0.5] and h[1][0].tolist() == [0, 1]  # both change, and each against the other as it was
    friends = [[torch.tensor([1.0, 0.0])], [torch.tensor([1.0, 1.0])]]
    assert [t[0].tolist() for t in pcgrad(friends)] == [[1, 0], [1, 1]]
    three = [[t - 0.5 * (k == 1) * 3] for k, t in enumerate(torch.randn(3, 40, generator=torch.Generator().manual_seed(0)))]
    three[2] = [-three[0][0] + 0.1 * three[2][0]]
    a, b = (pcgrad(three, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert all(torch.equal(x[0], y[0]) for x, y in zip(a, b))
    assert dot(a[0], three[0]) > 0


def test_bad_input_is_refused() -> None:
    g = random_gradients(2)
    for arguments, words in (
        ({"scope": "globl"}, "did you mean 'global'"),
        ({"scope": ["a"]}, "1 labels for 3 tensors"),
        ({"priority": "earlest"}, "did you mean 'earliest'"),
        ({"priority": [0, 0]}, "no order of 2 losses"),
        ({"normalise": "mena"}, "did you mean 'mean'"),
    ):
        with pytest.raises(UserError, match=words):
            orthogonalize(g, **arguments)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="complex"):
        orthogonalize([[torch.ones(2, dtype=torch.complex64)]])
    with pytest.raises(UserError, match="sparse"):
        orthogonalize([[torch.eye(3).to_sparse()]])
    with pytest.raises(UserError, match="one list for each loss"):
        orthogonalize([g[0], g[1][:2]])
    with pytest.raises(UserError, match="no loss reaches"):
        orthogonalize([[None], [None]])


def test_rows_are_changed_in_place_and_infinities_are_not_hidden() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert orthogonalize_rows_(rows, Blocks([1, 1])) is rows and rows.tolist() == [[1, 0], [0, 1]]
    for bad in (float("inf"), float("nan")):
        rows = torch.tensor([[bad, 0.0], [1.0, 1.0]])
        assert not weighted_sum(orthogonalize_rows_(rows, Blocks([2])), [1.0, 1.0]).isfinite().all()
