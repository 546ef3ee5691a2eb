"""The losses of the first 20 steps of every option, as they were when it was last looked at: a change of behaviour is seen.

After an intended change: ``python -m tests.test_golden`` writes the file anew; the diff of ``golden.json`` shows what moved.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest

from tests.machine import Losses, run
from tests.settings import TABLE, smallest

FILE = Path(__file__).with_name("golden.json")
CASES = [f"{group}={name}" for group, table in TABLE.items() for name in table]


def losses(case: str, place: Path) -> list[float]:
    """The losses of 20 steps."""
    group, _, name = case.partition("=")
    kept = Losses()
    overrides = [*smallest(**{group: name}), "trainer.max_epochs=1", "trainer.limit_train_batches=20", "test=none"]
    run(overrides, place, kept)
    return kept.values


@pytest.mark.parametrize("case", CASES)
def test_losses_are_as_they_were(case: str, tmp_path: Path) -> None:
    golden = json.loads(FILE.read_text())
    assert case in golden, "run python -m tests.test_golden"
    values = losses(case, tmp_path)
    assert len(values) == 20
    # other processors round differently, and differences grow from step to step
    assert values[:5] == pytest.approx(golden[case][:5], rel=1e-4)
    assert values == pytest.approx(golden[case], rel=2e-2)


if __name__ == "__main__":
    found = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as place:
            found[case] = [float(f"{v:.7g}") for v in losses(case, Path(place))]
        print(case, found[case][0], found[case][-1], file=sys.stderr)
    FILE.write_text("{\n" + ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in found.items()) + "\n}\n")
