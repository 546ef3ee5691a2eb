"""The command line: Hydra composes, ``papermix.run.job`` runs; every failure ends in one sentence."""

import contextlib
import functools
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from papermix.errors import UserError, nearest
from papermix.run import guard
from papermix.run.catalog import CONF
from papermix.run.explain import explain, is_expected
from papermix.run.launch import check_alone, stop_signal
from papermix.run.names import register_resolvers

# our sweepers are ordinary Hydra plugins that need no installation
PLUGINS = Path(__file__).parent / "plugins"


def task(cfg: Any) -> dict[str, Any]:
    """What Hydra calls with each composed config; returns the run's result."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from papermix.run import job

    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    launcher = hydra.runtime.choices["hydra/launcher"]
    try:
        if hydra.mode == RunMode.RUN and launcher != "basic":
            chosen = hydra.runtime.choices.get("hardware")
            raise UserError(f"hardware={chosen} starts runs through hydra/launcher={launcher}, which needs -m: python train.py -m ...")
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


def _check_flags(arguments: list[str]) -> None:
    """Refuse what begins with a dash and is no flag of Hydra's: mostly an override written as other programs want it."""
    from hydra._internal.utils import get_args_parser

    flags = list(get_args_parser()._option_string_actions)
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if name.startswith("-") and not any(f.startswith(name) for f in flags) and argument[:2] not in flags:
            cure = f"write {argument.lstrip('-')} without dashes" if equals else "settings are written key=value, without dashes"
            raise UserError(f"{argument} is no option of train.py{nearest(name, flags)}: {cure}.")


def main() -> None:
    """Entry point of ``train.py``."""
    # exceptions come to us whole instead of being printed by Hydra
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.path.insert(0, str(PLUGINS))
    import hydra

    register_resolvers()
    guard.install()
    # a group's option cannot be a bare boolean in Hydra's grammar
    sys.argv[1:] = ["debug=traceback" if a.lower() == "debug=true" else a for a in sys.argv[1:] if a.lower() != "debug=false"]
    # argparse takes -m before the overrides or behind them, but not between them
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda a: a not in ("-m", "--multirun"))
    overrides = sys.argv[1:]
    failures: list[BaseException] = []
    sweeping = "-m" in overrides or "--multirun" in overrides
    function = task if sweeping else functools.partial(_single, failures=failures)
    try:
        check_alone()
        _check_flags(overrides)
        hydra.main(config_path=str(CONF), config_name="train", version_base="1.3")(function)()
    except (Exception, KeyboardInterrupt) as error:
        failures.append(error)
    except SystemExit as error:
        if stop_signal(error) is None:
            raise
        failures.append(error)  # Lightning's way to end on Ctrl-C
    for failure in failures:
        expected = is_expected(failure)
        presets = any(o.startswith("debug=") for o in overrides)
        if "debug=traceback" in overrides or "traceback=true" in overrides or (presets and not expected):
            traceback.print_exception(failure)
        notes = getattr(failure, "__notes__", None) or ["debug=true shows the stack trace"]
        hint = "" if expected else f"\n({notes[-1]})"
        print(f"error: {explain(failure, overrides)}{hint}", file=sys.stderr)
        number = stop_signal(failure)
        sys.exit(1 if number is None else 128 + number)
