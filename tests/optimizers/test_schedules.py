"""Schedules against their closed forms, resume, and bad input."""

import inspect
import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from papermix.errors import UserError
from papermix.optimizers import schedules

N, M = 40, 10


def optimizer(*rates: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates], lr=1.0)


def run(name: str, steps: int = N, rates=(1.0, 0.25), **options) -> list[list[float]]:
    """Learning rates of each group before steps 0..steps."""
    o = optimizer(*rates)
    schedule = getattr(schedules, name)(o, total_steps=N, steps_per_epoch=M, **options)
    out = [[g["lr"] for g in o.param_groups]]
    for _ in range(steps):
        o.step()
        schedule.step()
        out.append([g["lr"] for g in o.param_groups])
    return out


W = 5
FORMS = {
    "constant": ({}, lambda k: 1.0),
    "cosine": ({"final": 0.1}, lambda k: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (k - W) / (N - W)))),
    "linear": ({"final": 0.1}, lambda k: 1 - 0.9 * (k - W) / (N - W)),
    "polynomial": ({"power": 2.0}, lambda k: (1 - (k - W) / (N - W)) ** 2),
    "multistep": (
        {"milestones": [0.5, "3 epochs", "35 steps"], "gamma": 0.5},
        lambda k: 0.5 ** ((k >= 20) + (k >= 30) + (k >= 35)),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_closed_form_with_warmup_and_group_rates(name) -> None:
    options, form = FORMS[name]
    for k, (first, second) in enumerate(run(name, warmup="5 steps", **options)):
        factor = (k + 1) / (W + 1) if k < W else form(k)
        assert first == pytest.approx(factor, abs=1e-12) and second == pytest.approx(0.25 * factor, abs=1e-12)


@pytest.mark.parametrize(("name", "end"), [("cosine", 0.1), ("linear", 0.1), ("polynomial", 0.1), ("one_cycle", 0.1)])
def test_ends_exactly_and_stays(name, end) -> None:
    rates = run(name, steps=N + 5, final=end)
    assert [r[0] for r in rates[N:]] == [end] * 6
    assert rates[N - 1][0] > end


def test_a_line_may_end_before_training_does() -> None:
    rates = [r[0] for r in run("linear", final=0.1, end=0.5)]
    assert rates[: N // 2] == pytest.approx([1 - 0.9 * k / (N // 2) for k in range(N // 2)]) and rates[N // 2 :] == [0.1] * (N - N // 2 + 1)
    with pytest.raises(UserError, match="end=2 steps is step 2, but warm-up alone takes 5"):
        run("linear", warmup="5 steps", end="2 steps")


def test_one_cycle() -> None:
    rates = [r[0] for r in run("one_cycle", warmup=0.25, initial=0.1, final=0.01)]
    assert rates[0] == pytest.approx(0.1) and rates[10] == 1.0 == max(rates) and rates[N] == 0.01
    assert rates[5] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[25] == pytest.approx(0.01 + 0.99 * 0.5)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("length", [0.125, "5 steps", "0.5 epochs", ".5epoch"])
def test_units_of_length(length) -> None:
    assert run("constant", warmup=length) == run("constant", warmup="5 steps")


def test_plateau_counts_validations() -> None:
    o = optimizer(1.0)
    schedule = schedules.plateau(o, N, M, warmup="2 steps", mode="max", decay=0.1, patience=1, threshold=0.0, final=0.02)
    assert schedule.needs_metric and o.param_groups[0]["lr"] == pytest.approx(1 / 3)
    for _ in range(2):
        o.step()
        schedule.step()
    rates = []
    for value in [0.5, 0.6, 0.6, torch.tensor(0.5), 0.7, 0.1, 0.1, 0.1, 0.1]:
        schedule.step(value)
        rates.append(round(o.param_groups[0]["lr"], 6))
    # two validations without a gain make a drop; never below final
    assert rates == [1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.02, 0.02, 0.02]


@pytest.mark.parametrize("name", ["constant", "multistep", "cosine", "linear", "polynomial", "one_cycle", "plateau"])
def test_resume(name, tmp_path) -> None:
    def make() -> tuple[torch.optim.SGD, schedules.Schedule]:
        o = optimizer(1.0, 0.25)
        return o, getattr(schedules, name)(o, total_steps=N, steps_per_epoch=M, warmup=0.1)

    def go(o, schedule, start: int, stop: int) -> list[list[float]]:
        out = []
        for k in range(start, stop):
            o.step()
            schedule.step()
            if schedule.needs_metric and k % 2:
                schedule.step(0.5)
            out.append([g["lr"] for g in o.param_groups])
        return out

    whole = go(*make(), 0, N)
    o, schedule = make()
    first = go(o, schedule, 0, 17)
    torch.save([o.state_dict(), schedule.state_dict()], tmp_path / "state")
    o, schedule = make()
    for target, state in zip((o, schedule), torch.load(tmp_path / "state", weights_only=True)):
        target.load_state_dict(state)
    assert [g["lr"] for g in o.param_groups] == first[-1]
    assert first + go(o, schedule, 17, N) == whole


def test_resume_needs_the_same_groups() -> None:
    state = schedules.constant(optimizer(1.0), N, M).state_dict()
    with pytest.raises(UserError, match="1 parameter groups and this one 2"):
        schedules.constant(optimizer(1.0, 0.5), N, M).load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cosine", {"warmup": "5 epochs"}, "is 50 steps, but training has only 40"),
        ("cosine", {"warmup": 7}, "neither a fraction"),
        ("cosine", {"warmup": "3 eons"}, "neither a fraction"),
        ("linear", {"final": -0.1}, r"must lie in \[0, 1\]"),
        ("polynomial", {"power": 0}, "must be positive"),
        ("multistep", {"milestones": [0.75, 0.5]}, "must be a rising list"),
        ("multistep", {"milestones": []}, "must be a rising list"),
        ("multistep", {"milestones": [0.5, "80 epochs"]}, "must lie inside training"),
        ("plateau", {"mode": "up"}, "'min' or 'max'"),
        ("plateau", {"decay": 2.0}, "must lie in"),
    ],
)
def test_errors(name, options, words) -> None:
    with pytest.raises(UserError, match=words):
        run(name, **options)


def test_length_of_training_must_be_known() -> None:
    for total in (-1, math.inf, None):
        with pytest.raises(UserError, match=r"trainer.max_epochs or trainer.max_steps"):
            schedules.cosine(optimizer(1.0), total, M)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "conf" / "scheduler").glob("*.yaml")), ids=lambda p: p.stem)
def test_configs_build_what_they_are_called(path) -> None:
    node = OmegaConf.to_container(OmegaConf.load(path))
    assert node.pop("_target_") == f"papermix.optimizers.schedules.{path.stem}" and node.pop("_partial_") is True
    schedule = getattr(schedules, path.stem)(optimizer(1.0), total_steps=N, steps_per_epoch=M, **node)
    assert isinstance(schedule, schedules.Schedule)
    assert set(node) == set(inspect.signature(getattr(schedules, path.stem)).parameters) - {
        "optimizer",
        "total_steps",
        "steps_per_epoch",
    }
