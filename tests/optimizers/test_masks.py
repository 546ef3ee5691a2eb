"""Learned masks with an SGD of their own beside any optimizer."""

import copy

import pytest
import torch
from torch import nn

from papermix.errors import UserError
from papermix.optimizers import AvaGrad, WithMasks, param_groups, with_masks
from papermix.optimizers.schedules import cosine, multistep, plateau, restarting, round_of
from tests.machine import states_equal


def model() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    module.first, module.second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    for p, lr in ((module.first, 0.5), (module.second, 0.25)):
        p.is_mask, p.sgd = True, {"lr": lr, "momentum": 0.5, "nesterov": True}
    return module


def gradients(module: nn.Module, step: int) -> None:
    random = torch.Generator().manual_seed(step)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, generator=random)


@pytest.mark.parametrize("make", [lambda g: torch.optim.Adam(g, lr=0.01), lambda g: AvaGrad(g, lr=0.1)])
def test_both_step_as_they_do_alone(make) -> None:
    ours, alone = model(), model()
    optimizer = with_masks(make, param_groups(ours))
    assert isinstance(optimizer, WithMasks) and isinstance(optimizer, torch.optim.Optimizer)
    assert [(g["name"], len(g["params"]), g["lr"]) for g in optimizer.param_groups[1:]] == [("masks", 1, 0.25), ("masks", 1, 0.5)]
    others = [make([alone.weight, alone.bias])]
    others += [torch.optim.SGD([p], lr=p.sgd["lr"], momentum=0.5, nesterov=True) for p in (alone.first, alone.second)]
    for step in range(4):
        for module in (ours, alone):
            gradients(module, step)
        result = optimizer.step(lambda: 3.0)
        for other in others:
            other.step()
        assert result == 3.0
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), alone.parameters()))
    optimizer.zero_grad()
    assert all(p.grad is None for p in ours.parameters())


@pytest.mark.parametrize("make", [lambda g: torch.optim.Adam(g, lr=0.01), lambda g: AvaGrad(g, lr=0.1)])
def test_state_goes_on(make) -> None:
    def run(module, optimizer, schedule, steps):
        for step in steps:
            gradients(module, step)
            optimizer.step()
            schedule.step()

    def made(module):
        optimizer = with_masks(make, param_groups(module))
        return module, optimizer, cosine(optimizer, total_steps=8, steps_per_epoch=8)

    whole = made(model())
    run(*whole, range(4))
    rest = made(copy.deepcopy(whole[0]) and model())
    rest[0].load_state_dict(whole[0].state_dict())
    state = copy.deepcopy(whole[1].state_dict())
    rest[1].load_state_dict(state)
    rest[2].load_state_dict(whole[2].state_dict())
    assert states_equal(rest[1].state_dict(), state)
    run(*whole, range(4, 8))
    run(*rest, range(4, 8))
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), rest[0].parameters()))
    # an emptied state is empty for both
    rest[1].state.clear()
    assert all(not part.state for part in rest[1].parts)


def test_without_masks_nothing_changes() -> None:
    plain = with_masks(lambda g: torch.optim.Adam(g, lr=0.1), param_groups(nn.Linear(2, 2)))
    assert type(plain) is torch.optim.Adam
    module = model()
    module.weight.requires_grad_(False)
    module.bias.requires_grad_(False)
    alone = with_masks(lambda g: torch.optim.Adam(g, lr=0.1), param_groups(module))
    assert [type(part) for part in alone.parts] == [torch.optim.SGD]
    gradients(module, 0)
    alone.step()
    assert not torch.equal(module.first, torch.ones(2)) and len(alone.state) == 2


# ---- schedules that restart ---------------------------------------------------------------------------------------------------


def test_rounds_are_equal_and_cover_training() -> None:
    assert [round_of(k, 12, 3) for k in range(13)] == [0] * 4 + [1] * 4 + [2] * 5
    for total, rounds in ((11, 3), (7, 7), (100, 6), (3, 1)):
        found = [round_of(k, total, rounds) for k in range(total)]
        assert found == sorted(found) and [found.index(r) for r in range(rounds)] == [r * total // rounds for r in range(rounds)]


def test_each_round_has_the_whole_schedule() -> None:
    def rates(make, total):
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
        schedule = make(optimizer, total_steps=total, steps_per_epoch=2)
        found = []
        for _ in range(total):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return [*found, optimizer.param_groups[0]["lr"]]

    def steps(*args, **kwargs):
        return multistep(*args, milestones=["2 epochs"], warmup="1 steps", **kwargs)

    once = rates(steps, 6)
    assert rates(restarting(steps, 3), 18) == once[:-1] * 3 + once[-1:]
    assert rates(restarting(cosine, 2), 7)[3] == rates(cosine, 4)[0]
    with pytest.raises(UserError, match="plateau cannot restart in 2 rounds"):
        rates(restarting(plateau, 2), 8)
    with pytest.raises(UserError, match="how long training is"):
        restarting(cosine, 2)(torch.optim.SGD([nn.Parameter(torch.ones(1))]), total_steps=float("inf"), steps_per_epoch=2)
