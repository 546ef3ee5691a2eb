"""Wrong command lines, drawn at random: each is refused before torch is needed, in one sentence, with the right spelling."""

import pytest

from papermix.errors import nearest
from scripts.torturing.configs import KINDS, Fuzzer, answers, misspelt, warm


def judged(count: int, seed: int) -> None:
    """All of ``count`` wrong command lines are refused; at least 95 % of the typos get the right hint."""
    every = answers(count, seed)
    accepted = [a.wrong.overrides for a in every if not a.sentence]
    assert not accepted, accepted
    typos = [a for a in every if a.wrong.right]
    wrong = [(a.wrong.overrides[-1], a.wrong.right, a.sentence) for a in typos if not a.hinted]
    assert len(wrong) <= 0.05 * len(typos), wrong


def test_a_hundred() -> None:
    judged(100, seed=1)


@pytest.mark.slow
def test_a_thousand() -> None:
    judged(1000, seed=2)


def test_what_is_drawn() -> None:
    """The same seed draws the same faults, of all kinds, none of them twice in a row."""
    with warm():
        first, second = (Fuzzer(3), Fuzzer(3))
        drawn = [first.one() for _ in range(60)]
        assert drawn == [second.one() for _ in range(60)]
    assert {d.kind for d in drawn} == set(KINDS)
    assert len({tuple(d.overrides) for d in drawn}) > 55


def test_typing_errors_are_small() -> None:
    import random

    draw = random.Random(0)
    for word in ("lr", "seed", "optimizer", "momentum"):
        for _ in range(200):
            typed = misspelt(word, draw)
            assert typed and abs(len(typed) - len(word)) <= 2


def test_the_nearest_spelling() -> None:
    """Letters that changed places win a tie, then a common beginning; what is like nothing gets no hint."""
    hints = [("pgu", ("cpu", "gpu"), "gpu"), ("sed", ("used", "seed"), "seed"), ("LR", ("lr", "wd"), "lr"), ("xyz", ("lr", "wd"), "")]
    for typed, names, meant in hints:
        assert nearest(typed, names) == (f" (did you mean '{meant}'?)" if meant else "")
    assert nearest("lr", []) == ""
