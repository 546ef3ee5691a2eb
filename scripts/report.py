"""Compare runs: one HTML page that needs nothing else (table, curves, heat map, fronts, pictures), and tables for papers.

    python scripts/report.py                                        all runs under outputs/
    python scripts/report.py outputs/sweeps/NAME outputs/RUN        those in some folders
    python scripts/report.py --where dataset=digits model=mlp,small_cnn optimizer.lr=0.1 tag=night
    python scripts/report.py --metric val/loss

Writes report.html, report.md, report.tex, report.csv and pictures into FOLDER/report (several folders: into outputs/report).
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from papermix.errors import UserError  # noqa: E402

_TOLD = 5  # unfinished runs named in the terminal


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="folders with runs, or runs (default: outputs)")
    what = "only runs with this option, tag, or config value; patterns (resnet*) and lists (1,2) work"
    parser.add_argument("--where", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help=what)
    parser.add_argument("--metric", help="compare by this metric or number of result.json (default: the monitored one)")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="write into this folder")
    size = "megabytes of pictures in the page at most, 0 for none (default: %(default)s)"
    parser.add_argument("--pictures-mb", type=float, default=4.0, metavar="MB", help=size)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> list[Path]:
    """Read, print, write; returns the written files."""
    args = parse(arguments)
    from papermix.run.reporting import report, tables
    from papermix.run.reporting.papers import load_papers
    from papermix.run.reporting.runs import read_runs, select
    from papermix.run.reporting.write import write
    from papermix.run.result import print_table, shown

    outputs = Path(os.environ.get("PAPERMIX_OUTPUTS", "outputs"))
    folders = args.folders or [outputs]
    found = read_runs(*folders)
    chosen = select(found.runs, args.where)
    papers = load_papers()
    sections, notes = report.sections(chosen, papers, args.metric)
    notes = [*found.problems, *notes]
    for section in sections:
        header, lines = tables.lines(section)
        print_table(header, lines, title=tables.title(section))
    unfinished = [f"{shown(u.folder)} is not finished ({u.why})." for u in found.unfinished]
    more = [f"and {len(unfinished) - _TOLD} more; the report names them all."] if len(unfinished) > _TOLD else []
    for note in [*unfinished[:_TOLD], *more, *notes]:
        print(f"note: {note}", file=sys.stderr)
    summary = tables.counts(len(chosen), len(found.runs), len(found.unfinished), len(found.problems))
    print(summary)
    if not sections:
        where = ", ".join(map(shown, folders))
        if found.runs and not chosen:
            raise UserError(f"none of {len(found.runs)} runs in {where} has {' and '.join(args.where)}.")
        cure = "name one of its numbers with --metric" if chosen else "start one with python train.py"
        raise UserError(f"{where} has no finished run{' with a monitored metric' if chosen else ''}: {cure}.")
    command = shlex.join(["python", "scripts/report.py", *(sys.argv[1:] if arguments is None else arguments)])
    place = args.to or (folders[0] if len(folders) == 1 else outputs) / "report"
    files = write(place, chosen, sections, papers, found.unfinished, notes, summary, command, round(args.pictures_mb * 1e6))
    print(f"written to {shown(place)}: {', '.join(p.name for p in files if p.parent == place and p.suffix != '.png')}, pictures")
    return files


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
