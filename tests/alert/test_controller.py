"""Predictions against their formulas written out, monotonicity, decisions by brute force, and what is given up first."""

import math
from dataclasses import replace

import numpy as np
import pytest

from papermix.alert.controller import Alert, Goal, Prediction, Table, check_goal, decide, in_time, predict
from papermix.alert.filters import Slowdown
from papermix.alert.profile import Configuration, Profile
from papermix.errors import UserError
from tests.alert.world import card

FAIL = 0.1
INF = float("inf")


def phi(z: float) -> float:
    return 0.5 * (1 + math.erf(z / 2**0.5))


def some(generator: np.random.Generator, exits: int) -> Configuration:
    latency = np.cumsum(generator.uniform(0.01, 0.1, exits))
    accuracy = np.sort(generator.uniform(FAIL, 1, exits))
    return Configuration("n", "s", tuple(range(1, exits + 1)), tuple(latency), tuple(accuracy), float(generator.uniform(5, 50)))


def test_predictions_are_their_formulas() -> None:
    generator = np.random.default_rng(0)
    rows = [some(generator, k) for k in (1, 3, 2, 5)]
    for _ in range(50):
        deadline, mean, deviation, idle = generator.uniform([0.01, 0.5, 0.01, 0], [0.4, 3, 1, 1])
        found = predict(Table(rows, FAIL), deadline, mean, deviation, idle)
        for i, one in enumerate(rows):
            ready = [phi((deadline / t - mean) / deviation) for t in one.latency]
            before = [FAIL, *one.accuracy]
            assert found.probability[i] == pytest.approx(ready[0], abs=1e-12)
            assert found.accuracy[i] == pytest.approx(FAIL + sum((q - p) * r for p, q, r in zip(before, one.accuracy, ready)))
            busy = min(mean * one.latency[-1], deadline)
            assert found.energy[i] == pytest.approx(one.power * busy + idle * one.power * (deadline - busy))
        one = rows[0]  # the traditional network's own formula
        probability = phi((deadline / one.latency[0] - mean) / deviation)
        assert found.accuracy[0] == pytest.approx(probability * one.accuracy[0] + (1 - probability) * FAIL)


def test_limits() -> None:
    one = some(np.random.default_rng(1), 4)
    table = Table([one], FAIL)
    assert predict(table, 1e9, 1.3, 0.3, 0.2).accuracy[0] == pytest.approx(one.accuracy[-1])
    assert predict(table, 0.0, 1.3, 0.05, 0.2).accuracy[0] == pytest.approx(FAIL)
    for k, t in enumerate(one.latency):  # without uncertainty a step at mu t
        assert predict(table, 1.3 * t, 1.3, 0.0, 0.2).accuracy[0] == pytest.approx(one.accuracy[k])
        assert predict(table, 1.2999 * t, 1.3, 0.0, 0.2).accuracy[0] == pytest.approx((FAIL, *one.accuracy)[k])
        assert predict(table, 1.31 * t, 1.3, 1e-4, 0.2).accuracy[0] == pytest.approx(one.accuracy[k])
    assert in_time(np.array([3.0]), 1 / 3, 1.0, 0.0)[0] == 1


def test_time_never_harms_and_slowness_never_helps() -> None:
    generator = np.random.default_rng(2)
    for _ in range(500):
        rows = [some(generator, int(generator.integers(1, 6))) for _ in range(4)]
        table, deviation = Table(rows, FAIL), float(generator.choice([0, 0.05, 0.5]))
        deadlines = np.sort(generator.uniform(0, 0.6, 8))
        mean = generator.uniform(0.5, 3)
        accuracies = np.array([predict(table, d, mean, deviation, 0.2).accuracy for d in deadlines])
        assert (np.diff(accuracies, axis=0) >= -1e-12).all()
        means = np.sort(generator.uniform(0.3, 4, 8))
        accuracies = np.array([predict(table, deadlines[4], m, deviation, 0.2).accuracy for m in means])
        assert (np.diff(accuracies, axis=0) <= 1e-12).all()


def test_energy_at_its_edges() -> None:
    generator = np.random.default_rng(3)
    for _ in range(20):
        one, mean = some(generator, 3), generator.uniform(0.5, 2)
        exact = mean * one.latency[-1]
        assert predict(Table([one], FAIL), exact, mean, 0.1, 0.3).energy[0] == one.power * exact
        assert predict(Table([one], FAIL), 2 * exact, mean, 0.1, 1.0).energy[0] == pytest.approx(one.power * 2 * exact, rel=1e-14)


def test_idle_power_turns_the_order_of_slow_and_quick() -> None:
    slow = Configuration("n", "low", (1,), (0.1,), (0.9,), 10.0)
    quick = Configuration("n", "high", (1,), (0.05,), (0.9,), 18.0)
    table = Table([slow, quick], FAIL)
    assert predict(table, 0.1, 1, 0, 0.0).energy.argmin() == 1
    assert predict(table, 0.1, 1, 0, 0.25).energy.argmin() == 0


def test_one_observation_moves_the_predictions_of_all() -> None:
    profile = card()
    alert, goal = Alert(profile), Goal(0.12)
    before = alert.predict(goal)
    alert.observe(0, 2 * profile.configurations[0].latency[-1])
    after = alert.predict(goal)
    assert alert.mean == pytest.approx(1 + alert.slowdown.gain)
    assert (after.probability < before.probability).all() and (after.energy >= before.energy).all()


def test_a_stopped_network_teaches_by_its_last_answer() -> None:
    one = Configuration("n", "s", (1, 2, 3), (0.01, 0.02, 0.04), (0.5, 0.6, 0.7), 10.0)
    a, b = Alert(Profile((one,), FAIL, "s")), Alert(Profile((one,), FAIL, "s"))
    a.observe(0, 1.5 * 0.02, answer=1)
    b.observe(0, 1.5 * 0.04)
    assert a.mean == pytest.approx(b.mean)


def test_the_mean_alone_takes_no_caution_and_overhead_takes_time() -> None:
    goal = Goal(0.1001)
    cautious, bold, late = Alert(card()), Alert(card(), uncertain=False), Alert(card(), uncertain=False, overhead=0.001)
    network = [card().configurations[s.choose(goal)].network for s in (bold, late)]
    assert network == ["large", "medium"] and cautious.predict(goal).probability.max() < 1
    assert card().configurations[cautious.choose(goal)].network == "medium"


def brute(found: Prediction, goal: Goal) -> int:
    """The decision in plain words."""
    rows = list(zip(found.probability, found.accuracy, found.energy))
    left = list(range(len(rows)))
    if goal.probability is not None:
        left = [i for i in left if rows[i][0] >= goal.probability] or [i for i in left if rows[i][0] == max(r[0] for r in rows)]
    if goal.objective == "energy":
        good = [i for i in left if rows[i][1] >= goal.accuracy]
        if good:
            return min(good, key=lambda i: (rows[i][2], -rows[i][1]))
    elif goal.energy is not None:
        left = [i for i in left if rows[i][2] <= goal.energy] or left
    return max(left, key=lambda i: (rows[i][1], -rows[i][2]))


def test_decisions_are_those_of_plain_search() -> None:
    generator = np.random.default_rng(4)
    for case in range(500):
        found = Prediction(*generator.uniform(0, 1, (3, 8)).round(1))
        limits = generator.uniform(0, 1.2, 3)
        energy, accuracy, probability = (None if generator.random() < 0.3 else max(0.01, float(v)) for v in limits)
        goal = Goal(1.0, ("accuracy", "energy")[case % 2], energy, accuracy if accuracy is not None else 0.5, probability)
        chosen, expected = decide(found, goal), brute(found, goal)
        assert [a[chosen] for a in found] == [a[expected] for a in found] or found.accuracy[chosen] == found.accuracy[expected]
        assert found.energy[chosen] == found.energy[expected]


def test_what_cannot_be_had_is_given_up_energy_first_then_accuracy_the_deadline_last() -> None:
    # probability, accuracy, energy of three configurations
    found = Prediction(np.array([0.99, 0.6, 0.9]), np.array([0.5, 0.9, 0.7]), np.array([2.0, 3.0, 5.0]))
    assert decide(found, Goal(1, energy=2.5)) == 0
    assert decide(found, Goal(1, energy=1.0)) == 1  # no energy is enough: the most accurate, whatever it costs
    assert decide(found, Goal(1, "energy", accuracy=0.6)) == 1
    assert decide(found, Goal(1, "energy", accuracy=0.95)) == 1  # accuracy cannot be had: as much of it as there is
    assert decide(found, Goal(1, "energy", accuracy=0.65, probability=0.85)) == 2  # the cheaper one is too uncertain
    assert decide(found, Goal(1, "energy", accuracy=0.65, probability=0.95)) == 0  # in time, though neither accurate
    assert decide(found, Goal(1, energy=1.0, probability=0.999)) == 0  # nothing is sure enough: the surest
    impossible = Alert(card()).choose(Goal(1e-6, "energy", accuracy=1.0, probability=1.0))
    assert 0 <= impossible < 9


def test_equal_accuracies_are_settled_by_energy() -> None:
    found = Prediction(np.ones(3), np.array([0.7, 0.7, 0.7 - 1e-16]), np.array([3.0, 2.0, 1.0]))
    assert decide(found, Goal(1)) == 2


@pytest.mark.parametrize(
    "bad",
    [
        Goal(0.0),
        Goal(1.0, "accurcy"),
        Goal(1.0, "energy"),
        Goal(1.0, energy=0),
        Goal(1.0, accuracy=1.5),
        Goal(1.0, probability=-0.1),
    ],
)
def test_goals_that_cannot_be_meant(bad: Goal) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+\.$"):
        check_goal(bad)


def test_a_scheduler_chooses_only_what_it_may() -> None:
    alert = Alert(card(), Slowdown(process=0.01), only=[0, 4])
    assert {alert.choose(Goal(t)) for t in (0.001, 0.1, 1.0)} <= {0, 4} and alert.choose(Goal(1.0)) == 4
    with pytest.raises(UserError, match="at least one"):
        Alert(card(), only=[])
    assert replace(card(), idle=0.5).idle == Alert(replace(card(), idle=0.5)).idle.ratio
