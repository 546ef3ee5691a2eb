"""Compare all runs below a folder: tables of runs equal up to the seed, best first, curves, and what accuracy costs.

    python scripts/report.py                                        all runs under outputs/
    python scripts/report.py outputs/sweeps/NAME                    those of a sweep
    python scripts/report.py --where dataset=digits model=mlp,small_cnn optimizer.lr=0.1 tag=night
    python scripts/report.py --metric val/loss

Writes report.md, report.csv and pictures into FOLDER/report.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from papermix.errors import UserError  # noqa: E402


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="folder with runs (default: outputs)")
    what = "only runs with this option, tag, or config value; patterns (resnet*) and lists (1,2) work"
    parser.add_argument("--where", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help=what)
    parser.add_argument("--metric", help="compare by this metric or number of result.json (default: the monitored one)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> list[Path]:
    """Read, print, write; returns the written files."""
    args = parse(arguments)
    from papermix.run.reporting import report
    from papermix.run.reporting.papers import load_papers
    from papermix.run.reporting.runs import read_runs, select
    from papermix.run.result import print_table, shown

    folder = args.folder or Path(os.environ.get("PAPERMIX_OUTPUTS", "outputs"))
    found = read_runs(folder)
    chosen = select(found.runs, args.where)
    sections, notes = report.sections(chosen, load_papers(), args.metric)
    notes = [*found.problems, *notes]
    for section in sections:
        print_table(*report.lines(section), title=report.title(section))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    counts = [f"{len(chosen)} of {len(found.runs)} runs"]
    counts += [f"{found.unfinished} unfinished"] if found.unfinished else []
    counts += [f"{len(found.problems)} unreadable"] if found.problems else []
    print(", ".join(counts))
    if not chosen:
        if found.runs:
            raise UserError(f"none of {len(found.runs)} runs in {folder} has {' and '.join(args.where)}.")
        raise UserError(f"{folder} has no finished run: start one with python train.py.")
    command = shlex.join(["python", "scripts/report.py", *(sys.argv[1:] if arguments is None else arguments)])
    files = report.write(folder / "report", sections, notes, command)
    print(f"written to {shown(folder / 'report')}: report.md, report.csv, {len(files) - 2} pictures")
    return files


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
