"""Test claims: run each arm with each seed, compare, and say confirmed, not confirmed or inconclusive.

    python scripts/claims.py foundation            one claim (a file of conf/claim)
    python scripts/claims.py --all                 all of them
    python scripts/claims.py foundation --dry      show the runs, train nothing
    python scripts/claims.py foundation --seeds 1  a trial with other seeds: printed, kept in no document

Runs lie in outputs/claims/NAME; the same command continues, and takes finished runs as they are. Results go to
docs/claims/NAME.json and .png and into docs/RESULTS.md.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from papermix.errors import UserError  # noqa: E402


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="claims to test")
    parser.add_argument("--all", action="store_true", help="test all claims")
    parser.add_argument(
        "--seeds", nargs="+", type=int, metavar="SEED", help="run these instead of the declared seeds; writes no documents"
    )
    parser.add_argument("--dry", action="store_true", help="compose and check all runs, show them, train nothing")
    parser.add_argument("--outputs", type=Path, metavar="DIR", help="where runs lie (default: outputs)")
    return parser.parse_args(arguments)


def show_plan(claim: Any, outputs: Path, seeds: list[int] | None) -> int:
    """Print a claim's runs; returns how many of them cannot be composed."""
    from papermix.run.job import command
    from papermix.run.reporting.claims import Plan, plan

    print(f"{claim.name}: {claim.sentence}")
    refused = 0
    for item in plan(claim, outputs, seeds):
        if isinstance(item, Plan):
            print(f"  {'done' if item.finished else 'to do'}  {item.arm}: {command(item.overrides)}")
        else:
            refused += 1
            print(f"  refused  {item[0]}, seed {item[1]}: {item[2]}")
    print(f"  expected of {claim.measure.text}: {'; '.join(e.text for e in claim.expect)}")
    return refused


def show(found: dict[str, Any]) -> None:
    """Print what a claim's runs gave."""
    from papermix.run.reporting import grid
    from papermix.run.reporting.claims_page import plain_arms, slack, text
    from papermix.run.result import print_table

    measure = found["measure"]
    arms = [[n, text(measure, a["mean"]), text(measure, a["std"]), str(len(a["values"]))] for n, a in plain_arms(found).items()]
    title = f"{found['name']}: {found['verdict']}"
    if arms:
        print_table(["arm", f"mean {measure}", "standard deviation", "seeds"], arms, title=title)
    if found["grids"]:
        print_table(
            ["line of a grid", f"mean {measure} of its best runs", "seeds", "best at (seeds)"], grid.rows(found), title=title
        )
    expected = [[e["text"], slack(e, found), slack(e, found, "uncertainty"), e["verdict"]] for e in found["expect"]]
    print_table(["expected", "slack", "uncertainty (95 %)", "verdict"], expected)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Run claims; returns 1 when a run failed."""
    args = parse(arguments)
    from papermix.run.reporting import blocks, catalog_page, claims, claims_page
    from papermix.run.result import shown

    outputs = (args.outputs or Path(os.environ.get("PAPERMIX_OUTPUTS", "outputs"))).absolute()
    known = claims.claim_names()
    if args.all == bool(args.names):
        raise UserError(f"name claims, or --all for all of them; there are {', '.join(known) or 'none'}.")
    chosen = [claims.load_claim(name) for name in (known if args.all else args.names)]
    seeds = list(claims.check_seeds(args.seeds, "--seeds")) if args.seeds else None
    failed = 0
    for claim in chosen:
        if args.dry:
            failed += show_plan(claim, outputs, seeds)
            continue
        found = claims.summary(claim, claims.run(claim, outputs, seeds), seeds)
        failed += sum(len(arm["failed"]) for arm in found["arms"].values())
        show(found)
        if len(found["commits"]) > 1:
            print(
                f"note: its runs are of several commits: delete {shown(outputs / 'claims' / claim.name)} to run all anew",
                file=sys.stderr,
            )
        if seeds is None or tuple(seeds) == claim.seeds:
            written = [shown(path) for path in claims_page.keep(found, root)]
            print("written to " + ", ".join([*written, *blocks.write(catalog_page.pages(root))]))
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    except KeyboardInterrupt:
        sys.exit("stopped by the keyboard; the same command continues.")
