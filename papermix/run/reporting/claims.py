"""Claims: ``conf/claim/<name>.yaml`` run as a small experiment, and judged by a rule that is fixed before.

A claim has arms (named lists of overrides), seeds, a measure, and inequalities over the arms' means. Every arm runs with every
seed, so that arms are compared seed by seed. An arm may be a grid (:mod:`papermix.run.reporting.grid`): swept, and tuned along
one key.
"""

import contextlib
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from papermix.errors import UserError, nearest
from papermix.run.allocator import release_memory
from papermix.run.catalog import CONF
from papermix.run.machine import cores, cpu_model
from papermix.run.reporting import grid
from papermix.run.reporting.grid import Grid
from papermix.run.reporting.inequality import Expression, Inequality, inequality
from papermix.run.reporting.papers import check_keys, read_yaml
from papermix.run.reporting.verdict import RULE, judge, overall

_KEYS = {"claim": str, "paper": str, "measure": str, "seeds": list, "common": list, "tune": dict, "arms": dict, "expect": list}


@dataclass(frozen=True)
class Claim:
    """A claim as it is declared.

    Attributes:
        sentence: what is claimed.
        paper: the paper it is from, a file of conf/paper, or None.
        measure: arithmetic over metrics and the numbers of ``result.json``.
        arms: overrides of each arm (of a grid: of each of its cells), those common to all included.
        grids: the arms that are swept, by name.
        expect: inequalities over the arms.
    """

    name: str
    sentence: str
    paper: str | None
    measure: Expression
    seeds: tuple[int, ...]
    arms: dict[str, list[str]]
    grids: dict[str, Grid]
    expect: tuple[Inequality, ...]


@dataclass(frozen=True)
class Outcome:
    """What a run gave: its number and its result, or the sentence it failed with."""

    value: float | None = None
    result: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


Outcomes = dict[str, dict[int, Outcome]]


def claim_names(conf: Path = CONF) -> list[str]:
    """Names of all claims."""
    return sorted(path.stem for path in (conf / "claim").glob("*.yaml"))


def load_claim(name: str, conf: Path = CONF) -> Claim:
    """Read and check a claim. Raises UserError that names the key at fault."""
    path, where = conf / "claim" / f"{name}.yaml", f"conf/claim/{name}.yaml"
    if not path.is_file():
        known = claim_names(conf)
        raise UserError(f"there is no claim {name!r}{nearest(name, known)}; there are {', '.join(known) or 'none'}.")
    tree = read_yaml(path, where)
    check_keys(tree, _KEYS, ("claim", "measure", "seeds", "arms", "expect"), where)
    tune = grid.check_tune(tree["tune"], where) if tree.get("tune") else None
    arms: dict[str, list[str]] = {}
    grids: dict[str, Grid] = {}
    for arm, own in tree["arms"].items():
        if not re.fullmatch(r"[A-Za-z_]\w*", str(arm)):
            raise UserError(f"{where}: arm {arm!r} must be a name of letters, digits and underscores.")
        overrides = _overrides(tree.get("common") or [], f"{where}: common") + _overrides(own, f"{where}: arms.{arm}")
        swept, cells = grid.expand(arm, overrides, *tune, where) if tune else (None, {arm: overrides})
        arms |= cells
        if swept:
            grids[arm] = swept
    if tune and not grids:
        raise UserError(f"{where}: tune is {tune[0]}, but no arm sweeps it.")
    families = {name: members for each in grids.values() for name, members in each.families.items()}
    try:
        measure = Expression(tree["measure"])
        expect = tuple(inequality(str(text), families) for text in tree["expect"])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    for unknown in sorted({n for e in expect for n in e.names} - set(arms).union(*families.values())):
        names = [*(a for a in tree["arms"] if a not in grids), *families]
        have = ", ".join(names)
        raise UserError(f"{where}: expect names {unknown!r}, which is no arm{nearest(unknown, names)}; there are {have}.")
    paper = tree.get("paper")
    if paper and not (conf / "paper" / f"{paper}.yaml").is_file():
        papers = [p.stem for p in (conf / "paper").glob("*.yaml")]
        raise UserError(f"{where}: there is no paper {paper!r} in conf/paper{nearest(paper, papers)}.")
    if not expect:
        raise UserError(f"{where}: expect is empty: give at least one inequality.")
    return Claim(name, " ".join(tree["claim"].split()), paper, measure, check_seeds(tree["seeds"], where), arms, grids, expect)


def _overrides(given: Any, where: str) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(o, str) and ("=" in o or o.startswith("~")) for o in given):
        raise UserError(f"{where} must be a list of overrides, like [sparsity=magnitude, trainer.max_epochs=10].")
    for override in given:
        if override.lstrip("+").partition("=")[0] == "seed":
            raise UserError(f"{where}: {override} is not for an arm: list the seeds under seeds.")
    return list(given)


def check_seeds(seeds: Sequence[Any], where: str) -> tuple[int, ...]:
    """Seeds as they are to be run. Raises UserError when there is none, one twice, or one that is no number."""
    if not seeds or len(set(seeds)) < len(seeds) or not all(isinstance(s, int) and not isinstance(s, bool) for s in seeds):
        raise UserError(f"{where}: seeds must be different whole numbers, at least one, not {list(seeds)}.")
    return tuple(seeds)


# ---- running -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """One run of a claim: its arm, seed, overrides, composed config and folder."""

    arm: str
    seed: int
    overrides: list[str]
    cfg: Any
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.folder / "result.json").is_file()


def plan(claim: Claim, outputs: Path, seeds: Sequence[int] | None = None) -> Iterator[Plan | tuple[str, int, str]]:
    """The runs of a claim, seed after seed; (arm, seed, sentence) for one whose command line is refused.

    A folder's name has the hash of the config: another config never takes up its runs.
    """
    from papermix.run.compose import compose, freeze
    from papermix.run.explain import explain
    from papermix.run.names import identity, short_hash

    for seed in seeds or claim.seeds:
        for arm, own in claim.arms.items():
            overrides = [*own, f"seed={seed}"]
            try:
                cfg = compose(overrides)
                place = outputs / "claims" / claim.name / arm / f"seed-{seed}-{short_hash(identity(cfg))}"
                freeze(cfg, overrides, place.absolute())
            except Exception as error:
                yield arm, seed, explain(error, overrides)
            else:
                yield Plan(arm, seed, overrides, cfg, place)


Start = Callable[[Any, Path, list[str]], dict[str, Any]]


def run(claim: Claim, outputs: Path, seeds: Sequence[int] | None = None, start: Start | None = None) -> Outcomes:
    """Run all arms with all seeds in this process, one after the other; finished runs are taken as they are.

    A run that fails is kept as its sentence and stops no other. What runs print goes to ``log.txt`` in the claim's folder.

    Args:
        outputs: folder of all runs.
        seeds: others than the declared ones, for trials.
        start: ``start(cfg, folder, overrides) -> result``; None: :func:`papermix.run.job.run`.
    """
    from papermix.run.explain import explain
    from papermix.run.launch import stop_signal

    if start is None:
        from papermix.run import job

        start = job.run
    outcomes: Outcomes = {arm: {} for arm in claim.arms}
    log = outputs / "claims" / claim.name / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    planned = list(plan(claim, outputs, seeds))
    for i, item in enumerate(planned, start=1):
        began = time.perf_counter()
        if not isinstance(item, Plan):
            arm, seed, sentence = item
            outcome = Outcome(error=sentence)
        else:
            arm, seed, finished = item.arm, item.seed, item.finished
            try:
                with open(log, "a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                    print(f"--- {arm}, seed {seed}: {' '.join(item.overrides)}", flush=True)
                    result = start(item.cfg, item.folder, item.overrides)
                outcome = Outcome(measured(claim, result), result)
            except Exception as error:
                if stop_signal(error) is not None:
                    raise
                outcome = Outcome(error=explain(error, item.overrides))
            sentence = "was there" if finished else f"{time.perf_counter() - began:.0f} s"
            if not finished:
                release_memory()
        outcomes[arm][seed] = outcome
        told = f"failed: {outcome.error}" if outcome.error else f"{outcome.value:.6g} ({sentence})"
        print(f"{claim.name} {i}/{len(planned)} {arm}, seed {seed}: {told}", flush=True)
    return outcomes


def measured(claim: Claim, result: Mapping[str, Any]) -> float:
    """The claim's measure of a run. Raises UserError for a name that the result lacks."""
    values: dict[str, float] = {k: v for k, v in result.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    values |= result["metrics"]
    for name in sorted(claim.measure.names):
        if name not in values:
            have = ", ".join(sorted(values))
            raise UserError(f"measure names {name!r}, which the run's result lacks{nearest(name, values)}; it has {have}.")
    return claim.measure.value(values)


# ---- what is kept --------------------------------------------------------------------------------------------------------------


def summary(claim: Claim, outcomes: Outcomes, seeds: Sequence[int] | None = None) -> dict[str, Any]:
    """All that is kept of a claim's runs, as JSON: numbers, verdict, and how they were made."""
    values = {arm: {s: o.value for s, o in each.items() if o.value is not None} for arm, each in outcomes.items()}
    failed = {arm for arm, each in outcomes.items() if any(o.error for o in each.values())}
    best = {name: each.best(values) for name, each in claim.grids.items()}
    for name, each in claim.grids.items():
        values |= best[name]
        for line in each.lines:
            failed |= {line.name, each.tuned_name(line)} if failed & set(line.cells.values()) else set()
    judgements = [judge(e, values, complete=not e.names & failed) for e in claim.expect]
    results = [o.result for each in outcomes.values() for o in each.values() if o.result]
    return {
        "name": claim.name,
        "claim": claim.sentence,
        "paper": claim.paper,
        "verdict": overall(judgements),
        "measure": claim.measure.text,
        "expect": [vars(j) | {"unit": _unit(claim, e)} for j, e in zip(judgements, claim.expect)],
        "arms": {arm: _arm(claim.arms[arm], outcomes[arm]) for arm in claim.arms},
        "grids": {name: grid.summary(each, best[name]) for name, each in claim.grids.items()},
        "seeds": list(seeds or claim.seeds),
        "rule": RULE,
        "command": f"python scripts/claims.py {claim.name}",
        "machine": machine(),
        "commits": sorted({_commit(r.get("git")) for r in results}),
        "versions": next((r["versions"] for r in results if "versions" in r), {}),
        "run_seconds": sum(r.get("wall_seconds", 0.0) for r in results),
    }


def _arm(overrides: list[str], each: Mapping[int, Outcome]) -> dict[str, Any]:
    values = [o.value for o in each.values() if o.value is not None]
    known = [o.result for o in each.values() if o.result]
    return {
        "overrides": overrides,
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None,
        "values": {str(s): o.value for s, o in each.items() if o.value is not None},
        "failed": {str(s): o.error for s, o in each.items() if o.error},
        "density": statistics.fmean(r["density"] for r in known) if known and all("density" in r for r in known) else None,
    }


def _unit(claim: Claim, expected: Inequality) -> str:
    """What an inequality's slack is: the measure, or the key that is tuned."""
    tuned = [each.tuned for each in claim.grids.values() if expected.names & set(each.families[each.at])]
    return tuned[0] if tuned else claim.measure.text


def _commit(git: Mapping[str, Any] | None) -> str:
    return "none" if not git else git["commit"] + (" with changes" if git.get("dirty") else "")


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, and the threads that torch was told to use (None: its own choice)."""
    return {"cpu": cpu_model(), "cores": cores(), "threads": os.environ.get("OMP_NUM_THREADS")}
