"""The verdict on a claim: what its inequalities say, seed by seed, and how sure that is."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from papermix.run.reporting.inequality import Inequality

CONFIRMED, REFUTED, OPEN = "confirmed", "not confirmed", "inconclusive"
RULE = (
    "The slack of an inequality is how far the arms' means over the seeds are from its edge. Its uncertainty is the half width "
    "of the two-sided 95 % interval of Student's t over the slacks of the single seeds (paired: all arms have the same seeds). "
    "It is confirmed when slack - uncertainty >= 0, not confirmed when slack + uncertainty < 0, inconclusive in between, with "
    "fewer than two seeds, or when a run of its arms failed. The claim is confirmed when all its inequalities are, not confirmed "
    "when one is not."
)


@dataclass(frozen=True)
class Judgement:
    """An inequality's slack, the half width of its 95 % interval (None: unknown), the seeds it rests on, and the verdict."""

    text: str
    slack: float | None
    uncertainty: float | None
    seeds: int
    verdict: str


def judge(expected: Inequality, arms: Mapping[str, Mapping[int, float]], complete: bool = True) -> Judgement:
    """Judge one inequality by :data:`RULE`.

    Args:
        expected: the inequality.
        arms: value of each seed of each arm.
        complete: whether all runs of its arms have a value.
    """
    shared = sorted(set.intersection(*(set(arms[name]) for name in expected.names))) if expected.names else []
    if not shared:
        return Judgement(expected.text, None, None, 0, OPEN)
    slack = expected.slack({name: statistics.fmean(arms[name][s] for s in shared) for name in expected.names})
    each = [expected.slack({name: arms[name][s] for name in expected.names}) for s in shared]
    if len(each) < 2 or not all(map(math.isfinite, [slack, *each])):
        return Judgement(expected.text, slack if math.isfinite(slack) else None, None, len(shared), OPEN)
    uncertainty = t_quantile(len(each) - 1) * statistics.stdev(each) / math.sqrt(len(each))
    sure = slack - uncertainty > 0 or (slack - uncertainty == 0 and "=" in expected.sense)
    against = slack + uncertainty < 0 or (slack + uncertainty == 0 and "=" not in expected.sense)
    verdict = OPEN if not complete else CONFIRMED if sure else REFUTED if against else OPEN
    return Judgement(expected.text, slack, uncertainty, len(shared), verdict)


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def overall(judgements: Sequence[Judgement]) -> str:
    """The claim's verdict from those of its inequalities."""
    verdicts = {j.verdict for j in judgements}
    return REFUTED if REFUTED in verdicts else OPEN if OPEN in verdicts else CONFIRMED
