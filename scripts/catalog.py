"""Show what there is: papers, options of every group, and what mixes with what.

python scripts/catalog.py                   all of it
python scripts/catalog.py model optimizer   some groups; `papers`, `mixes` and `claims` are parts, too
python scripts/catalog.py --write           write docs/catalog.md, docs/config, the README's table of papers, the claims in docs/RESULTS.md
python scripts/catalog.py --check           exit with 1 when these are not up to date
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from papermix.errors import UserError, nearest  # noqa: E402


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="groups to show, papers, mixes or claims (default: all)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--write", action="store_true", help="write the generated pages")
    mode.add_argument("--check", action="store_true", help="exit with 1 when a generated page is not up to date")
    return parser.parse_args(arguments)


def show(parts: list[str]) -> None:
    """Print tables. Raises UserError for a part that there is not."""
    from papermix.run.catalog import options
    from papermix.run.reporting import catalog_page as page
    from papermix.run.reporting.papers import load_papers
    from papermix.run.result import print_table

    known = ["papers", "mixes", *page.GROUPS, "claims"]
    for part in parts:
        if part not in known:
            raise UserError(f"the catalog has no part {part!r}{nearest(part, known)}; there are {', '.join(known)}.")
    for part in parts or known:
        if part == "papers":
            papers = load_papers().values()
            lines = [[p.name, p.title, p.cited, ", ".join(p.options)] for p in papers]
            print_table(
                ["paper", "title", "", "options"], lines, title="papers" if lines else "papers: none yet, this is the foundation"
            )
        elif part == "mixes":
            print_table(*page.mix_table(), title="methods that go with each dataset (column) and model (line)")
        elif part == "claims":
            print_table(["claim", "says"], page.claims(), title="claims: python scripts/claims.py NAME")
        elif options(part):
            print_table(*page.option_table(part), title=f"{part}: {page.GROUPS[part]}")


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Show, write or check; returns the exit status."""
    args = parse(arguments)
    if not args.write and not args.check:
        show(args.parts)
        return 0
    from papermix.run.reporting import catalog_page, config_page
    from papermix.run.reporting.blocks import stale, write

    pages = {**config_page.pages(root), **catalog_page.pages(root)}
    if args.write:
        print("written: " + (", ".join(write(pages)) or "nothing, all is up to date"))
        return 0
    old = [str(path.relative_to(root)) for path in stale(pages)]
    if old:
        print(f"not up to date: {', '.join(old)}; run: python scripts/catalog.py --write", file=sys.stderr)
    return 1 if old else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
