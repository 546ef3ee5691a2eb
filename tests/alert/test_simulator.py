"""The card's simulation, the baselines by hand, deadlines of groups, traces."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from papermix.alert.baselines import SCHEDULERS, Choices, Static, best_static
from papermix.alert.controller import Alert, Goal
from papermix.alert.draw import draw, smooth
from papermix.alert.profile import Configuration, Profile
from papermix.alert.simulator import (
    Log,
    Pace,
    Phase,
    environment,
    phases_of,
    read_trace,
    run,
    simulate,
    stated_scores,
    write_trace,
)
from papermix.errors import UserError
from tests.alert.world import card

GOAL = Goal(0.12, energy=2.4)
PHASES = [Phase(100, 1.0, 0.05), Phase(100, 1.6, 0.05)]
NESTED = Configuration("n", "s", (1, 2, 4), (0.01, 0.02, 0.04), (0.5, 0.6, 0.7), 10.0)


def replay(choices: Choices, slowdown: np.ndarray, goal: Goal = GOAL) -> Callable[..., Log]:
    scores = stated_scores(choices.profile, len(slowdown))
    return partial(simulate, profile=choices.profile, slowdown=slowdown, scores=scores, goal=lambda n: goal)


def test_the_card_s_simulation() -> None:
    choices = Choices(card())
    stream = replay(choices, environment(PHASES, 3000, np.random.default_rng(3)).slowdown)
    found = {name: stream(choices.scheduler(name, stream, GOAL)).summary() for name in SCHEDULERS}
    assert found["oracle"]["accuracy"] == pytest.approx(0.65, abs=0.001) and found["oracle"]["late"] == 0
    assert found["oracle"]["over_budget"] == 0 and found["oracle"]["energy"] == pytest.approx(1.55, abs=0.02)
    assert found["alert"]["accuracy"] == pytest.approx(0.648, abs=0.002)
    assert found["alert"]["late"] < 0.01 and found["alert"]["over_budget"] < 0.01
    assert found["alert"]["energy"] == pytest.approx(2.0, abs=0.05)
    assert found["mean_only"]["accuracy"] == pytest.approx(0.641, abs=0.003)
    assert found["mean_only"]["late"] > 3 * found["alert"]["late"]
    assert found["mean_only"]["energy"] == pytest.approx(1.55, abs=0.02)
    assert found["oracle_static"]["accuracy"] == pytest.approx(0.6)
    middle = choices.profile.where(network="medium", setting="25 W")[0]
    assert stream(Static(middle)).summary()["late"] == pytest.approx(0.24, abs=0.04)


def test_running_a_configuration() -> None:
    assert run(NESTED, 1.0, 0.05) == (0.04, 2, 0.04, 2, 0.04)
    assert run(NESTED, 1.0, 0.03) == (0.03, 1, 0.02, 1, 0.02)  # stopped; its last answer's time is known
    assert run(NESTED, 2.0, 0.015) == (0.02, -1, 0.02, 0, 0.02)  # the first answer is waited for
    plain = Configuration("n", "s", (1,), (0.1,), (0.9,), 10.0)
    assert run(plain, 1.5, 0.12) == pytest.approx((0.15, -1, 0.15, 0, 0.15))  # the true time, not the deadline


def test_energy_and_scores_of_a_stream() -> None:
    profile = Profile((NESTED,), 0.1, "s", 0.5)
    slowdown = np.array([1.0, 1.0, 6.0])
    goal = [Goal(0.05, energy=0.46), Goal(0.03, energy=0.29), Goal(0.05)]
    log = simulate(Static(0), profile, slowdown, stated_scores(profile, 3), lambda n: goal[n])
    assert log.score == [0.7, 0.6, 0.1] and log.answer == [2, 1, -1]
    assert log.energy == pytest.approx([0.4 + 0.05, 0.3, 0.6])
    summary = log.summary()
    assert summary["late"] == pytest.approx(1 / 3) and summary["over_budget"] == pytest.approx(1 / 3)
    watts = simulate(Static(0), profile, slowdown, stated_scores(profile, 3), lambda n: goal[n], idle_watts=2.0)
    assert watts.energy == pytest.approx([0.4 + 0.02, 0.3, 0.6])


def test_what_each_baseline_may_choose() -> None:
    rows = [
        Configuration(n, s, e, tuple(t * f for t in ts), q, p)
        for s, f, p in (("low", 2.0, 10.0), ("high", 1.0, 20.0))
        for n, e, ts, q in (
            ("tiny", (1,), (0.005,), (0.3,)),
            ("nested", (1, 2), (0.01, 0.04), (0.5, 0.7)),
            ("big", (1,), (0.06,), (0.8,)),
        )
    ]
    choices = Choices(Profile(tuple(rows), 0.1, "high"))
    at = choices.profile.configurations
    assert {(at[i].network, at[i].setting) for i in choices.application} == {("nested", "high")}
    assert {(at[i].network, at[i].setting) for i in choices.system} == {("tiny", "low"), ("tiny", "high")}
    first, last = choices.scheduler("first_exit").index, choices.scheduler("last_exit").index
    assert at[first].network == "tiny" and at[last].network == "big" and {first, last}.isdisjoint(choices.free)
    assert len(choices.free) == 8  # six, and the nested one stopped on purpose at both settings
    both = choices.scheduler("no_coordination")
    chosen = at[both.choose(Goal(1.0))]
    assert chosen.network == "nested"
    both.observe(both.choose(Goal(1.0)), 0.08)
    # each reads the time as its own: 0.08 s of a network of 0.04 s, and of one of 0.005 s
    assert both.application.mean == pytest.approx(2, abs=0.05) and both.system.mean > 5


def test_an_oracle_is_no_worse_than_any_fixed_choice() -> None:
    choices = Choices(card())
    stream = replay(choices, environment(PHASES, 400, np.random.default_rng(5)).slowdown)
    oracle = stream(choices.scheduler("oracle")).summary()
    for i in choices.free:
        fixed = stream(Static(i)).summary()
        assert fixed["accuracy"] <= oracle["accuracy"] or fixed["over_budget"] > 0


def test_an_oracle_keeps_the_budget_also_when_idling_draws_the_same_everywhere() -> None:
    choices = Choices(card())
    slowdown = environment(PHASES, 400, np.random.default_rng(6)).slowdown
    for watts in (1.0, 6.0, 10.0):
        log = replay(choices, slowdown)(choices.scheduler("oracle"), idle_watts=watts)
        assert log.summary()["over_budget"] == 0
        one = choices.profile.configurations[log.chosen[0]]
        busy = one.latency[-1] * slowdown[0]
        assert log.energy[0] == pytest.approx(one.power * busy + watts * (0.12 - busy))


def test_the_best_fixed_choice_gives_up_energy_first() -> None:
    def log(score: float, energy: float, late: bool = False) -> Log:
        return Log([0], [-1 if late else 0], [1.0], [0.5], [score], [energy], [1.0], [0.0], [0.0], [1.0])

    logs = {0: log(0.5, 0.5), 1: log(0.7, 0.9), 2: log(0.8, 2.0), 3: log(0.9, 3.0, late=True)}
    assert best_static(logs, Goal(1.0, energy=1.0)) == 1
    assert best_static({i: logs[i] for i in (2, 3)}, Goal(1.0, energy=1.0)) == 3
    assert best_static({i: logs[i] for i in (2, 3)}, Goal(1.0, energy=1.0, probability=0.9)) == 2
    assert best_static(logs, Goal(1.0, "energy", accuracy=0.75)) == 2
    assert best_static(logs, Goal(1.0, "energy", accuracy=0.95)) == 3


def test_a_group_shares_its_time() -> None:
    pace = Pace([0.1] * 5, group=3)
    assert pace.share(0) == pytest.approx((0.1, 0.3))
    pace.spent(0.04)
    assert pace.share(1) == pytest.approx((0.13, 0.26))
    pace.spent(0.3)
    assert pace.share(2) == (0, 0)
    pace.spent(0.1)
    assert pace.share(3) == pytest.approx((0.1, 0.2))  # the last group is a smaller one


def test_groups_let_a_late_input_use_what_others_leave() -> None:
    plain = Profile((Configuration("n", "s", (1,), (0.1,), (0.9,), 10.0),), 0.1, "s")
    slowdown = np.array([0.5, 1.4, 0.5, 1.4])
    late = [
        simulate(Alert(plain), plain, slowdown, stated_scores(plain, 4), lambda n: Goal(0.1), group=group).summary()["late"]
        for group in (1, 2)
    ]
    assert late == [0.5, 0.0]


def test_environments_come_over_and_over() -> None:
    assert phases_of([2, 1], 7).tolist() == [0, 0, 1, 0, 0, 1, 0]
    met = environment([Phase(2, 1.0), Phase(1, 3.0, 0.1)], 3000, np.random.default_rng(0))
    assert (met.slowdown[met.phase == 0] == 1).all()
    logs = np.log(met.slowdown[met.phase == 1])
    assert logs.mean() == pytest.approx(np.log(3), abs=0.01) and logs.std() == pytest.approx(0.1, abs=0.01)
    with pytest.raises(UserError, match="phase"):
        Phase(0)


def test_a_trace_is_read_as_it_was_met(tmp_path: Path) -> None:
    choices = Choices(card())
    met = environment(PHASES, 150, np.random.default_rng(0))
    stream = replay(choices, met.slowdown)
    logs = {name: stream(choices.scheduler(name)) for name in ("alert", "sys_only")}
    write_trace(tmp_path / "stream.csv", logs, choices.profile, met.phase)
    for scheduler in (None, "sys_only"):
        found = read_trace(tmp_path / "stream.csv", scheduler)
        assert np.allclose(found.slowdown, met.slowdown) and (found.phase == met.phase).all()
    again = replay(choices, read_trace(tmp_path / "stream.csv").slowdown)(choices.scheduler("alert"))
    assert again.chosen == logs["alert"].chosen
    with pytest.raises(UserError, match="no line of scheduler oracle"):
        read_trace(tmp_path / "stream.csv", "oracle")
    (tmp_path / "bad.csv").write_text("scheduler,phase,slowdown\nalert,0,1.0\nalert,0,x\n")
    with pytest.raises(UserError, match=r"bad.csv, line 3"):
        read_trace(tmp_path / "bad.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_trace(tmp_path / "none.csv")


def test_pictures(tmp_path: Path) -> None:
    assert smooth([1, 2, 3, 4], 2).tolist() == [1, 1.5, 2.5, 3.5] and smooth([2, 4], 9).tolist() == [2, 3]
    choices = Choices(card())
    met = environment(PHASES, 250, np.random.default_rng(0))
    stream = replay(choices, met.slowdown)
    logs = {name: stream(choices.scheduler(name, stream, GOAL)) for name in ("oracle_static", "alert")}
    draw(logs, met.phase, ["quiet", "loud"], tmp_path / "new" / "stream.png", "a title")
    assert (tmp_path / "new" / "stream.png").stat().st_size > 20000
