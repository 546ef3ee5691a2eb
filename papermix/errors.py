"""Errors that a user can cause, each told in one sentence that names the culprit and the cure."""

from collections.abc import Iterable
from difflib import SequenceMatcher


class UserError(Exception):
    """Bad input: a typo, a missing file, an impossible mix. Shown as one sentence, without a stack trace."""


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the candidate spelled most like ``name``, or an empty string."""
    wanted = name.lower()
    # among equals the one of the same letters in another order, then the one that begins alike
    scored = [(*_likeness(c.lower(), wanted), c) for c in dict.fromkeys(candidates)]
    best = max(scored, default=(0.0, False, 0, ""), key=lambda s: s[:3])
    return f" (did you mean '{best[3]}'?)" if best[0] >= 0.5 else ""


def _likeness(a: str, b: str) -> tuple[float, bool, int]:
    return SequenceMatcher(None, a, b).ratio(), sorted(a) == sorted(b), _common_start(a, b)


def _common_start(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
