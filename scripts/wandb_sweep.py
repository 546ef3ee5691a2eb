"""Make the file of a Weights & Biases sweep from the overrides of a Hydra sweep.

    python scripts/wandb_sweep.py optimizer.lr=0.1,0.3 seed=1,2,3 > sweep.yaml
    python scripts/wandb_sweep.py 'optimizer.lr=tag(log,interval(0.01,1))' model=mlp,small_cnn trainer.max_epochs=20 > sweep.yaml
    wandb sweep sweep.yaml              prints the sweep's name
    wandb agent ENTITY/PROJECT/NAME     on as many machines as there are, each in this folder

Every value goes through the checks of train.py first.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from papermix.errors import UserError  # noqa: E402


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="a Hydra sweep: KEY=A,B  KEY=range(1,4)  KEY=interval(0,1)")
    parser.add_argument("--method", help="grid, random or bayes (default: grid where all values are listed, else bayes)")
    parser.add_argument("--metric", help="search by this number (default: what the task monitors)")
    parser.add_argument("--goal", help="max or min (default: as the task says)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> str:
    """The file's text."""
    import yaml

    from papermix.run.dashboards.sweep_file import sweep_file

    args = parse(arguments)
    return yaml.safe_dump(sweep_file(args.overrides, args.method, args.metric, args.goal), sort_keys=False, width=1000)


if __name__ == "__main__":
    try:
        print(main(), end="")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
