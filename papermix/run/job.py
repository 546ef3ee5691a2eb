"""One run: freeze its config, go through its stages, start the processes of each, write the result."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from papermix.errors import UserError
from papermix.run import folder
from papermix.run.cluster import srun
from papermix.run.compose import freeze
from papermix.run.explain import keep_trace
from papermix.run.guard import check_safe
from papermix.run.result import print_result, shown

RESULT = "result.json"
# how the run was started: its stages in order, the overrides, the option chosen in each group, whether a sweep did
ORIGIN = "origin.json"
# stack trace of the unexpected error that ended the run; gone once it has finished
ERROR = "error.txt"


def run(cfg: DictConfig, run_dir: Path, overrides: list[str]) -> dict[str, Any]:
    """Run (or continue) the experiment of a composed config in its folder.

    Args:
        cfg: composed config, interpolations unresolved.
        run_dir: the run's folder.
        overrides: the user's own overrides, for the stages and for the record.

    Returns:
        What ``result.json`` holds. A finished run returns its stored result at once.
    """
    run_dir = run_dir.absolute()
    stages: Any
    if cfg.resume:
        stages, origin = _frozen(Path(cfg.resume), overrides)
    else:
        origin = {"overrides": overrides, "choices": choices(), "sweep": in_sweep()}
        # a sweep has frozen the stages of all its runs before the first one started
        frozen = cfg.get("_stages_")
        stages = OmegaConf.to_container(frozen) if frozen else freeze(cfg, overrides, run_dir)
    folder.make(run_dir)
    with folder.locked(run_dir), _traced(run_dir / ERROR):
        single = list(stages) == ["main"]
        for name, config in stages.items():
            place = run_dir if single else run_dir / name
            folder.make(place)
            folder.adopt(place, config)
        folder.write_json(run_dir / ORIGIN, {"stages": list(stages), **origin})
        done = folder.read_json(run_dir / RESULT)
        if done is not None and done.get("stages_done") == list(stages):
            print(f"finished already: {shown(run_dir)} (delete the folder to run it anew)")
            return done
        results = {}
        for name in stages:
            place = run_dir if single else run_dir / name
            stored = None if single else folder.read_json(place / RESULT)
            if stored is None:
                if not single:
                    print(f"stage {name}", flush=True)
                stored = _run_stage(place, folder.read_config(place))
            results[name] = stored
        last = results[list(results)[-1]]
        result = {**last, "command": command(origin["overrides"]), "choices": origin["choices"], "folder": str(run_dir), "stages_done": list(stages)}
        if not single:
            result["stages"] = {name: {k: r[k] for k in ("metrics", "wall_seconds", "parameters", "density")} for name, r in results.items()}
            result["wall_seconds"] = sum(r["wall_seconds"] for r in results.values())
        folder.write_json(run_dir / RESULT, result)
    print_result(result, run_dir)
    return result


@contextlib.contextmanager
def _traced(path: Path) -> Iterator[None]:
    """Keep the stack trace of an unexpected error in a file."""
    try:
        yield
    except BaseException as error:
        keep_trace(error, path)
        raise
    path.unlink(missing_ok=True)


def command(overrides: list[str]) -> str:
    """The command line that makes this run."""
    return " ".join(["python", "train.py", *(f"'{o}'" if any(c in o for c in " ,[]{}()*&$") else o for o in overrides)])


def choices() -> dict[str, str]:
    """The option chosen in each config group, in a Hydra job; nothing outside of one."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return {}
    return {str(k): v for k, v in HydraConfig.get().runtime.choices.items() if v is not None and not str(k).startswith("hydra/")}


def in_sweep() -> bool:
    """Whether this is one of the runs of a sweep, in whose folder its own folder is then."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _frozen(run_dir: Path, overrides: list[str]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """(configs of the stages, how it was started) of a run that is continued with ``resume=``, as they were frozen."""
    extra = [o for o in overrides if not o.lstrip("+").startswith(("resume=", "traceback=", "debug=traceback", "hydra."))]
    if extra:
        raise UserError(f"resume={run_dir} continues that run as it was frozen: drop {extra[0]!r}, or start another run without resume.")
    origin = folder.read_json(run_dir / ORIGIN) or {"stages": ["main"], "overrides": [], "choices": {}}
    names = origin.pop("stages")
    places = {"main": run_dir} if names == ["main"] else {name: run_dir / name for name in names}
    configs = {name: folder.read_config(place) for name, place in places.items()}
    for config in configs.values():
        check_safe(config)
    return configs, origin


def processes(config: dict[str, Any]) -> int:
    """Processes of one run on this machine: one per device. Counting GPUs needs torch, a number does not."""
    hardware = config["hardware"]
    devices = hardware["devices"]
    if devices not in ("auto", -1, "-1"):
        return int(devices) if not isinstance(devices, list) else len(devices)
    if hardware["accelerator"] not in ("gpu", "cuda"):
        return 1
    import torch

    if not torch.cuda.is_available():
        raise UserError("this machine has no CUDA GPU: use hardware=cpu, hardware=ddp_cpu or hardware=auto.")
    return torch.cuda.device_count()


def _run_stage(place: Path, config: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    count, nodes = processes(config), int(config["hardware"]["num_nodes"])
    if count * nodes > 1 and srun.inside_job():
        srun.launch(place, nodes, count)
    elif nodes > 1:
        raise UserError(
            f"hardware.num_nodes={nodes}: several machines are reached through a cluster: python train.py -m hardware=slurm "
            f"hardware.num_nodes={nodes}."
        )
    elif count > 1:
        from papermix.run.launch import launch

        launch(place, count)
    else:
        from papermix.run.stage import run_stage

        run_stage(place)
    result = folder.read_json(place / RESULT)
    if result is None:
        raise UserError(f"the run in {place} ended without a result: see its logs, then run the same command again.")
    result["wall_seconds"] = result.get("wall_seconds") or time.perf_counter() - started
    sys.stdout.flush()
    return result
