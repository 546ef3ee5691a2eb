"""``hydra/launcher=slurm``: each run is a SLURM job. ``hydra/launcher=ray``: each run is a task on a Ray cluster.

Hydra imports this file at every start, so that everything else is imported when a sweep begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SlurmLauncher(Launcher):
    """Hydra's submitit launcher, see :mod:`papermix.run.cluster.slurm`; its arguments are explained in conf/hydra/launcher/slurm.yaml."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the settings. Raises UserError that names a wrong one, or what is not installed."""
        from papermix.run.cluster.slurm import SlurmJobs

        self.jobs = SlurmJobs(**self.settings)
        self.jobs.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit the jobs and wait until they have left the queue."""
        return self.jobs.launch(job_overrides, initial_job_idx)


class RayLauncher(Launcher):
    """Ray tasks, see :mod:`papermix.run.cluster.raytasks`; the arguments are explained in conf/hydra/launcher/ray.yaml."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the settings. Raises UserError that names a wrong one."""
        from papermix.run.cluster.raytasks import RayTasks

        self.tasks = RayTasks(**self.settings)
        self.tasks.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs as tasks, as many at a time as the cluster has room for."""
        return self.tasks.launch(job_overrides, initial_job_idx)
