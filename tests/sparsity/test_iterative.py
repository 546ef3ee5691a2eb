"""The comparisons of Continuous Sparsification: iterative magnitude pruning, hard concrete gates, masks that never move."""

import pytest
import torch
from torch import nn

from papermix.errors import UserError
from papermix.sparsity.fixed import RandomMask, Ticket
from papermix.sparsity.hard_concrete import BETA, GAMMA, ZETA, HardConcrete, gate, open_probability
from papermix.sparsity.iterative import IterativeMagnitude
from papermix.sparsity.mask import finalize, plain_state


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30, 10))
    with torch.no_grad():
        model[3].weight.mul_(3)
    return model


def test_density_falls_geometrically_over_all_layers() -> None:
    model, sparsity = net(), IterativeMagnitude(rounds=10, rate=0.2, rewind_between=False)
    sparsity.attach(model)
    before = {name: part.mask.clone() for name, part in sparsity.parts.items()}
    for r in range(11):
        moved = sparsity.update(10 * r, 110)
        assert moved == (r > 0)
        assert sum(int(part.kept()) for part in sparsity.parts.values()) == int(900 * 0.8**r + 0.5)
        for name, part in sparsity.parts.items():
            assert not (part.mask & ~before[name]).any()
            before[name] = part.mask.clone()
        with torch.no_grad():
            for weight in sparsity.weights.values():  # what was pruned may grow, and stays pruned
                weight.tensor.add_(torch.randn(weight.tensor.shape, generator=torch.Generator().manual_seed(r)))
        assert not sparsity.update(10 * r + 5, 110)
    assert sparsity.density() == pytest.approx(0.8**10, abs=1 / 900) and not sparsity.harden()


def test_the_threshold_is_global() -> None:
    model, sparsity = net(), IterativeMagnitude(rounds=1, rate=0.7)
    sparsity.attach(model)
    values = torch.cat([w.tensor.abs().flatten() for w in sparsity.weights.values()])
    threshold = values.sort(descending=True).values[269]
    sparsity.update(0, 20)
    sparsity.update(10, 20)
    for name, part in sparsity.parts.items():
        assert torch.equal(part.mask, sparsity.weights[name].tensor.abs() >= threshold)
    shares = sparsity.densities()
    assert shares["3.weight"] > 2 * shares["0.weight"]


def test_layers_alike(caplog) -> None:
    model, sparsity = net(), IterativeMagnitude(rounds=2, rate=0.5, scope="layer")
    sparsity.attach(model)
    sparsity.update(20, 30)
    assert sparsity.densities() == {"0.weight": 0.25, "3.weight": 0.25}
    # the small layer dies where all compete, and is said to
    model, sparsity = net(), IterativeMagnitude(rounds=1, rate=0.99)
    with torch.no_grad():
        model[0].weight.mul_(0.01)
    sparsity.attach(model)
    sparsity.harden()
    assert "masked all of 0.weight" in caplog.text


@pytest.mark.parametrize(
    ("options", "back"),
    [({}, [True, True]), ({"rewind_between": False}, [False, True]), ({"retrain": "finetune"}, [False, False])],
    ids=["IMP", "IMP-C", "pruning"],
)
def test_rewinding(options, back) -> None:
    model, sparsity = net(), IterativeMagnitude(rounds=2, rate=0.5, rewind="3 steps", **options)
    sparsity.attach(model)
    early = {}
    for step in range(30):
        round_before = sparsity.round
        sparsity.update(step, 30)
        state = {k: v for k, v in model.state_dict().items() if not k.endswith((".mask", ".updates"))}
        if step == 3:
            early = {k: v.clone() for k, v in state.items()}
        if sparsity.round != round_before:
            assert all(torch.equal(v, early[k]) for k, v in state.items()) == back[sparsity.round - 1], step
        with torch.no_grad():
            for v in state.values():
                v.add_(1)
    assert (sparsity.snapshot is None) == (options.get("retrain") == "finetune")


def test_search_that_stops_early_still_ends_sparse() -> None:
    model, sparsity = net(), IterativeMagnitude(rounds=4, rate=0.5)
    sparsity.attach(model)
    sparsity.update(0, 50)
    assert sparsity.harden() and sparsity.density() == pytest.approx(0.5**4, abs=1 / 900) and not sparsity.harden()


def test_state_goes_on() -> None:
    """A second object that takes over both states goes on as the first does."""
    results = []
    for cut in (False, True):
        model, sparsity = net(), IterativeMagnitude(rounds=3, rate=0.5, rewind=0.2)
        sparsity.attach(model)
        for step in range(40):
            if cut and step in (1, 10, 25):
                kept, own = {k: v.clone() for k, v in model.state_dict().items()}, sparsity.state_dict()
                model, sparsity = net(), IterativeMagnitude(rounds=3, rate=0.5, rewind=0.2)
                sparsity.attach(model)
                model.load_state_dict(kept)
                sparsity.load_state_dict(own)
            sparsity.update(step, 40)
            with torch.no_grad():
                for i, p in enumerate(model.parameters()):
                    p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + i)))
        results.append(model.state_dict())
    assert all(torch.equal(v, results[1][k]) for k, v in results[0].items())


# ---- hard concrete ----------------------------------------------------------------------------------------------------------


def test_gates_follow_the_paper() -> None:
    torch.manual_seed(0)
    model, sparsity = nn.Linear(200, 200, bias=False), HardConcrete(keep=0.3, penalty=0.2)
    sparsity.attach(model)
    part, weight = sparsity.parts["weight"], sparsity.weights["weight"].tensor.detach()
    with torch.no_grad():
        part.log_alpha.fill_(-0.8)
    z = (model.weight / weight).detach()
    closed, opened = float((z == 0).float().mean()), float(open_probability(torch.tensor(-0.8)))
    assert closed == pytest.approx(1 - opened, abs=0.01) and 0 <= float(z.min()) and float(z.max()) <= 1 + 1e-6
    # P(z = 1): the sigmoid must pass (1 - gamma) / (zeta - gamma)
    edge = torch.tensor((1 - GAMMA) / (ZETA - GAMMA)).logit()
    assert float((z > 1 - 1e-6).float().mean()) == pytest.approx(float(torch.sigmoid(-0.8 - BETA * edge)), abs=0.01)
    # the penalty's gradient, and evaluation without noise
    alpha = part.log_alpha.detach().clone().requires_grad_()
    (0.2 * open_probability(alpha)).sum().backward()
    sparsity.penalty_backward()
    torch.testing.assert_close(part.log_alpha.grad, alpha.grad)
    model.eval()
    torch.testing.assert_close(model.weight, weight * gate(torch.tensor(-0.8)))
    with torch.no_grad():
        part.log_alpha[0] = -3.0
    assert sparsity.density() == 1 - 1 / 200
    model.train()
    sparsity.harden()
    x = torch.randn(2, 200)
    wanted = model(x)
    assert torch.equal(model(x), wanted)
    plain = nn.Linear(200, 200, bias=False)
    plain.load_state_dict(plain_state(model.state_dict()))
    torch.testing.assert_close(plain(x), wanted)
    torch.testing.assert_close(finalize(model)(x), wanted, rtol=1e-6, atol=1e-6)


# ---- fixed masks ------------------------------------------------------------------------------------------------------------


def test_random_masks() -> None:
    def made(seed: int) -> list[torch.Tensor]:
        model, sparsity = net(), RandomMask(density=0.25)
        torch.manual_seed(seed)
        sparsity.attach(model)
        assert sparsity.densities() == {"0.weight": 0.25, "3.weight": 0.25}
        assert not sparsity.update(3, 10) and not sparsity.harden()
        return [part.mask for part in sparsity.parts.values()]

    assert all(torch.equal(a, b) for a, b in zip(made(1), made(1)))
    assert not any(torch.equal(a, b) for a, b in zip(made(1), made(2)))
    first = made(1)
    assert not torch.equal(first[0].flatten()[:300], first[1].flatten())


def test_a_ticket_keeps_the_zeros_it_finds() -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[model[0].weight < 0] = 0
    zeros, sparsity = model[0].weight == 0, Ticket(include=["0.*"])
    sparsity.attach(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().sum().backward()
        optimizer.step()
    assert torch.equal(model[0].weight == 0, zeros) and 0.3 < sparsity.density() < 0.7


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: IterativeMagnitude(rate=1.0), "rate=1.0 must lie between"),
        (lambda: IterativeMagnitude(scope="all"), "scope='all' must be"),
        (lambda: IterativeMagnitude(retrain="none"), "pruned and not trained"),
        (lambda: HardConcrete(keep=1.0), "keep=1.0 must lie between"),
        (lambda: HardConcrete(penalty=-1.0), "must not be negative"),
        (lambda: RandomMask(density=0.0), "density=0.0 must lie between"),
    ],
)
def test_bad_settings(make, words) -> None:
    with pytest.raises(UserError, match=words):
        make()
