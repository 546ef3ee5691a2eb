"""Kill trainings at random moments, spoil their files, and see that the same command ends bit for bit as if nothing had happened.

    python scripts/torture.py                        50 disturbances, some minutes
    python scripts/torture.py --rounds 9 --seed 3    fewer, at other moments
    python scripts/torture.py --only saving flip     some kinds
    python scripts/torture.py --configs 1000         wrong command lines instead: refused with the right hint?

Kinds: kill (SIGKILL), term (SIGTERM), saving (SIGKILL while a checkpoint is written), full (a small disk; root only), cut (a checkpoint
cut short), flip (wrong bits in it), worker (SIGKILL to a worker of the data loader), nan, sweep (SIGKILL to a sweep).
Ends with status 1 when anything was lost or differs.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"

from papermix.errors import UserError, nearest  # noqa: E402
from papermix.run.result import print_table  # noqa: E402


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, metavar="N", help="disturbances, shared among the kinds (default 50)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of all moments (default 0)")
    parser.add_argument("--only", nargs="+", default=[], metavar="KIND", help="kinds of disturbance (default: all)")
    parser.add_argument("--configs", type=int, metavar="N", help="try N wrong command lines instead")
    parser.add_argument("--keep", action="store_true", help="keep the folder of all runs")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Torture; returns the exit status."""
    args = parse(arguments)
    if args.configs is not None:
        from scripts.torturing.configs import report

        return report(args.configs, args.seed)
    from scripts.torturing.faults import KINDS
    from scripts.torturing.rounds import Torture, plan, workshop

    for kind in args.only:
        if kind not in KINDS:
            raise UserError(f"there is no kind {kind!r}{nearest(kind, KINDS)}; there are {', '.join(KINDS)}.")
    if args.rounds < 1:
        raise UserError(f"--rounds={args.rounds} must be at least 1.")
    kinds = args.only or list(KINDS)
    if "full" in kinds and os.geteuid() != 0:
        print("full is left out: a small disk is a tmpfs, which only root may mount", flush=True)
        kinds.remove("full")
    with workshop(args.keep) as root:
        torture, rounds = Torture(root, args.seed), []
        for number, kind in enumerate(plan(args.rounds, kinds), start=1):
            done = torture.round(number, kind)
            rounds.append(done)
            print(f"{number:3} {kind:7} {done.what}{'; fell back' if done.fell_back else ''}: {'equal' if done.equal else 'NOT EQUAL'}", flush=True)
            for sentence in done.wrong:
                print(f"      {sentence.replace(str(root), '...')}", flush=True)
        lines = []
        for kind in kinds:
            own = [r for r in rounds if r.kind == kind]
            said = next((r.fell_back.replace(str(root), "...") for r in own if r.fell_back), "")
            back, lost = sum(bool(r.fell_back) for r in own), sum(bool(r.lost) for r in own)
            lines.append((kind, str(len(own)), str(sum(r.equal for r in own)), f"{back}{': ' + said if said else ''}", str(lost)))
        print_table(("kind", "moments", "bit-equal", "fell back", "lost"), lines)
        bad = [r for r in rounds if r.wrong]
        print(f"{len(rounds) - len(bad)} of {len(rounds)} as promised" + (f"; kept in {root}" if args.keep else ""))
    return int(bool(bad))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
