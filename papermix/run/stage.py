"""One stage, in the process (or each of the processes) that computes it: build, fit, test, measure."""

import logging
import platform
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from callbacks.checkpoints import Checkpoints
from callbacks.pruning import Pruned, Pruning
from lightning_modules.method import Method
from papermix import __version__
from papermix.errors import UserError
from papermix.run import folder
from papermix.run.allocator import keep_freed_memory, return_freed_memory
from papermix.run.build import build
from papermix.run.check import PARTS
from papermix.run.checkpoint_io import PREVIOUS, VerifiedCheckpointIO, find_last
from papermix.run.dashboards.guard import closing
from papermix.run.machine import cpu_model, git_state, resident_memory
from papermix.sharding import whole

RESULT = "result.json"


class Clock(pl.Callback):
    """Wall time of the run over all its continuations, kept in the checkpoint."""

    def __init__(self) -> None:
        self.before = 0.0
        self.started = time.perf_counter()

    def seconds(self) -> float:
        """Seconds so far."""
        return self.before + time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        """Seconds so far."""
        return {"seconds": self.seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Seconds of the sessions before."""
        self.before = state_dict["seconds"]


class Position(pl.Callback):
    """Brings the training loader back to where the checkpoint was taken.

    Lightning does so when it first asks for the loader, which a method that wants to know the number of steps does too early,
    before the checkpoint is read.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the position, unless Lightning has."""
        trainer.fit_loop._load_combined_loader_states()


def without_parts(config: dict[str, Any], group: str) -> dict[str, Any]:
    """A group's node without the sub-nodes that are built by themselves."""
    return {k: v for k, v in config[group].items() if k not in PARTS.get(group, ())}


def seed_all(seed: int) -> None:
    """Seed python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def optimizer_factory(config: dict[str, Any]) -> Callable[..., torch.optim.Optimizer]:
    """What makes the optimizer of a config from a module; keywords go to the parameter groups."""
    from papermix.optimizers import with_masks

    node = config["optimizer"]
    make = build(without_parts(config, "optimizer"))
    groups = build(node["groups"])

    def factory(module: nn.Module, **options: Any) -> torch.optim.Optimizer:
        parameters = groups(module, **options)
        try:
            return with_masks(make, parameters)
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            name = node.get("name") or node["_target_"].rpartition(".")[2]
            raise UserError(f"optimizer {name} refuses its settings ({error}): set another value with optimizer.KEY=VALUE.") from error

    return factory


def build_method(config: dict[str, Any]) -> Method:
    """The method of a config with its model, task, optimizer and schedule; seeded, so twice the same."""
    seed_all(config["seed"])
    model = build(config["model"])
    task = build(config["dataset"]["task"])
    scheduler = build(config["scheduler"]) if config["scheduler"].get("_target_") else None
    if config["hardware"]["channels_last"]:
        model = model.to(memory_format=torch.channels_last)
    return build(config["method"], model=model, task=task, optimizer=optimizer_factory(config), scheduler=scheduler)


def build_callbacks(config: dict[str, Any]) -> list[pl.Callback]:
    """The callbacks of a config; the sparsity's driver comes first, since it changes the parameters others look at."""
    callbacks: list[pl.Callback] = []
    if config["sparsity"].get("_target_"):
        sparsity = build(config["sparsity"])
        # what changes more than masks names its own driver
        target = getattr(sparsity, "driver", "callbacks.sparsity.SparsityDriver")
        callbacks.append(build({"_target_": target, "_partial_": True}, sparsity))
    if config["sweep_trial"]:
        callbacks.append(Pruning(**config["sweep_trial"]))
    callbacks += [build(node) for node in (config.get("callbacks") or {}).values() if node and node.get("_target_")]
    return callbacks


def strategy_of(hardware: dict[str, Any]) -> Any:
    """How processes work together: Lightning's name for it, or our own strategy."""
    if hardware["strategy"] != "fsdp":
        return hardware["strategy"]
    from papermix.run.sharded import Sharded

    return Sharded(hardware.get("blocks"))


def build_trainer(config: dict[str, Any], place: Path, callbacks: list[pl.Callback], loggers: list[Any]) -> pl.Trainer:
    """Lightning's Trainer with this project's checkpoints, samplers and logging."""
    hardware = config["hardware"]
    if hardware["accelerator"] in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError("this machine has no CUDA GPU: use hardware=cpu, hardware=ddp_cpu or hardware=auto.")
    if hardware["accelerator"] == "mps" and not torch.backends.mps.is_available():
        raise UserError("this machine has no Apple GPU: use hardware=cpu or hardware=auto.")
    return build(
        config["trainer"],
        accelerator=hardware["accelerator"],
        devices=hardware["devices"],
        num_nodes=hardware["num_nodes"],
        strategy=strategy_of(hardware),
        precision=hardware["precision"],
        deterministic=hardware["deterministic"],
        sync_batchnorm=hardware["sync_batchnorm"],
        plugins=[VerifiedCheckpointIO()],
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=str(place),
        enable_checkpointing=any(isinstance(c, pl.callbacks.Checkpoint) for c in callbacks),
        enable_progress_bar=any(isinstance(c, pl.callbacks.ProgressBar) for c in callbacks),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        benchmark=not hardware["deterministic"],
    )


def run_stage(place: Path) -> dict[str, Any] | None:
    """Train and test what ``config.yaml`` in a folder says, from its last checkpoint if there is one.

    Writes ``result.json`` there, and returns it on the first process (None on the others).
    """
    config = folder.read_config(place)
    quiet()
    if config["hardware"]["strategy"] == "fsdp":
        return_freed_memory()
    else:
        keep_freed_memory()
    loggers = [build(node) for node in (config.get("logger") or {}).values() if node and node.get("_target_")]
    with closing(loggers):
        return _run(config, place, loggers)


def _run(config: dict[str, Any], place: Path, loggers: list[Any]) -> dict[str, Any] | None:
    if config["hardware"]["threads"]:
        torch.set_num_threads(config["hardware"]["threads"])
    datamodule = build(without_parts(config, "dataset"))
    method = build_method(config)
    last = find_last(place / "checkpoints")
    # a run that goes on has its weights from its own checkpoint; where it started may be gone
    if config["init_from"] and last is None:
        load_weights(method, find_weights(config["init_from"], place))
    clock = Clock()
    callbacks = [*build_callbacks(config), Position(), clock]
    load_networks(callbacks, place)
    trainer = build_trainer(config, place, callbacks, loggers)
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_hyperparams(config)
    if config["hardware"]["compile"]:
        method.model.compile()

    if last is not None and trainer.is_global_zero:
        if last.skipped:
            print(f"note: {last.skipped}", file=sys.stderr)
        print(f"continuing after step {last.step} ({last.path.name})", flush=True)
    status = "finished"
    try:
        trainer.fit(method, datamodule=datamodule, ckpt_path=str(last.path) if last else None, weights_only=True)
    except Pruned as pruned:
        print(pruned)
        status = "pruned"
    if config["test"] != "none" and status == "finished":
        best = next((c.best_model_path for c in callbacks if isinstance(c, Checkpoints)), None) if config["test"] == "best" else None
        if config["test"] == "best" and not best:
            raise UserError("test=best: no checkpoint was ranked, since no validation gave a finite value: use test=last.")
        trainer.test(method, datamodule=datamodule, ckpt_path=best or None, verbose=False)
    skipped = damaged_everywhere(datamodule)
    with whole(method):
        if not trainer.is_global_zero:
            return None
        result = measure(config, place, method, datamodule, trainer)
    result |= {"metrics": method.latest, "skipped_examples": skipped, "wall_seconds": clock.seconds(), "status": status}
    folder.write_json(place / RESULT, result)
    (place / "checkpoints" / PREVIOUS).unlink(missing_ok=True)  # a finished stage is not continued
    for logger in loggers:
        if hasattr(logger, "log_result"):
            logger.log_result(result)
    return result


def damaged_everywhere(datamodule: Any) -> list[str]:
    """Paths of the examples that all processes left out because they are damaged, sorted."""
    mine = sorted(datamodule.damaged)
    if not torch.distributed.is_initialized():
        return mine
    everybody: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everybody, mine)
    return sorted(set().union(*everybody))


def measure(config: dict[str, Any], place: Path, method: Any, datamodule: Any, trainer: pl.Trainer) -> dict[str, Any]:
    """Everything in ``result.json`` besides the metrics: sizes, costs, and where and from what the numbers come."""
    from papermix.metrics.count import density, flops, parameters

    batch = next(iter(datamodule.train_dataloader()))
    example = {k: v[:1].to(method.device) for k, v in batch.items()}
    counts = parameters(method.model)
    dense = flops(method.model, example[method.task.input])
    effective = flops(method.model, example[method.task.input], effective=True)
    return {
        "parameters": counts["total"],
        "trainable_parameters": counts["trainable"],
        "density": density(method.model),
        "flops": dense,
        "effective_flops": effective,
        "peak_memory_bytes": peak_memory(),
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "seed": config["seed"],
        "paper": config["paper"],
        "tags": config["tags"],
        "stage": config["stage"],
        "monitor": {"name": method.task.monitor, "mode": method.task.mode},
        "processes": trainer.world_size,
        "device": torch.cuda.get_device_name() if method.device.type == "cuda" else cpu_model(),
        "git": git_state(),
        "versions": {
            "papermix": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pytorch_lightning": pl.__version__,
        },
    }


def peak_memory() -> int:
    """Largest memory of this process so far in bytes: on the GPU when one is used, else resident."""
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return on_gpu or resident_memory()


def find_weights(source: str, place: Path) -> Path:
    """The checkpoint that ``init_from`` names: a file, a run folder, or an earlier stage of this run."""
    path = Path(source)
    if path.suffix == ".ckpt":
        if not path.is_file():
            raise UserError(f"init_from={source}: there is no such checkpoint.")
        return path
    for run in (place.parent / source, path):
        if (last := find_last(run / "checkpoints")) is not None:
            return last.path
    raise UserError(f"init_from={source}: neither a stage of this run, nor a run folder, nor a .ckpt file with a readable checkpoint.")


def load_network(source: str, place: Path) -> nn.Module:
    """The network of another run (named as ``init_from`` names it), with the weights of its last checkpoint. Draws no random number."""
    path = find_weights(source, place)
    config = folder.read_config(path.parents[1])
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    method = build_method(config)
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    method.fresh = ()  # that run is over: its heads count, too
    load_weights(method, path)
    network: nn.Module = method.model
    return network


def load_networks(callbacks: Iterable[pl.Callback], place: Path) -> None:
    """Give callbacks the networks of other runs that they work with."""
    for callback in callbacks:
        for source in getattr(callback, "runs", ()):
            callback.networks[source] = load_network(source, place)  # type: ignore[attr-defined]


def load_weights(method: Method, path: Path) -> None:
    """Load a checkpoint's model weights; parts of another shape, and those the method starts anew, are left as they are, and said.

    Raises UserError when less than half of the model fits.
    """
    from papermix.sparsity.mask import plain_state

    state = method.inherit(VerifiedCheckpointIO().load_checkpoint(path)["state_dict"])
    own = method.model.state_dict()
    if not any("parametrizations" in k for k in own):
        state = plain_state(state)  # a sparse network's weights go into a dense one with their masks applied
    state = {k: v for k, v in state.items() if not k.startswith(tuple(f"{part}." for part in method.fresh))}
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    wanted = [k for k in own if not k.startswith(tuple(f"{part}." for part in method.fresh))]
    if not fits or 2 * len(fits) < len(wanted):
        raise UserError(
            f"{path}: only {len(fits)} of {len(wanted)} tensors fit this model; it was made by another network: choose that model."
        )
    method.model.load_state_dict(fits, strict=False)
    left = [k for k in own if k not in fits]
    if left:
        names = ", ".join(left[:4]) + (", ..." if len(left) > 4 else "")
        print(f"note: {len(left)} of {len(own)} tensors keep their own start ({names}); the rest comes from {path}")


def quiet() -> None:
    """Keep Lightning's advice out of the way: what matters here is said by this project itself."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # looks for a CUDA compiler whenever something is compiled
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    for pattern in (
        ".*does not have many workers.*",
        ".*The number of training batches.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
        ".*Checkpoint directory.*",
        ".*weights_only.*",
        ".*configured for CUDA.*",
        ".*sync_dist=True.*",
        ".*Total length of .* across ranks is zero.*",
        ".*srun.* command is available.*",
    ):
        warnings.filterwarnings("ignore", pattern)
