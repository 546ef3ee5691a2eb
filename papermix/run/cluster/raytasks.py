"""``hydra/launcher=ray``: each run of a sweep is a Ray task, which has its own process; one whose process dies is named, the others go on.

All machines of the cluster see the same folders: a run's config comes from the sweep's folder, its result goes to its own.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from papermix.errors import UserError
from papermix.run.cluster.settings import PYTHONPATH, Machines, asked_for
from papermix.run.sweep import SweepTask, already_finished, run_folder

_LEAVING = 60.0  # seconds that cancelled tasks are given to save their state


class RayTasks:
    """The launcher. Its arguments are those of ``conf/hydra/launcher/ray.yaml``."""

    def __init__(self, **settings: Any) -> None:
        self.settings: dict[str, Any] = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in settings.items()}
        for key, least in (("cpus", 0), ("gpus", 0), ("mem_gb", 0)):
            value = self.settings[key]
            if value is None and key != "cpus":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
                raise UserError(f"hydra.launcher.{key}={value!r} must be a number, {least} or more.")
        address = self.settings["address"]
        if address is not None and not isinstance(address, str):
            raise UserError(f"hydra.launcher.address={address!r} must be a Ray address (host:port, auto, local) or null.")
        if not isinstance(self.settings["resources"], dict | None):
            raise UserError("hydra.launcher.resources must map names to amounts, like {a100: 1}.")

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """As Hydra's launchers."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs (but for those that are finished), as many at a time as the cluster has room for."""
        task = self.task_function
        assert isinstance(task, SweepTask)
        numbers = {}
        for i, overrides in enumerate(job_overrides):
            cfg = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            if not already_finished(task, cfg):
                numbers[i] = (run_folder(cfg), self._resources(asked_for(cfg)))
        if numbers:
            self._run(task, {i: (list(job_overrides[i]), initial_job_idx + i, *rest) for i, rest in numbers.items()})
        return [JobReturn(status=JobStatus.COMPLETED) for _ in job_overrides]  # how they went has been noted

    def _resources(self, need: Machines) -> dict[str, Any]:
        """What a task asks Ray for."""
        if need.nodes > 1:
            raise UserError(f"hardware.num_nodes={need.nodes}: a Ray task has one machine; use hardware=slurm for runs over several.")
        gpus = self.settings["gpus"] if self.settings["gpus"] is not None else int(need.gpus > 0)
        out = {"num_cpus": self.settings["cpus"] * need.processes, "num_gpus": gpus * need.processes}
        if self.settings["mem_gb"] is not None:
            out["memory"] = int(self.settings["mem_gb"] * 2**30)
        return {**out, "resources": self.settings["resources"] or {}}

    def _run(self, task: SweepTask, jobs: Mapping[int, tuple[list[str], int, Path, dict[str, Any]]]) -> None:
        import ray

        mine = not ray.is_initialized()
        if mine:
            self._connect()
        self._check_room(jobs)
        # a run that has died is not started again behind the sweep's back; none inherits what another has left in its process
        execute = ray.remote(max_retries=0, max_calls=1)(_execute)
        state = Singleton.get_state()
        waiting = {}
        try:
            for overrides, number, place, resources in jobs.values():
                call = execute.options(**resources).remote(self.hydra_context, self.config, task, overrides, number, state)
                waiting[call] = place
            while waiting:
                (done, *_), _ = ray.wait(list(waiting), num_returns=1)
                self._close(task, waiting.pop(done), done)
        except BaseException:
            for call in waiting:
                ray.cancel(call)
            ray.wait(list(waiting), num_returns=len(waiting), timeout=_LEAVING)
            raise
        finally:
            if mine:
                ray.shutdown()

    def _connect(self) -> None:
        """Join the cluster, or start one on this machine. Raises UserError when there is none at that address."""
        import ray

        path = os.pathsep.join([PYTHONPATH, *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            ray.init(
                address=self.settings["address"],
                runtime_env={"env_vars": {"PYTHONPATH": path}},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = self.settings["address"] or "RAY_ADDRESS"
            raise UserError(
                f"there is no Ray cluster at {where} ({' '.join(str(error).split())[:120]}): start one with `ray start --head`, "
                "or leave hydra.launcher.address=null."
            ) from error

    def _check_room(self, jobs: Mapping[int, tuple[list[str], int, Path, dict[str, Any]]]) -> None:
        """Raise UserError for a task that would wait for ever, since the cluster has not what it asks for."""
        import ray

        have = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for _, _, _, resources in jobs.values():
            need = {"CPU": resources["num_cpus"], "GPU": resources["num_gpus"], "memory": resources.get("memory", 0), **resources["resources"]}
            if not any(all(node.get(key, 0) >= value for key, value in need.items()) for node in have):
                words = ", ".join(f"{value:g} {key}" for key, value in need.items() if value)
                most = ", ".join(f"{max(node.get(key, 0) for node in have):g} {key}" for key, value in need.items() if value)
                raise UserError(
                    f"no machine of the Ray cluster has what a run asks for ({words}; the largest have {most}): lower hydra.launcher.cpus or gpus, "
                    "or use hardware=ray_cpu."
                )

    def _close(self, task: SweepTask, place: Path, call: Any) -> None:
        """Note how a task went, if it could not do so itself."""
        import ray

        error: Exception | None = None
        try:
            ray.get(call)
        except ray.exceptions.RayError as failure:
            error = failure
        if task.outcome(place) is None:
            reason = "out of memory?" if isinstance(error, ray.exceptions.OutOfMemoryError) else type(error).__name__ if error else "no word of it"
            task.fail(place, f"its process died ({reason}): see {place / 'job.log'}; the same command continues it")
        else:
            task.say(place)


def _execute(context: HydraContext, config: DictConfig, task: SweepTask, overrides: list[str], number: int, state: Any) -> None:
    """The task: what Hydra's launchers do for a job. How it went is noted in the sweep's folder."""
    Singleton.set_state(state)
    setup_globals()
    cfg = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(cfg):
        cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
    run_job(
        hydra_context=context,
        task_function=task,
        config=cfg,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
