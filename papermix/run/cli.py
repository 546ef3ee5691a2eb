"""The command line: Hydra composes, ``papermix.run.job`` runs; every failure ends in one sentence."""

import contextlib
import functools
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from papermix.run.catalog import CONF
from papermix.run.explain import explain, is_expected
from papermix.run.launch import stop_signal
from papermix.run.names import register_resolvers

# our sweepers are ordinary Hydra plugins that need no installation
PLUGINS = Path(__file__).parent / "plugins"


def task(cfg: Any) -> dict[str, Any]:
    """What Hydra calls with each composed config; returns the run's result."""
    from hydra.core.hydra_config import HydraConfig

    from papermix.run import job

    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    try:
        return job.run(cfg, run_dir, [str(o) for o in hydra.overrides.task])
    finally:
        with contextlib.suppress(OSError):
            run_dir.rmdir()  # Hydra makes the folder first: a config that was refused leaves none behind


def _single(cfg: Any, failures: list[BaseException]) -> None:
    """One run; its failure is handed over, since Hydra would print a line of its own about it."""
    try:
        task(cfg)
    except Exception as error:
        failures.append(error)


def main() -> None:
    """Entry point of ``train.py``."""
    # exceptions come to us whole instead of being printed by Hydra
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.path.insert(0, str(PLUGINS))
    import hydra

    register_resolvers()
    # a group's option cannot be a bare boolean in Hydra's grammar
    sys.argv[1:] = [{"debug=true": "debug=traceback", "debug=false": "debug=null"}.get(a, a) for a in sys.argv[1:]]
    # argparse takes -m before the overrides or behind them, but not between them
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda a: a not in ("-m", "--multirun"))
    overrides = sys.argv[1:]
    failures: list[BaseException] = []
    sweeping = "-m" in overrides or "--multirun" in overrides
    function = task if sweeping else functools.partial(_single, failures=failures)
    try:
        hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")(function)()
    except (Exception, KeyboardInterrupt) as error:
        failures.append(error)
    for failure in failures:
        if "debug=traceback" in overrides or "traceback=true" in overrides:
            traceback.print_exception(failure)
        hint = "" if is_expected(failure) else "\n(debug=true shows the stack trace)"
        print(f"error: {explain(failure, overrides)}{hint}", file=sys.stderr)
        number = stop_signal(failure)
        sys.exit(1 if number is None else 128 + number)
