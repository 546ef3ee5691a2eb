"""``hydra/launcher=slurm``: Hydra's submitit launcher, where each job ends with a sentence and one that is put back goes on.

submitit writes and submits the batch scripts. The job's own process ("head") runs on its first machine: it goes through the
run's stages as anywhere, and starts the ranks of a stage that has several with srun. The sweep's process waits until all its jobs
have left the queue; how they went stands in the sweep's folder, which all machines see.
"""

import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

from papermix.errors import UserError
from papermix.run import folder
from papermix.run.cluster import queue
from papermix.run.cluster.settings import Machines, asked_for, check, executor
from papermix.run.cluster.srun import hide_from_lightning
from papermix.run.sweep import Interrupted, SweepTask, already_finished, run_folder, signals_end_the_sweep

_POLL = (1.0, 15.0)  # seconds between two looks at the queue: at first, at most
_SETTLE = 15.0  # seconds that a shared file system may take to show what a job has written at its end
_LEAVING = 90.0  # seconds that cancelled jobs are given to save their state
_SUBMITTED = ".submitted.json"  # in the sweep's folder: run folder -> job id


class SlurmJobs(SlurmLauncher):
    """The launcher. Its arguments are those of ``conf/hydra/launcher/slurm.yaml``."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        check(self.params)
        queue.check_here()

    # ---- where the sweep was started ---------------------------------------------------------------------------------------

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit jobs (but for those that are in the queue from before, or finished), and wait until they have left the queue."""
        assert isinstance(self.task_function, SweepTask)
        configs = [self._config(overrides) for overrides in job_overrides]
        places = [run_folder(cfg) for cfg in configs]
        waiting = self._from_before(places)
        todo: dict[Machines, list[int]] = {}
        for i, (cfg, place) in enumerate(zip(configs, places)):
            if str(place) not in waiting and not already_finished(self.task_function, cfg):
                todo.setdefault(asked_for(cfg), []).append(i)
        try:
            for need, which in todo.items():
                arguments = [(list(job_overrides[i]), "hydra.sweep.dir", initial_job_idx + i, "", Singleton.get_state()) for i in which]
                ids = self._submit(need, arguments)
                waiting |= {str(places[i]): job for i, job in zip(which, ids)}
                folder.write_json(self._sweep_dir / _SUBMITTED, waiting)
            self._wait(dict(waiting))
        except BaseException:
            self._cancel(list(waiting.values()))
            raise
        (self._sweep_dir / _SUBMITTED).unlink(missing_ok=True)
        return [JobReturn(status=JobStatus.COMPLETED) for _ in places]  # how they went has been noted

    @property
    def _sweep_dir(self) -> Path:
        assert self.config is not None
        return Path(str(self.config.hydra.sweep.dir))

    def _config(self, overrides: Sequence[str]) -> Any:
        assert self.hydra_context is not None
        return self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))  # type: ignore[arg-type]

    def _from_before(self, places: Sequence[Path]) -> dict[str, str]:
        """``run folder -> job`` of jobs that a sweep which was killed has left in the queue."""
        known = folder.read_json(self._sweep_dir / _SUBMITTED) or {}
        states = queue.states() if known else None
        return {
            str(p): known[str(p)] for p in places if states and str(p) in known and not queue.is_over(states.get(known[str(p)], (None, ""))[0])
        }

    def _submit(self, need: Machines, arguments: Sequence[tuple[Any, ...]]) -> list[str]:
        """Submit jobs that need the same machines, as one array; returns their ids. Raises UserError when SLURM refuses."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        place = self._sweep_dir / ".submitit" / "%j"
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # sbatch's own words come with the error
                jobs = executor(self.params, need, place).map_array(self, *zip(*arguments))
        except (FailedSubmissionError, FailedJobError, OSError) as error:
            lines = re.findall(r"sbatch: error: (.+)", str(error)) or str(error).splitlines()
            said = "; ".join(line.strip() for line in lines)[:200]
            raise UserError(f"SLURM refuses the job ({said}): see `sinfo` for its partitions, and hydra.launcher.* for what was asked.") from error
        return [job.job_id for job in jobs]

    def _wait(self, waiting: dict[str, str]) -> None:
        """Wait until the jobs have left the queue for good; each that has failed is told about at once."""
        shown, pause = "", _POLL[0]
        while waiting:
            states = queue.states()
            if states is not None:
                for place, job in list(waiting.items()):
                    state = states.get(job, (None, ""))[0]
                    if queue.is_over(state):
                        self._close(Path(place), job, state)
                        del waiting[place]
                text = _summary([states[job] for job in waiting.values() if job in states])
                if text and text != shown:
                    print(f"SLURM: {text}", flush=True)
                    shown, pause = text, _POLL[0]
            if waiting:
                time.sleep(pause)
                pause = min(1.2 * pause, _POLL[1])

    def _close(self, place: Path, job: str, state: str | None) -> None:
        """Note how a job that has left the queue went, if it could not do so itself."""
        task = self.task_function
        assert isinstance(task, SweepTask)
        deadline = time.monotonic() + (_SETTLE if state in (None, "COMPLETED", "FAILED") else 0)
        while (outcome := task.outcome(place)) is None and time.monotonic() < deadline:
            time.sleep(0.5)
        if outcome is None and state in ("TIMEOUT", "CANCELLED", "PREEMPTED"):
            task.note(place, {"status": "stopped", "error": f"{queue.why_ended(state, job)}; the same command continues it."})
        elif outcome is None:
            logs = sorted((self._sweep_dir / ".submitit" / job).glob("*.out"))
            task.fail(place, f"{queue.why_ended(state, job)}: see {logs[0] if logs else place / 'job.log'}")
            return
        task.say(place)

    def _cancel(self, jobs: list[str]) -> None:
        """Take jobs out of the queue and wait until they are."""
        queue.cancel(jobs)
        deadline = time.monotonic() + (_LEAVING if jobs else 0)
        while time.monotonic() < deadline:
            states = queue.states()
            if states is not None and all(queue.is_over(states.get(job, (None, ""))[0]) for job in jobs):
                break
            time.sleep(1)
        (self._sweep_dir / _SUBMITTED).unlink(missing_ok=True)

    # ---- in the job --------------------------------------------------------------------------------------------------------

    def __call__(self, *arguments: Any) -> JobReturn:
        """The job itself, on its first machine. One that was told to stop is put back into the queue, or says why not."""
        hide_from_lightning()
        started = time.monotonic()
        try:
            with signals_end_the_sweep():
                return super().__call__(*arguments)
        except Interrupted:
            self._stopped(run_folder(self._config(arguments[0])), time.monotonic() - started)
            sys.stdout.flush()
            raise SystemExit(1) from None

    def _stopped(self, place: Path, seconds: float) -> None:
        """Put this job, whose state is saved, back into the queue, unless SLURM does it (pre-emption) or must not (cancelled)."""
        import submitit

        environment = submitit.JobEnvironment()
        if queue.state(environment.job_id) != "RUNNING":
            return
        minutes, delay = self.params["timeout_min"], self.params["signal_delay_s"]
        # SLURM sends its signal up to a minute early
        if seconds > 60 * minutes - delay - 90:
            counter = environment.paths.folder / "timeouts"
            count = int(counter.read_text()) if counter.exists() else 0
            if count >= self.params["max_num_timeout"]:
                again = f", and again {count} times" if count else ""
                sentence = (
                    f"its time was over ({minutes} minutes{again}) and hydra.launcher.max_num_timeout={count} lets it queue no more: "
                    "its state is saved, the same command continues it."
                )
                assert isinstance(self.task_function, SweepTask)
                self.task_function.note(place, {"status": "stopped", "error": sentence})
                return
            folder.write_atomic(counter, str(count + 1))
        print("putting this job back into the queue", flush=True)
        queue.requeue(os.environ["SLURM_JOB_ID"])


def _summary(states: Sequence[tuple[str, str]]) -> str:
    """``2 running, 3 pending (Resources)``."""
    out = []
    for name in dict.fromkeys(sorted((state for state, _ in states), reverse=True)):
        reasons = dict.fromkeys(reason for state, reason in states if state == name and reason not in ("None", ""))
        why = f" ({', '.join(reasons)})" if reasons and name == "PENDING" else ""
        out.append(f"{sum(state == name for state, _ in states)} {name.lower()}{why}")
    return ", ".join(out)
