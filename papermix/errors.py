"""Errors that a user can cause, each told in one sentence that names the culprit and the cure."""

from collections.abc import Iterable
from difflib import SequenceMatcher
from os.path import commonprefix


class UserError(Exception):
    """Bad input: a typo, a missing file, an impossible mix. Shown as one sentence, without a stack trace."""


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the candidate spelled most like ``name``, or an empty string."""
    wanted = name.lower()
    scored = [(SequenceMatcher(None, c.lower(), wanted).ratio(), len(commonprefix([c.lower(), wanted])), c) for c in dict.fromkeys(candidates)]
    best = max(scored, default=(0.0, 0, ""), key=lambda s: s[:2])  # among equals, the one that begins alike
    return f" (did you mean '{best[2]}'?)" if best[0] >= 0.5 else ""
