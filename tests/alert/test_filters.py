"""The filters' equations, number by number."""

import pytest

from papermix.alert.filters import IdlePower, Slowdown
from papermix.errors import UserError


def test_the_card_s_trace_to_six_digits() -> None:
    one = Slowdown()
    expected = [
        (1.0, 0.15, 0.993377),
        (1.495098, 0.100993, 0.990195),
        (1.499976, 0.202575, 0.995088),
        (1.004902, 0.100995, 0.990196),
    ]
    for ratio, (mean, variance, gain) in zip((1.0, 1.5, 1.5, 1.0), expected):
        one.update(ratio)
        assert (one.mean, one.variance, one.gain) == pytest.approx((mean, variance, gain), abs=6e-7)
        assert one.deviation == pytest.approx(variance**0.5, abs=1e-6)


def test_the_noise_is_that_of_the_step_before_and_dies_away() -> None:
    one = Slowdown(process=0.01)
    one.update(3.0)
    jumped = one.variance
    one.update(3.0)
    assert one.variance > 2 > jumped  # (K y)^2 of the jump comes a step later
    for _ in range(50):
        one.update(3.0)
    assert one.variance == pytest.approx(0.01, rel=0.2) and one.mean == pytest.approx(3.0)


def test_idle_power_follows_its_equations() -> None:
    one = IdlePower(0.25)
    one.update(0.5)
    weight = 0.0101 / 0.0111
    assert one.ratio == pytest.approx(0.25 + weight * 0.25, abs=1e-12)
    assert one.variance == pytest.approx((1 - weight) * 0.0101, abs=1e-12)
    for _ in range(100):
        one.update(0.5)
    assert one.ratio == pytest.approx(0.5)


@pytest.mark.parametrize(
    "bad", [{"variance": -1}, {"gain": 1.5}, {"memory": -0.1}, {"mean": 0}, {"process": 0, "measurement": 0}]
)
def test_constants_that_cannot_be(bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match="slowdown"):
        Slowdown(**bad)
    with pytest.raises(UserError, match="idle"):
        IdlePower(process=-1)
