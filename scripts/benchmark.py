"""Measure what this project promises about speed: ratios within one run, never absolute times.

    python scripts/benchmark.py                     all of them
    python scripts/benchmark.py overhead startup    some
    python scripts/benchmark.py text --train        bits per character after ten minutes of training, too
    python scripts/benchmark.py --json bench.json --write

Stops when the machine is busy (--force goes on). --write puts the tables into docs/RESULTS.md.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from papermix.errors import UserError, nearest  # noqa: E402
from papermix.run.allocator import keep_freed_memory  # noqa: E402
from papermix.run.machine import cores  # noqa: E402
from scripts.benchmarks import NAMES  # noqa: E402
from scripts.benchmarks import harness as h  # noqa: E402

PAGE = ROOT / "docs" / "RESULTS.md"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--repetitions", type=int, default=7, metavar="N", help="rounds that count, at least five (default 7)")
    parser.add_argument("--threads", type=int, metavar="N", help="torch's threads (default: what each benchmark chooses)")
    parser.add_argument(
        "--device", choices=("cpu", "gpu", "auto"), default="cpu", help="where training is measured (default cpu)"
    )
    parser.add_argument("--train", action="store_true", help="also train where quality has a bound (minutes)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and one round: does it run at all")
    parser.add_argument("--force", action="store_true", help="go on although the machine is busy")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results here")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/RESULTS.md")
    return parser.parse_args(arguments)


def chosen(names: list[str]) -> list[str]:
    """The benchmarks asked for, all when none is named. Raises UserError for an unknown one."""
    for name in names:
        if name not in NAMES:
            raise UserError(f"there is no benchmark {name!r}{nearest(name, NAMES)}; there are {', '.join(NAMES)}.")
    return names or list(NAMES)


def main(arguments: list[str] | None = None, page: Path = PAGE) -> dict[str, Any]:
    """Run the benchmarks, print and store what they found, and return it."""
    args = parse(arguments)
    names = chosen(args.names)
    if args.repetitions < 5 and not args.smoke:
        raise UserError(f"--repetitions={args.repetitions} is too few for a median: use at least 5.")
    if args.write and args.smoke:
        raise UserError("--smoke measures nothing that could be written: drop --write.")
    before = h.load()
    h.check_idle(before, cores(), args.force or args.smoke)
    options = h.Options(1 if args.smoke else args.repetitions, args.smoke, args.train, args.threads, args.device)
    around = h.surroundings(before)
    print(f"{around['machine']['cpu']}, {around['machine']['cores']} cores, load {before:.2f}", flush=True)
    results: dict[str, Any] = {**around, "benchmarks": {}}
    for name in names:
        # as train.py does; what is compared with it gives it back
        keep_freed_memory()
        report = importlib.import_module(f"scripts.benchmarks.{name}").run(options)
        print("\n".join(h.lines(report)), flush=True)
        results["benchmarks"][name] = report.as_json()
        if args.json:
            args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        if args.write:
            text = page.read_text(encoding="utf-8") if page.exists() else "# Results\n"
            page.write_text(h.put_block(text, name, h.markdown(report, around)), encoding="utf-8")
    return results


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
