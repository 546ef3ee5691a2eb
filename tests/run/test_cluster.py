"""hardware=slurm, ray and joblib: composed, checked and named without a cluster; Ray and joblib also run. SLURM runs in tests/slurm."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from papermix.errors import UserError
from papermix.run.cluster import queue, settings
from papermix.run.cluster.extras import check_installed
from papermix.run.cluster.settings import Machines, asked_for, machines
from papermix.run.compose import compose
from papermix.run.explain import explain
from papermix.run.launch import LAUNCHER, check_alone
from papermix.run.names import run_name
from papermix.run.sweep import Job, SweepTask, already_finished, sweep_dir

ROOT = Path(__file__).resolve().parents[2]
FAKE = ["dataset.fake=true", "debug=two_steps", "callbacks=[checkpoints,rng]", "hardware.threads=1"]


def launcher(*overrides: str) -> dict[str, Any]:
    """The launcher's settings of a command line."""
    node: Any = OmegaConf.to_container(compose(list(overrides), with_hydra=True).hydra.launcher, resolve=True)
    return node


def train(*arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


# ---- composing -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "same_as", "target"),
    [
        ("slurm", "gpu", "SlurmLauncher"),
        ("slurm_cpu", "cpu", "SlurmLauncher"),
        ("ray", "gpu", "RayLauncher"),
        ("ray_cpu", "cpu", "RayLauncher"),
        ("joblib", "cpu", "JoblibLauncher"),
    ],
)
def test_hardware_brings_its_launcher_and_leaves_the_run_what_it_is(option: str, same_as: str, target: str) -> None:
    mine, other = (compose([f"hardware={name}", "seed=3"], with_hydra=True) for name in (option, same_as))
    assert mine.hydra.launcher._target_.endswith(f".{target}")
    assert other.hydra.launcher._target_.endswith("BasicLauncher")
    assert mine.hardware == other.hardware
    # a run and a sweep go on wherever they are started
    assert run_name(mine) == run_name(other) and "seed=3" in run_name(mine)
    assert sweep_dir(mine) == sweep_dir(other)
    assert run_name(mine) != run_name(compose([f"hardware={option}", "seed=3", "hardware.devices=2"], with_hydra=True))


def test_a_launcher_of_ones_own_choice_goes_with_any_hardware() -> None:
    assert launcher("hardware=ddp_cpu", "hydra/launcher=slurm")["_target_"].endswith("SlurmLauncher")
    assert launcher("hardware=slurm", "hydra/launcher=basic")["_target_"].endswith("BasicLauncher")


def test_what_sbatch_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    (tmp_path / "srun").touch(mode=0o755)  # submitit looks whether there is one
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    own = launcher(
        "hardware=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=240", "hydra.launcher.cpus_per_task=8",
        "hydra.launcher.mem_gb=64", "hydra.launcher.constraint=a100", "hydra.launcher.setup=[module load cuda]",
        "hydra.launcher.additional_parameters={mail-type: END}", "hydra.launcher.array_parallelism=3",
    )  # fmt: skip
    settings.check(own)

    def lines(own: dict[str, Any], need: Machines) -> list[str]:
        made = settings.executor(own, need, tmp_path)
        text: str = made._executor._make_submission_file_text(made._executor._submitit_command_str, "1")
        assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
        return text.splitlines()

    text = lines(own, machines({"devices": 4, "num_nodes": 2, "accelerator": "gpu"}))
    for wanted in (
        "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--partition=gpu", "--time=240", "--cpus-per-task=8",
        "--mem=64GB", "--constraint=a100", "--signal=B:USR1@120", "--requeue", "--mail-type=END", "--job-name=papermix",
    ):  # fmt: skip
        assert f"#SBATCH {wanted}" in text, wanted
    assert "module load cuda" in text and "export PAPERMIX_SLURM_JOB=1" in text
    # the job's process takes the script's place: it is the one that SLURM signals
    assert any(line.startswith("exec ") and "submitit.core._submit" in line for line in text)
    # kinds of GPUs instead of numbers; none on the CPU
    kind = lines({**own, "gres": "gpu:a100:4"}, Machines(1, 4, 4))
    assert "#SBATCH --gres=gpu:a100:4" in kind and not any("gpus-per-node" in line for line in kind)
    assert not any("gpu" in line for line in lines({**own, "partition": None}, Machines(1, 2, 0)) if line.startswith("#SBATCH"))


def test_the_machines_of_a_run() -> None:
    cfg = OmegaConf.create({"_stages_": {
        "one": {"hardware": {"devices": 2, "num_nodes": 1, "accelerator": "gpu"}},
        "two": {"hardware": {"devices": [0, 1, 2], "num_nodes": 1, "accelerator": "cpu"}},
    }})  # fmt: skip
    assert asked_for(cfg) == Machines(nodes=1, processes=3, gpus=2)
    with pytest.raises(UserError, match=r"hardware.devices=auto: say how many"):
        machines({"devices": "auto", "num_nodes": 1, "accelerator": "gpu"})


# ---- wrong settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("timeout_min=0", "hydra.launcher.timeout_min=0 must be a whole number, 1 or more"),
        ("timeout_min=1.5", "hydra.launcher.timeout_min=1.5 must be a whole number"),
        ("timeout_min=long", "hydra.launcher.timeout_min='long' must be"),
        ("max_num_timeout=-1", "hydra.launcher.max_num_timeout=-1 must be a whole number, 0 or more"),
        ("signal_delay_s=3600", "leaves no time of timeout_min=60"),
        ("mem_gb=0", "hydra.launcher.mem_gb=0 must be a number"),
        ("partition=[a,b]", "hydra.launcher.partition=['a', 'b'] must be a word"),
        ("setup=module", "hydra.launcher.setup must be a list"),
        ("additional_parameters=[x]", "hydra.launcher.additional_parameters must map"),
    ],
)
def test_wrong_settings_of_the_queue(override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        settings.check(launcher("hardware=slurm", f"hydra.launcher.{override}"))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [("cpus=-1", "cpus=-1 must be a number"), ("gpus=x", "gpus='x' must be a number"), ("resources=[1]", "resources must map")],
)
def test_wrong_settings_of_ray(override: str, said: str) -> None:
    from papermix.run.cluster.raytasks import RayTasks

    own = launcher("hardware=ray", f"hydra.launcher.{override}")
    own.pop("_target_")
    with pytest.raises(UserError) as caught:
        RayTasks(**own)
    assert said in str(caught.value)


def test_ray_takes_runs_of_one_machine() -> None:
    from papermix.run.cluster.raytasks import RayTasks

    own = {**launcher("hardware=ray", "hydra.launcher.mem_gb=2", "hydra.launcher.resources={a100: 1}")}
    own.pop("_target_")
    tasks = RayTasks(**own)
    assert tasks._resources(Machines(1, 2, 2)) == {"num_cpus": 2, "num_gpus": 2, "memory": 2 * 2**30, "resources": {"a100": 1}}
    with pytest.raises(UserError, match="use hardware=slurm for runs over several"):
        tasks._resources(Machines(2, 1, 0))


@pytest.mark.parametrize(("option", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_package_is_named_with_its_cure(option: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(UserError, match=rf"hydra/launcher={option} .*\({package}\): pip install 'papermix\[{option}\]'"):
        check_installed(launcher(f"hardware={option}")["_target_"], option)


def test_joblib_missing_is_named_with_its_cure() -> None:
    from hydra.errors import MissingConfigException

    error = MissingConfigException("In 'hydra/config': Could not find 'hydra/launcher/joblib'", "hydra/launcher/joblib")
    assert explain(error, ["hardware=joblib"]).endswith("pip install 'papermix[joblib]'.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hardware=slurm"], "hardware=slurm starts runs through hydra/launcher=slurm, which needs -m"),
        (["-m", "hardware=slurm"], "this machine has no SLURM (sbatch is not found)"),
        (["-m", "hardware=slurm", "hydra.launcher.partitoin=gpu"], "did you mean 'partition'?"),
        (["hardware=cpu", "hardware.num_nodes=2"], "python train.py -m hardware=slurm hardware.num_nodes=2"),
    ],
)
def test_the_command_line_says_so_at_once(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = train(*arguments, *FAKE, PATH=str(tmp_path), PAPERMIX_OUTPUTS=str(tmp_path / "outputs"))
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line]
    assert len(errors) == 1 and said in errors[0], done.stderr


@pytest.mark.parametrize(
    ("program", "size", "rank"),
    [
        ("torchrun", "WORLD_SIZE", "RANK"),
        ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
        ("mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ],
)
def test_processes_that_others_have_started_are_refused_once(program: str, size: str, rank: str, tmp_path: Path) -> None:
    ends = [train(*FAKE, **{size: "2", rank: str(i), "PAPERMIX_OUTPUTS": str(tmp_path)}) for i in range(2)]
    assert [done.returncode for done in ends] == [1, 1]
    assert f"error: {program} has started 2 processes of train.py, which starts its own: run it once" in ends[0].stderr
    assert ends[1].stderr == ends[1].stdout == "" and not list(tmp_path.iterdir())
    check_alone({size: "1", rank: "0"})
    check_alone({size: "2", rank: "0", LAUNCHER: "srun"})


# ---- what the queue says -------------------------------------------------------------------------------------------------------


def test_states_of_the_queue() -> None:
    from papermix.run.cluster.slurm import _summary

    assert [queue.is_over(s) for s in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")] == [False] * 4
    assert [queue.is_over(s) for s in ("COMPLETED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", None)] == [True] * 5
    assert "more memory than it had asked for (hydra.launcher.mem_gb)" in queue.why_ended("OUT_OF_MEMORY", "7")
    assert queue.why_ended("BOOT_FAIL", "7") == "SLURM job 7 ended: boot fail"
    seen = [("RUNNING", "None"), ("PENDING", "Resources"), ("PENDING", "Priority"), ("PENDING", "Resources")]
    assert _summary(seen) == "1 running, 3 pending (Resources, Priority)"


def test_a_finished_run_is_not_submitted_again(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path), "subdir": "one"}}, "_stages_": {"main": {}}})
    task = SweepTask(lambda cfg: None, tmp_path)
    task.announce([Job(1, [], tmp_path / "one")], 1, [])
    assert not already_finished(task, cfg)
    (tmp_path / "one").mkdir()
    for stages, finished in ((["pretrain"], False), (["main"], True)):
        (tmp_path / "one" / "result.json").write_text(json.dumps({"stages_done": stages, "metrics": {"val/accuracy": 0.5}}))
        assert already_finished(task, cfg) is finished
    outcome = task.outcome(tmp_path / "one")
    assert outcome and outcome["status"] == "finished" and outcome["result"]["metrics"] == {"val/accuracy": 0.5}


# ---- ranks that SLURM has started ----------------------------------------------------------------------------------------------


def test_a_task_of_srun_is_the_rank_that_slurm_says(tmp_path: Path) -> None:
    script = """
        import os, sys
        from pathlib import Path
        from papermix.errors import UserError
        from papermix.run.cluster.srun import become_rank
        from papermix.run.launch import Stopped, as_rank
        place = Path(sys.argv[1])
        become_rank(place)
        print(os.environ["RANK"], os.environ["LOCAL_RANK"], os.environ["NODE_RANK"], "SLURM_NTASKS" in os.environ, flush=True)
        with as_rank(place):
            raise {"stop": Stopped("told to stop", 10), "fail": UserError("went wrong")}[sys.argv[2]]
    """
    from papermix.run.launch import clear_notes, failure_notes

    def task(rank: int, end: str) -> "subprocess.CompletedProcess[str]":
        names = {"PROCID": str(rank), "LOCALID": "0", "NODEID": str(rank), "NTASKS": "2"}
        env = {**os.environ, "PAPERMIX_LAUNCHER": "srun", "PYTHONPATH": str(ROOT), **{f"SLURM_{k}": v for k, v in names.items()}}
        command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), end]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    clear_notes(tmp_path)
    first, second = task(0, "fail"), task(1, "stop")
    assert first.stdout == "0 0 0 False\n" and first.returncode == 1
    # a rank that stops in good order must not make SLURM end those that are still saving
    assert second.stdout == "" and second.returncode == 0
    assert (tmp_path / "logs" / "rank-1.log").read_text().startswith("1 0 1 False\n")
    assert [(n["sentence"], n["signal"]) for n in failure_notes(tmp_path, 2)] == [("went wrong", None), ("told to stop", 10)]


def test_the_srun_command_spreads_the_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from papermix.run.cluster import srun

    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "7")
    words = srun.command(tmp_path, 2, 4)
    assert {"--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=7", "--kill-on-bad-exit=1"} <= set(words)
    assert words[-3:] == ["-m", "papermix.run.worker", str(tmp_path)]
    monkeypatch.delenv("SLURM_CPUS_PER_TASK")
    assert not any(word.startswith("--cpus-per-task") for word in srun.command(tmp_path, 1, 2))


# ---- real ones -----------------------------------------------------------------------------------------------------------------


def rows(place: Path) -> list[dict[str, Any]]:
    return sorted(json.loads((place / "sweep.json").read_text())["runs"], key=lambda r: r["number"])


def test_joblib(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = train("-m", "hardware=joblib", "hydra.launcher.n_jobs=2", *FAKE, "seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 0, done.stderr
    assert [r["status"] for r in rows(tmp_path / "sweep")] == ["finished"] * 2
    assert all((Path(r["folder"]) / "job.log").is_file() for r in rows(tmp_path / "sweep"))


@pytest.fixture
def ray_cluster() -> Iterator[str]:
    """Address of a Ray cluster of two nodes on this machine."""
    pytest.importorskip("ray")
    # ours is ended whole with the process that has started it
    script = """
        import sys
        from ray.cluster_utils import Cluster
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        print("address", cluster.address, flush=True)
        sys.stdin.read()
        cluster.shutdown()
    """
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert owner.stdout
    try:
        yield next(line.split()[1] for line in owner.stdout if line.startswith("address"))
    finally:
        owner.communicate(timeout=120)


def holders(path: Path) -> set[int]:
    """Processes that have a file open."""
    found = set()
    for pid in (name for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if any(os.readlink(f"/proc/{pid}/fd/{fd}") == str(path.resolve()) for fd in os.listdir(f"/proc/{pid}/fd")):
                found.add(int(pid))
    return found


@pytest.mark.slow
def test_ray(tmp_path: Path, ray_cluster: str) -> None:
    place = tmp_path / "sweep"
    tiny = ["dataset=digits", "model=mlp", "hardware.threads=1", "callbacks=[checkpoints,rng,nonfinite]"]
    common = ["-m", "hardware=ray_cpu", f"hydra.launcher.address={ray_cluster}", *tiny, f"hydra.sweep.dir={place}"]
    done = train(*common, "optimizer.lr=0.1,1e30,0.03", "trainer.max_epochs=1")
    assert done.returncode == 1 and "1 of 3 runs failed" in done.stderr, done.stdout + done.stderr
    first, second, third = rows(place)
    assert first["status"] == third["status"] == "finished"
    assert second["status"] == "failed" and "NaN" in second["error"]
    assert "run 2 of 3 failed (optimizer.lr=1e+30)" in done.stderr
    # what no machine has is said, instead of waiting for ever
    done = train(*common, "hydra.launcher.cpus=64", "seed=9")
    assert done.returncode == 1 and "no machine of the Ray cluster has what a run asks for (64 CPU" in done.stderr, done.stderr
    # a process that dies fails its run alone
    dead = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *common, "trainer.max_epochs=100000,2"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    killed = False
    while dead.poll() is None and not killed:
        for lock in place.glob("*100000*/.lock"):
            for pid in holders(lock):
                os.kill(pid, 9)
                killed = True
        time.sleep(0.1)
    output = dead.communicate(timeout=200)[0]
    assert killed and dead.returncode == 1, output
    endless, short = rows(place)
    assert endless["status"] == "failed" and "its process died" in endless["error"] and short["status"] == "finished"


def test_nothing_of_the_cluster_is_needed_to_compose() -> None:
    """The launchers' classes are found without their engines: Hydra imports them at every start."""
    script = (
        "import sys; sys.modules['ray'] = sys.modules['submitit'] = None\n"
        f"sys.path.insert(0, {str(ROOT / 'papermix' / 'run' / 'plugins')!r})\n"
        "import hydra_plugins.papermix_launchers.launchers\n"
        "assert 'torch' not in sys.modules and 'papermix.run.sweep' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
