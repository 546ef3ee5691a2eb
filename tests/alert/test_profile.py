"""Profiles: what they refuse, what they keep in a file, which exits are worth waiting for."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from papermix.alert.profile import Configuration, Profile, configuration, last
from papermix.errors import UserError
from tests.alert.world import card

ONE = Configuration("n", "s", (1, 2, 4), (0.01, 0.02, 0.04), (0.5, 0.6, 0.7), 10.0)


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    profile = Profile((ONE, replace(ONE, setting="t", power=20.0)), 0.25, "t", 0.3)
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == profile
    assert profile.longest == 0.04 and profile.highest == 20 and profile.where(setting="t") == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["profile.json"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"latency": (0.02, 0.01, 0.04)}, "must rise"),
        ({"accuracy": (0.5, 0.5, 0.7)}, "must rise"),
        ({"accuracy": (0.5, 0.6, 1.7)}, "lie in"),
        ({"latency": (0.01, 0.02)}, "one length"),
        ({"power": 0.0}, "above 0"),
        ({"power": float("nan")}, "finite"),
        ({"exits": ()}, "one length"),
    ],
)
def test_what_cannot_be_is_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=f"^configuration 1 of the profile .n at s.: .*{said}.*[.]$"):
        Profile((ONE, replace(ONE, **change)), 0.1, "s")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no readable profile"),
        ("[]", "no profile"),
        ('{"configurations": [{"network": "n"}], "fail": 0, "default": "s"}', "configuration 0 lacks setting"),
        ('{"configurations": [{"netwrok": "n"}], "fail": 0, "default": "s"}', "did you mean 'network'"),
        ('{"configurations": [], "fail": 0, "default": "s"}', "no configuration"),
        ('{"configurations": [3], "fail": 0, "default": "s"}', "mapping"),
    ],
)
def test_a_bad_file_is_told_in_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        Profile.load(tmp_path / "p.json")
    assert str(tmp_path / "p.json") in str(caught.value) and "\n" not in str(caught.value)


def test_a_wrong_type_and_default_in_a_file(tmp_path: Path) -> None:
    card().save(tmp_path / "p.json")
    tree = json.loads((tmp_path / "p.json").read_text())
    for key, value, said in (("fail", "x", "must be a number"), ("default", "41 W", "did you mean '40 W'")):
        (tmp_path / "p.json").write_text(json.dumps({**tree, key: value}))
        with pytest.raises(UserError, match=said):
            Profile.load(tmp_path / "p.json")


def test_exits_that_are_no_better_are_not_waited_for() -> None:
    found = configuration("n", "s", [0.01, 0.02, 0.03, 0.04], [0.5, 0.7, 0.6, 0.8], 10)
    assert found.exits == (1, 2, 4) and found.accuracy == (0.5, 0.7, 0.8) and found.latency == (0.01, 0.02, 0.04)
    assert last(found).exits == (4,) and not last(found).anytime


def test_stops_on_purpose_are_the_first_exits() -> None:
    found = Profile((ONE,), 0.1, "s").with_stops().configurations
    assert [c.exits for c in found] == [(1, 2, 4), (1,), (1, 2)]
    assert found[2].latency == (0.01, 0.02) and found[2].accuracy == (0.5, 0.6)
    assert card().with_stops() == card()
