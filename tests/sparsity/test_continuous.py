"""Continuous Sparsification: its equations, its rounds, and what is left at the end."""

import copy
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from papermix.errors import UserError
from papermix.optimizers import param_groups, with_masks
from papermix.optimizers.schedules import multistep, restarting
from papermix.sparsity.continuous import ContinuousSparsification, SoftMask, StochasticSparsification
from papermix.sparsity.mask import finalize, plain_state


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5))


def attached(**options) -> tuple[nn.Module, ContinuousSparsification]:
    model, sparsity = net(), ContinuousSparsification(**options)
    sparsity.attach(model)
    return model, sparsity


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(16, 2, 4, 4, generator=random), torch.randint(5, (16,), generator=random)


def train(model: nn.Module, sparsity, steps: int, make=lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9)):
    """A loop of one's own, as the docstring of Sparsity says; yields after every step."""
    optimizer = with_masks(make, param_groups(model))
    schedule = restarting(partial(multistep, milestones=[0.5]), sparsity.rounds)(optimizer, total_steps=steps, steps_per_epoch=steps)
    x, y = batch()
    for step in range(steps):
        before = sparsity.round
        sparsity.update(step, steps)
        if sparsity.round != before:
            optimizer.state.clear()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        sparsity.penalty_backward()
        optimizer.step()
        schedule.step()
        yield step, optimizer


def parts(sparsity) -> list[SoftMask]:
    return list(sparsity.parts.values())


# ---- equations -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("initial", "c"), [(-0.1, 2.105171), (0.0, 2.0), (-0.3, 2.349859), (0.2, 1 / 0.549834)])
def test_the_network_is_unchanged_at_the_start(initial, c) -> None:
    model, x = net(), batch()[0]
    wanted = model(x)
    plain = model[0].weight.detach().clone()
    sparsity = ContinuousSparsification(initial=initial)
    sparsity.attach(model)
    assert float(parts(sparsity)[0].scale) == pytest.approx(c, abs=1e-5)
    torch.testing.assert_close(model[0].weight, plain, rtol=3e-7, atol=0)
    torch.testing.assert_close(model(x), wanted)


def test_temperature() -> None:
    sparsity = ContinuousSparsification(beta=200.0, levels=85)
    # 351 steps an epoch: one temperature in each, from 1 to 200
    betas = [sparsity.temperature(epoch * 351 + 17, 85 * 351) for epoch in range(85)]
    assert betas[0] == 1 and betas[-1] == pytest.approx(200)
    assert all(b / a == pytest.approx(200 ** (1 / 84)) for a, b in pairwise(betas))
    assert round(betas[1], 4) == 1.0651
    by_step = ContinuousSparsification(beta=200.0)
    assert by_step.temperature(0, 10) == 1 and by_step.temperature(9, 10) == pytest.approx(200)
    assert by_step.temperature(4, 10) == pytest.approx(200 ** (4 / 9))
    assert by_step.temperature(0, 1) == 200


def test_the_soft_mask_becomes_the_hard_one() -> None:
    weight = torch.ones(2, 7)
    part = SoftMask(weight, -0.1)
    with torch.no_grad():
        part.logits.copy_(torch.tensor([[-3, -1, -0.2, -0.05, 0.05, 0.2, 1]]).expand(2, 7))
    gaps = []
    for beta in (1.0, 10.0, 200.0, 1e4):
        part.beta.fill_(beta)
        gaps.append(float((part(weight).detach() / part.scale - (part.logits > 0).float()).abs().max()))
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] == 0 and gaps[0] > 0.4
    soft = part(weight)
    part.fix()
    torch.testing.assert_close(part(weight), soft)
    assert int(part.kept()) == 6 == int(part(weight).count_nonzero())


def test_gradients_are_those_of_autograd() -> None:
    random = torch.Generator().manual_seed(0)
    w, s, up = (torch.randn(3, 4, generator=random, dtype=torch.float64) for _ in range(3))
    part = SoftMask(w, -0.1).double()
    part.beta.fill_(3.0)
    w.requires_grad_()
    with torch.no_grad():
        part.logits.copy_(s)
    (part(w) * up).sum().backward()
    w2, s2 = w.detach().clone().requires_grad_(), s.clone().requires_grad_()
    (w2 * part.scale * torch.sigmoid(3.0 * s2) * up).sum().backward()
    torch.testing.assert_close(w.grad, w2.grad)
    torch.testing.assert_close(part.logits.grad, s2.grad)
    # frozen weights, and a hard mask whose logits get a zero
    part.logits.grad, w.grad = None, None
    part(w.detach()).sum().backward()
    assert part.logits.grad.abs().min() > 0
    part.logits.grad = None
    part.fix()
    (part(w) * up).sum().backward()
    assert not part.logits.grad.any() and torch.equal(w.grad, up * (s > 0) * part.scale)


def test_gradient_of_the_penalty() -> None:
    _, sparsity = attached(initial=-0.2, penalty=0.3)
    wanted = []
    for i, part in enumerate(parts(sparsity)):
        part.beta.fill_(2.5)
        with torch.no_grad():
            part.logits.normal_(generator=torch.Generator().manual_seed(i))
        s = part.logits.detach().clone().requires_grad_()
        (0.3 * part.scale * torch.sigmoid(2.5 * s)).sum().backward()
        wanted.append(s.grad)
    sparsity.penalty_backward()
    for part, grad in zip(parts(sparsity), wanted):
        torch.testing.assert_close(part.logits.grad, grad)
    sparsity.penalty_backward()  # added to what is there
    torch.testing.assert_close(parts(sparsity)[0].logits.grad, 2 * wanted[0])


def test_size_of_the_authors_network() -> None:
    """ResNet-20 with 1x1 shortcuts without batch norm: 267,696 weights under masks of 272,282 parameters, 539,978 with the masks."""
    from papermix.models.resnet_cifar import ResNetCifar

    model = ResNetCifar(depth=20, shortcut="B")
    for module in model.modules():
        if isinstance(getattr(module, "shortcut", None), nn.Sequential):
            module.shortcut[1] = nn.Identity()
    plain = sum(p.numel() for p in model.parameters())
    sparsity = ContinuousSparsification(types=["conv"], exclude=["*.shortcut.*"])
    sparsity.attach(model)
    masks = sum(part.logits.numel() for part in parts(sparsity))
    assert (masks, plain, sum(p.numel() for p in model.parameters())) == (267_696, 272_282, 539_978)


# ---- training --------------------------------------------------------------------------------------------------------------


def test_one_round_ends_hard_and_bakes() -> None:
    model, sparsity = attached(initial=-0.02, lr=0.3)
    x, y = batch()
    assert sparsity.density() == 0 and sparsity.numbers()["soft_density"] == pytest.approx(1, abs=1e-6)
    for _ in train(model, sparsity, 60):
        pass
    assert float(parts(sparsity)[0].beta) == pytest.approx(200)
    gap = sparsity.numbers()["mask_gap"]
    assert 0 <= gap <= 0.5
    model.eval()
    soft = model(x)
    assert not sparsity.harden() and sparsity.numbers() == {}
    hard = model(x)
    density = sparsity.density()
    assert 0.02 < density < 0.95
    # the gap of accuracies is small where masks are decided
    accuracy = [(out.argmax(1) == y).float().mean() for out in (soft, hard)]
    assert abs(float(accuracy[0] - accuracy[1])) < 0.3
    weight, part = sparsity.weights["0.weight"].tensor, sparsity.parts["0.weight"]
    assert torch.equal(model[0].weight, weight * ((part.logits > 0) * part.scale))
    plain = copy.deepcopy(net()).eval()
    plain.load_state_dict(plain_state(model.state_dict()))
    torch.testing.assert_close(plain(x), hard, rtol=1e-6, atol=1e-6)
    keys = net().state_dict().keys()
    finalize(model)
    assert model.state_dict().keys() == keys
    torch.testing.assert_close(model(x), hard, rtol=1e-6, atol=1e-6)
    kept = sum(int(m.weight.count_nonzero()) for m in (model[0], model[4]))
    assert kept == round(density * (108 + 480))


@pytest.mark.parametrize("initial", [-0.05, 0.0, 0.05])
def test_between_rounds_removed_weights_stay_removed(initial) -> None:
    model, sparsity = attached(initial=initial, rounds=2, lr=0.3, penalty=1e-3)
    before, seen = [], []
    for step, optimizer in train(model, sparsity, 40):
        if step == 19:
            before = [part.logits.detach().clone() for part in parts(sparsity)]
            momentum = [optimizer.state[part.logits]["momentum_buffer"].clone() for part in parts(sparsity)]
            rates = [group["lr"] for group in optimizer.param_groups]
    assert all(m.any() for m in momentum) and rates == [0.1, pytest.approx(0.3)]  # the rate after the round is the next one's first
    # again, and look right after the reset
    sparsity_now = attached(initial=initial, rounds=2)[1]
    for part, logits in zip(parts(sparsity_now), before):
        with torch.no_grad():
            part.logits.copy_(logits)
    sparsity_now.update(20, 40)
    for part, logits in zip(parts(sparsity_now), before):
        seen.append(part.logits)
        torch.testing.assert_close(part.logits.detach(), (200.0 * logits).clamp(max=initial))
        assert float(part.logits.detach().max()) <= initial + 1e-8 and float(part.beta) == 1
        assert torch.equal(part.logits > 0, (logits > 0) & (initial > 0))
    if initial <= 0:
        assert sparsity_now.density() == 0
    assert sparsity_now.round == 1 and len(seen) == 2
    assert any(bool((logits > 0).any()) and bool((logits < 0).any()) for logits in before)


def test_the_ticket_is_the_early_iterate_under_a_frozen_mask() -> None:
    model, sparsity = attached(initial=-0.02, lr=0.3, rounds=2, retrain="rewind", rewind="5 steps")
    states: dict[int, dict[str, torch.Tensor]] = {}
    x, y = batch()
    for step, _ in train(model, sparsity, 60):
        states[step] = {k: v.clone() for k, v in model.state_dict().items()}
    assert sparsity.rounds == 3 and not sparsity.harden()
    early = {k: v for k, v in states[4].items() if ".0." not in k}
    assert early.keys() == sparsity.snapshot.keys() and {"1.running_mean", "1.weight", "4.bias", "1.num_batches_tracked"} < early.keys()
    assert all(torch.equal(v, sparsity.snapshot[k]) for k, v in early.items())
    # the mask is that of the search's last step, and never moves again
    masks = [k for k in states[39] if k.endswith(".logits")]
    assert len(masks) == 2 and all(torch.equal(states[39][k], states[59][k]) for k in masks)
    # weights that are masked have no gradient, those that are not have one, and the network did train
    model.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    for name, part in sparsity.parts.items():
        grad = sparsity.weights[name].tensor.grad
        assert not grad[part.logits <= 0].any() and grad[part.logits > 0].any()
        assert not model.get_parameter(name.replace("weight", "parametrizations.weight.original")).grad[part.logits <= 0].any()
    assert not torch.equal(states[59]["0.parametrizations.weight.original"], early["0.parametrizations.weight.original"])
    # bit for bit: start the last round from another place
    model, sparsity = attached(initial=-0.02, retrain="rewind", rewind=0.25)
    start = copy.deepcopy(model.state_dict())
    sparsity.update(5, 40)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3)
        model[1].running_mean.add_(1)
    sparsity.update(20, 40)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in start.items() if ".0." not in k)
    assert all(part.fixed for part in parts(sparsity)) and sparsity.density() == 1


def test_finetuning_keeps_the_weights_and_shuffling_the_densities() -> None:
    model, sparsity = attached(retrain="finetune", shuffle=True)
    with torch.no_grad():
        for i, part in enumerate(parts(sparsity)):
            part.logits.normal_(generator=torch.Generator().manual_seed(i))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    shares = sparsity.densities()
    sparsity.update(0, 8)
    sparsity.update(4, 8)
    assert sparsity.snapshot is None and sparsity.densities() == shares
    assert torch.equal(model.state_dict()["4.parametrizations.weight.original"], before["4.parametrizations.weight.original"])
    logits = model.state_dict()["4.parametrizations.weight.0.logits"]
    assert not torch.equal(logits, before["4.parametrizations.weight.0.logits"])


def test_supermask_trains_masks_alone() -> None:
    model, sparsity = attached(train_weights=False, initial=0.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for _ in train(model, sparsity, 10):
        pass
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert {k for k in moved if "running" not in k and "num_b" not in k} == {
        f"{i}.parametrizations.weight.0.{name}" for i in (0, 4) for name in ("logits", "beta")
    }


def test_masks_keep_sgd_beside_adamw() -> None:
    model, sparsity = attached(lr=0.5, momentum=0.0, penalty=0.0)
    start = [part.logits.detach().clone() for part in parts(sparsity)]
    make = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.3)
    for step, used in train(model, sparsity, 2, make):
        optimizer = used
        if step == 0:
            for part, logits in zip(parts(sparsity), start):
                torch.testing.assert_close(part.logits.detach(), logits - 0.5 * part.logits.grad)
    assert [type(part).__name__ for part in optimizer.parts] == ["AdamW", "SGD"]
    assert [(g["name"], g["weight_decay"]) for g in optimizer.param_groups] == [("decay", 0.3), ("masks", 0.0)]
    assert [g["lr"] for g in optimizer.param_groups] == [pytest.approx(0.001), pytest.approx(0.05)]  # one schedule for both
    # null: the optimizer of the weights
    model, sparsity = attached(lr=None)
    assert [g["name"] for g in with_masks(torch.optim.AdamW, param_groups(model)).param_groups] == ["decay", "masks"]


def test_stochastic_masks() -> None:
    model, sparsity = net(), StochasticSparsification(initial=0.0, rounds=2, lr=0.3, penalty=0.0)
    sparsity.attach(model)
    weight, part = sparsity.weights["4.weight"].tensor, sparsity.parts["4.weight"]
    drawn = [model[4].weight.detach() for _ in range(200)]
    assert all(bool(((d == 0) | (d == weight)).all()) for d in drawn) and not torch.equal(drawn[0], drawn[1])
    assert 0.45 < torch.stack([(d != 0).float().mean() for d in drawn]).mean() < 0.55
    # straight through: d/ds = g w p (1 - p) wherever it fell
    model[4].weight.sum().backward()
    torch.testing.assert_close(part.logits.grad, weight.detach() * 0.25)
    model.eval()
    with torch.no_grad():
        part.logits.copy_(weight)
    assert torch.equal(model[4].weight, weight * (weight > 0))  # no drawing in evaluation
    sparsity.update(0, 8)
    sparsity.update(4, 8)
    assert torch.equal(part.logits, torch.where(weight > 0, 0.0, -1e4)) and float(part.beta) == 1
    model.train()
    assert not model[4].weight[weight <= 0].any()
    for _ in train(model, sparsity, 4):
        pass
    sparsity.harden()
    assert math.isfinite(float(model(batch()[0]).sum())) and sparsity.density() < 0.7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beta": 0.5}, "sparsity.beta=0.5 must be at least 1"),
        ({"penalty": -1.0}, "penalty=-1.0 must not be negative"),
        ({"levels": 1}, "levels=1 must be at least 2"),
        ({"lr": -0.1}, "sparsity.lr=-0.1"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"initial": float("nan")}, "initial=nan must be finite"),
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"retrain": "again"}, "none, rewind or finetune"),
        ({"shuffle": True}, "shuffle=true ruins"),
        ({"train_weights": False, "retrain": "rewind"}, "nothing to retrain"),
    ],
)
def test_bad_settings(options, words) -> None:
    with pytest.raises(UserError, match=words):
        ContinuousSparsification(**options)


@pytest.mark.parametrize(("rewind", "words"), [("9 steps", "a round has only 5"), ("2 epochs", "steps_per_epoch"), (2.0, "neither")])
def test_bad_rewind_points(rewind, words) -> None:
    _, sparsity = attached(retrain="rewind", rewind=rewind)
    with pytest.raises(UserError, match=words):
        sparsity.update(0, 10)
