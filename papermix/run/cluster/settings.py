"""The settings of ``hydra/launcher=slurm``: checked, and turned into what submitit and sbatch take."""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from papermix.errors import UserError
from papermix.run.cluster.srun import MARK

_ROOT = Path(__file__).resolve().parents[3]
# where processes on other machines find this project
PYTHONPATH = os.pathsep.join([str(_ROOT), str(_ROOT / "papermix" / "run" / "plugins")])
_WORDS = ("partition", "account", "qos", "constraint", "exclude", "gres", "comment")


class Machines(NamedTuple):
    """What one run computes on: machines, processes on each, GPUs on each."""

    nodes: int
    processes: int
    gpus: int


def asked_for(cfg: Any) -> Machines:
    """The most that any stage of a run asks for, from its frozen config."""
    plain: Any = OmegaConf.to_container(cfg._stages_ if cfg.get("_stages_") else cfg, resolve=True)
    stages = plain.values() if cfg.get("_stages_") else [plain]
    return Machines(*(max(column) for column in zip(*(machines(stage["hardware"]) for stage in stages))))


def machines(hardware: Mapping[str, Any]) -> Machines:
    """What a run's ``hardware`` node asks for. Raises UserError when it says "all there are": the queue wants a number."""
    devices, nodes = hardware["devices"], hardware["num_nodes"]
    if isinstance(devices, list | tuple):
        devices = len(devices)
    if devices in ("auto", -1, "-1"):
        raise UserError(f"hardware.devices={devices}: say how many on each machine, hardware.devices=4; a queue wants a number.")
    if hardware["accelerator"] == "mps":
        raise UserError("hardware.accelerator=mps: a cluster has no Apple GPUs; use hardware=slurm or hardware=slurm_cpu.")
    return Machines(int(nodes), int(devices), 0 if hardware["accelerator"] == "cpu" else int(devices))


def check(settings: Mapping[str, Any]) -> None:
    """Raise UserError that names a setting which SLURM cannot take."""

    def number(key: str, least: float, whole: bool = True, optional: bool = False) -> None:
        value = settings[key]
        if optional and value is None:
            return
        good = isinstance(value, int) or (isinstance(value, float) and not whole)
        if isinstance(value, bool) or not good or value < least:
            raise UserError(f"hydra.launcher.{key}={value!r} must be {'a whole number' if whole else 'a number'}, {least} or more.")

    number("timeout_min", 1)
    number("max_num_timeout", 0)
    number("signal_delay_s", 1)
    number("array_parallelism", 1)
    number("cpus_per_task", 1, optional=True)
    number("mem_gb", 0.1, whole=False, optional=True)
    if settings["signal_delay_s"] >= 60 * settings["timeout_min"]:
        raise UserError(
            f"hydra.launcher.signal_delay_s={settings['signal_delay_s']} leaves no time of timeout_min={settings['timeout_min']}: lower it."
        )
    for key in _WORDS:
        if settings[key] is not None and (not isinstance(settings[key], str | int) or not str(settings[key]).strip()):
            raise UserError(f"hydra.launcher.{key}={settings[key]!r} must be a word as sbatch takes it, or null.")
    if not isinstance(settings["setup"], list) or not all(isinstance(line, str) for line in settings["setup"]):
        raise UserError('hydra.launcher.setup must be a list of shell commands, like ["module load cuda"].')
    if not isinstance(settings["additional_parameters"], dict | None):
        raise UserError("hydra.launcher.additional_parameters must map options of sbatch to values, like {mail-type: END}.")


def parameters(settings: Mapping[str, Any], need: Machines) -> dict[str, Any]:
    """What submitit's executor is given for jobs that need these machines."""
    words = {f"slurm_{key}": settings[key] for key in _WORDS if settings[key] is not None}
    out: dict[str, Any] = {
        "name": settings["name"],
        "timeout_min": settings["timeout_min"],
        "nodes": need.nodes,
        "tasks_per_node": need.processes,
        "slurm_array_parallelism": settings["array_parallelism"],
        "slurm_signal_delay_s": settings["signal_delay_s"],
        # the job itself is one process, which starts the ranks of each stage with srun
        "slurm_use_srun": False,
        "slurm_setup": [*settings["setup"], f'export PYTHONPATH="{PYTHONPATH}${{PYTHONPATH:+:$PYTHONPATH}}"', f"export {MARK}=1"],
        "stderr_to_stdout": True,
        # B: only the job's own process is told that its time is nearly over, and it tells its ranks
        "slurm_additional_parameters": {
            "signal": f"B:USR1@{settings['signal_delay_s']}",
            "requeue": True,
            **(settings["additional_parameters"] or {}),
        },
        **words,
    }
    if need.gpus and settings["gres"] is None:
        out["gpus_per_node"] = need.gpus
    optional = {"cpus_per_task": settings["cpus_per_task"], "mem_gb": settings["mem_gb"]}
    return out | {key: value for key, value in optional.items() if value is not None}


def executor(settings: Mapping[str, Any], need: Machines, folder: Path) -> Any:
    """submitit's executor for jobs that need these machines."""
    import submitit

    # exec: the signal that says "time is nearly over" goes to the batch script's own process
    out = submitit.AutoExecutor(folder=str(folder), cluster="slurm", slurm_python=f"exec {shlex.quote(sys.executable)}")
    try:
        out.update_parameters(**parameters(settings, need))
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"SLURM's settings (hydra.launcher) cannot be used: {' '.join(str(error).split())[:200]}.") from error
    return out

