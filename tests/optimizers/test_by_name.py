"""Optimizers by name, and properties of those that the configs offer."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from papermix.errors import UserError
from papermix.optimizers import by_name

CONF = Path(__file__).parents[2] / "conf" / "optimizer"
OFFERED = ["sgd", "adam", "adamw", "rmsprop"]


def parameter(*values: float) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values))


@pytest.mark.parametrize(
    ("name", "lr", "options"),
    [
        ("SGD", 0.02, {"momentum": 0.9}),
        ("adam", 0.05, {}),
        ("rprop", 0.05, {}),
        ("lbfgs", 1.0, {"line_search_fn": "strong_wolfe"}),
        ("lamb", 0.05, {}),
        ("timm.adafactor", 0.05, {}),
        ("lion", 0.02, {"betas": [0.9, 0.99]}),
        ("adan", 0.05, {}),
        ("sgdw", 0.02, {"momentum": 0.9}),
    ],
)
def test_converges_on_a_quadratic(name, lr, options) -> None:
    """f(x) = (x - a)' D (x - a), D = diag(1, 3): each gets within a hundredth of the start's loss."""
    x, target, curvature = parameter(2.0, -1.5), torch.tensor([0.5, 0.7]), torch.tensor([1.0, 3.0])
    optimizer = by_name([{"params": [x], "name": "decay"}], name, lr=lr, options=options)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (curvature * (x - target) ** 2).sum()
        loss.backward()
        return loss

    start = closure().item()
    for _ in range(300):
        optimizer.step(closure)
    assert closure().item() < 0.01 * start


@pytest.mark.parametrize("name", ["nadam", "adamp", "madgrad"])
def test_descends_rosenbrock(name) -> None:
    x = parameter(-1.5, 1.5)
    optimizer = by_name([x], name, lr=0.02)

    def loss() -> torch.Tensor:
        return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2

    start = loss().item()
    for _ in range(400):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.1 * start


def test_which_library() -> None:
    assert type(by_name([torch.nn.Parameter(torch.ones(2, 2))], "muon")) is torch.optim.Muon
    assert type(by_name([torch.nn.Parameter(torch.ones(2, 2))], "timm.muon")).__module__.startswith("timm")
    assert by_name([parameter(1.0)], "adamw").defaults["lr"] == torch.optim.AdamW([parameter(1.0)]).defaults["lr"]


def test_errors() -> None:
    with pytest.raises(UserError, match=r"no optimizer 'adamww'.*did you mean 'adamw'"):
        by_name([parameter(1.0)], "adamww")
    with pytest.raises(UserError, match=r"'adam' takes no 'beta' \(did you mean 'betas'\?\)"):
        by_name([parameter(1.0)], "adam", options={"beta": 0.9})
    with pytest.raises(UserError, match="'rprop' takes no 'weight_decay'"):
        by_name([parameter(1.0)], "rprop", weight_decay=0.1)
    with pytest.raises(UserError, match="cannot be made: Invalid learning rate"):
        by_name([parameter(1.0)], "adam", lr=-1.0)


def offered(name: str) -> dict:
    node = OmegaConf.load(CONF / f"{name}.yaml")
    return {k: v for k, v in OmegaConf.to_container(node).items() if k not in ("_target_", "_partial_", "groups")}


def trajectory(name: str, steps: int, restart_at: int | None = None, **change) -> list[torch.Tensor]:
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(3)), torch.nn.Parameter(torch.randn(2))]
    make = getattr(torch.optim, {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop"}[name])
    optimizer = make(params, **offered(name) | change)
    for step in range(steps):
        if step == restart_at:
            state = optimizer.state_dict()
            optimizer = make(params, **offered(name) | change)
            optimizer.load_state_dict(state)
        for p in params[:2]:  # the third never gets a gradient
            p.grad = torch.sin(p.detach() * (step + 1))
        optimizer.step()
    return [p.detach().clone() for p in params]


@pytest.mark.parametrize("name", OFFERED)
def test_multi_tensor_equals_loop_and_state_round_trips(name) -> None:
    assert offered(name)["foreach"] is True
    start, reference = trajectory(name, 0), trajectory(name, 6)
    assert not torch.equal(start[0], reference[0]) and torch.equal(start[2], reference[2])
    for other in (trajectory(name, 6, foreach=False), trajectory(name, 6, restart_at=3)):
        for a, b in zip(reference, other):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
