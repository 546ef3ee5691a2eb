"""Magnitude pruning: schedule, exact counts, patterns, scopes."""

import copy
import inspect
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from papermix.errors import UserError
from papermix.sparsity.magnitude import Magnitude


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 10), nn.Linear(10, 5))


def pruned(model: nn.Module, **options) -> Magnitude:
    """Attached and pruned to the end."""
    sparsity = Magnitude(**{"density": 0.3, **options})
    sparsity.attach(model)
    assert sparsity.density() == 1.0
    assert sparsity.harden()
    return sparsity


def test_cubic_schedule() -> None:
    """Zhu & Gupta 2017, eq. 1, in the paper's own terms."""
    s_i, s_f, t0, n, dt, total = 0.2, 0.9, 10, 8, 5, 100
    sparsity = Magnitude(density=1 - s_f, initial_density=1 - s_i, start=t0 / total, end=(t0 + n * dt) / total, updates=n)
    model = nn.Linear(40, 50)
    sparsity.attach(model)
    moved_at = []
    for step in range(total):
        if sparsity.update(step, total):
            moved_at.append(step)
        if step < t0:
            expected = 0.0
        else:
            t = t0 + min(n, (step - t0) // dt) * dt
            expected = s_f + (s_i - s_f) * (1 - (t - t0) / (n * dt)) ** 3
        assert sparsity.density() == pytest.approx(1 - expected, abs=0.5 / 2000 + 1e-9)
    assert moved_at == list(range(10, 51, 5))
    assert int(model.weight.count_nonzero()) == 200
    assert not sparsity.harden()


@pytest.mark.parametrize("end", [0.5, 1.0])
def test_one_shot(end) -> None:
    sparsity = Magnitude(density=0.1, start=end, end=end, updates=1)
    sparsity.attach(nn.Linear(20, 10))
    densities = []
    for step in range(10):
        sparsity.update(step, 10)
        densities.append(sparsity.density())
    assert densities == [1.0] * int(end * 10) + [0.1] * (10 - int(end * 10))
    assert sparsity.harden() is (end == 1.0)
    assert sparsity.density() == 0.1


def test_counts_are_exact_per_layer_and_the_largest_stay() -> None:
    model = net()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sparsity = pruned(model, density=0.3)
    for name, weight in (("0.weight", model[0].weight), ("3.weight", model[3].weight), ("4.weight", model[4].weight)):
        kept = weight != 0
        assert int(kept.sum()) == int(0.3 * weight.numel() + 0.5)
        assert sparsity.densities()[name] == int(kept.sum()) / weight.numel()
        assert before[name][kept].abs().min() >= before[name][~kept].abs().max()
        assert torch.equal(weight[kept], before[name][kept])


def test_global_competition() -> None:
    model = net()
    with torch.no_grad():
        model[4].weight.mul_(100)
    everything = torch.cat([model[i].weight.detach().flatten() for i in (0, 3, 4)])
    sparsity = pruned(model, scope="global", density=0.3)
    kept = torch.cat([model[i].weight.detach().flatten() for i in (0, 3, 4)]) != 0
    assert int(kept.sum()) == int(0.3 * kept.numel() + 0.5)
    assert everything[kept].abs().min() >= everything[~kept].abs().max()
    assert sparsity.densities()["4.weight"] > 0.9 > sparsity.density() == int(kept.sum()) / kept.numel()


def test_ties_fall_to_the_first() -> None:
    model = nn.Linear(10, 10)
    nn.init.constant_(model.weight, -0.5)
    pruned(model, density=0.25)
    assert (model.weight != 0).flatten().tolist() == [True] * 25 + [False] * 75


def test_at_least_one_stays() -> None:
    model = nn.Linear(3, 2)
    pruned(model, density=0.01)
    assert int(model.weight.count_nonzero()) == 1


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(8, 6),
        nn.Conv2d(8, 6, 3),
        nn.Conv1d(16, 6, 3, groups=2),
        nn.ConvTranspose2d(8, 6, 3),
        nn.ConvTranspose2d(16, 6, 3, groups=2),
        nn.LSTM(8, 4),
    ],
    ids=str,
)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 8)])
def test_n_of_m_in_every_group_of_inputs(layer, n, m) -> None:
    layer = copy.deepcopy(layer)
    if isinstance(layer, nn.LSTM) and m == 8:
        layer = nn.LSTM(8, 8)
    pruned(layer, pattern=f"{n}:{m}", density=n / m)
    weight = (layer.weight_ih_l0 if isinstance(layer, nn.LSTM) else layer.weight).detach()
    if getattr(layer, "transposed", False):
        # [in, out / g, ...] -> [out, in / g, ...]
        weight = torch.cat([block.transpose(0, 1) for block in weight.chunk(layer.groups)])
    assert weight.shape[0] == getattr(layer, "out_channels", weight.shape[0])
    flat = weight.flatten(2) if weight.ndim > 2 else weight.unsqueeze(-1)
    for out in range(flat.shape[0]):
        for position in range(flat.shape[2]):
            for start in range(0, flat.shape[1], m):
                assert int(flat[out, start : start + m, position].count_nonzero()) == n


def test_n_of_m_keeps_the_largest_and_goes_gradually() -> None:
    model = nn.Linear(8, 3)
    w = model.weight.detach().clone()
    sparsity = Magnitude(pattern="2:4", density=0.5, start=0.0, end=1.0, updates=4)
    sparsity.attach(model)
    kept = []
    for step in range(8):
        sparsity.update(step, 8)
        kept.append(int((model.weight != 0).reshape(-1, 4).sum(1).unique()))
    assert kept == [4, 4, 3, 3, 2, 2, 2, 2]
    for group, mask in zip(w.reshape(-1, 4), (model.weight != 0).reshape(-1, 4)):
        assert group[mask].abs().min() > group[~mask].abs().max()


def test_n_of_m_leaves_what_does_not_divide(caplog) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    sparsity = pruned(model, pattern="2:4", density=0.5)
    assert list(sparsity.parts) == ["1.weight"] and "leaves 0.weight dense" in caplog.text
    with pytest.raises(UserError, match="can act on none"):
        Magnitude(pattern="2:4", density=0.5).attach(nn.Conv2d(3, 8, 3))


@pytest.mark.parametrize("layer", [nn.Linear(7, 10), nn.Conv2d(4, 10, 3), nn.ConvTranspose1d(4, 10, 3, groups=2)], ids=str)
def test_whole_filters_by_norm(layer) -> None:
    layer = copy.deepcopy(layer)

    def norms() -> torch.Tensor:
        w = layer.weight.detach()
        if getattr(layer, "transposed", False):
            w = torch.cat([block.transpose(0, 1) for block in w.chunk(layer.groups)])
        return w.flatten(1).norm(dim=1)

    before = norms()
    pruned(layer, pattern="filter", density=0.4)
    after = norms()
    assert int((after > 0).sum()) == 4
    assert torch.equal(after[after > 0], before[after > 0])
    assert before[after > 0].min() > before[after == 0].max()


def test_filters_compete_globally_per_weight() -> None:
    model = nn.Sequential(nn.Linear(4, 10), nn.Linear(10, 10))
    with torch.no_grad():
        model[0].weight.normal_().mul_(2)
        model[1].weight.normal_()
    pruned(model, pattern="filter", scope="global", density=0.5)
    alive = [int((layer.weight.abs().sum(1) > 0).sum()) for layer in model]
    assert sum(alive) == 10 and alive[0] > alive[1]


def test_all_gone_is_said(caplog) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.constant_(model[0].weight, 1e-3)
    nn.init.ones_(model[1].weight)
    pruned(model, scope="global", density=0.5)
    assert "masked all of 0.weight" in caplog.text


@pytest.mark.parametrize("regrow", [True, False])
@pytest.mark.parametrize(("pattern", "density"), [("unstructured", 0.25), ("filter", 0.25), ("2:4", 0.5)])
def test_regrow(regrow, pattern, density) -> None:
    """A masked weight comes back when the survivors have shrunk below it, if it may."""
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    sparsity = Magnitude(density=density, start=0.0, end=1.0, updates=4, regrow=regrow, pattern=pattern)
    sparsity.attach(model)
    sparsity.update(2, 4)
    first = (model.weight != 0).clone()
    assert 0 < int(first.sum()) < 64
    with torch.no_grad():
        model.parametrizations.weight.original[first] *= 1e-3
    sparsity.update(4, 4)
    second = model.weight != 0
    assert int(second.sum()) == round(density * 64)
    assert bool((second & ~first).any()) is regrow


def test_masked_weights_get_no_gradient() -> None:
    model = net()
    pruned(model)
    model(torch.randn(4, 8, 4, 4)).square().sum().backward()
    for layer in (model[0], model[3], model[4]):
        grad, mask = layer.parametrizations.weight.original.grad, layer.parametrizations.weight[0].mask
        assert torch.equal(grad != 0, mask & (grad != 0)) and bool((grad[mask] != 0).any())


def test_same_weights_same_masks_and_exact_resume(tmp_path) -> None:
    """Two processes agree; a restored one goes on as if never stopped, and one set back repeats itself."""

    def make() -> tuple[nn.Module, Magnitude, torch.optim.Optimizer]:
        model, sparsity = net(), Magnitude(density=0.1, start=0.1, end=0.9, updates=5, scope="global")
        sparsity.attach(model)
        return model, sparsity, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def go(model, sparsity, optimizer, start: int, stop: int) -> None:
        for step in range(start, stop):
            sparsity.update(step, 20)
            optimizer.zero_grad()
            model(torch.sin(torch.arange(256.0) * (step + 1)).view(2, 8, 4, 4)).square().mean().backward()
            optimizer.step()

    whole, twin, first = make(), make(), make()
    go(*whole, 0, 20)
    go(*twin, 0, 20)
    go(*first, 0, 11)
    torch.save([first[0].state_dict(), first[2].state_dict()], tmp_path / "state")
    go(*first, 11, 20)  # runs on, then is set back below
    saved = torch.load(tmp_path / "state", weights_only=True)
    for again in (make(), first):
        again[0].load_state_dict(saved[0])
        again[2].load_state_dict(copy.deepcopy(saved[1]))
        assert again[1].density() not in (1.0, 0.1)
        go(*again, 11, 20)
        for key, value in whole[0].state_dict().items():
            assert torch.equal(value, again[0].state_dict()[key]) and torch.equal(value, twin[0].state_dict()[key]), key


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"density": 1.0}, "prunes nothing"),
        ({"density": 0.0}, "0 < density"),
        ({"density": 0.5, "initial_density": 0.3}, "initial_density"),
        ({"start": 0.8, "end": 0.5}, "start <= end"),
        ({"updates": 0}, "at least 1"),
        ({"scope": "local"}, "'layer' or 'global'"),
        ({"pattern": 124}, "in quotes"),
        ({"pattern": "4:4", "density": 0.5}, "0 < N < M"),
        ({"pattern": "2:4"}, "density=0.5"),
        ({"pattern": "2:4", "density": 0.5, "scope": "global"}, "scope=layer"),
    ],
)
def test_errors(options, words) -> None:
    with pytest.raises(UserError, match=words):
        Magnitude(**options)


def test_config_has_every_key() -> None:
    node = OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[2] / "conf" / "sparsity" / "magnitude.yaml"))
    assert node.pop("_target_") == "papermix.sparsity.magnitude.Magnitude"
    parameters = inspect.signature(Magnitude).parameters
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in node.items()} == {
        k: p.default for k, p in parameters.items()
    }
