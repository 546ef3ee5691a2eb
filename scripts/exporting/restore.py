"""A finished run's network as its validation and test had it, with a batch to compare outputs on."""

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks.checkpoints import Checkpoints
from papermix.errors import UserError, nearest
from papermix.run import folder
from papermix.run.build import build
from papermix.run.checkpoint_io import find_last
from papermix.run.job import ORIGIN, RESULT
from papermix.run.stage import Clock, build_callbacks, build_method, build_trainer, quiet, seed_all, without_parts

# rows of the batch that outputs are compared on
ROWS = 8


@dataclass
class Restored:
    """A run's network and what is known about it.

    Attributes:
        place: the folder of the run, or of its stage.
        config, result: what is frozen there, and what came out.
        checkpoint: the file that the weights are from.
        model: the network in evaluation mode on the CPU, in float32, sparsity and other parametrizations still on it.
        input: the name of the batch entry that the network takes.
        batch: that entry of some validation examples, [B, ...].
        random: a random tensor of the same kind.
        heads: name -> channels of the maps that the task asked a dense network for; empty for others.
        judged: what the run's metrics were computed from for ``batch``: the method's prediction.
        data: the datamodule ``batch`` is from.
        notes: sentences for the user.
    """

    place: Path
    config: dict[str, Any]
    result: dict[str, Any]
    checkpoint: Path
    model: Any
    input: str
    batch: Tensor
    random: Tensor
    heads: dict[str, int]
    judged: Any
    data: Any
    notes: list[str]


class _Ready(Exception):
    """The network is as validation would use it: no more is wanted from the trainer."""


class _Capture(pl.Callback):
    """Copies the network at the moment at which validation would start, averaged weights in place, and stops."""

    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.batch = batch
        self.model: nn.Module | None = None
        self.judged: Any = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> NoReturn:
        """Take the network and the method's prediction."""
        method: Any = pl_module
        self.model = copy.deepcopy(method.model)
        self.judged = method.predict(self.batch, "val")
        raise _Ready


def find(run: Path, stage: str | None = None) -> Path:
    """The folder that holds the config of a run, or of one of its stages (the last one unless named).

    Raises:
        UserError: no run folder, a run or stage that has not finished, an unknown stage.
    """
    if not run.is_dir():
        raise UserError(f"there is no run folder {run}: give one below outputs/ (python scripts/report.py lists them).")
    stages = (folder.read_json(run / ORIGIN) or {}).get("stages", ["main"])
    if stages != ["main"]:
        name = stage or stages[-1]
        if name not in stages:
            raise UserError(f"{run} has no stage {name!r}{nearest(name, stages)}: it has {', '.join(stages)}.")
        place = run / name
    elif stage is not None:
        raise UserError(f"{run} has no stages: leave --stage out.")
    else:
        place = run
    folder.read_config(place)
    if folder.read_json(place / RESULT) is None:
        raise UserError(f"{place} has not finished: continue it with python train.py resume={run}, then export it.")
    return place


def restore(place: Path, weights: str | None = None) -> Restored:
    """Build what a finished run's config says and load its weights, as its own validation would.

    Nothing is written to the run's folder, and nothing is downloaded: data that is not there is replaced by random data.

    Args:
        place: see :func:`find`.
        weights: ``last`` or ``best`` checkpoint; None: the one that the run tested.

    Raises:
        UserError: no such checkpoint, or one that does not fit the config.
    """
    stored, result = folder.read_config(place), folder.read_json(place / RESULT) or {}
    if "command" not in result:  # a stage: its run knows
        result["command"] = (folder.read_json(place.parent / RESULT) or {}).get("command")
    notes: list[str] = []
    quiet()
    config = _here(stored)
    seed_all(config["seed"])
    data = _data(config, notes)
    batch = _first_batch(data)
    with tempfile.TemporaryDirectory() as scratch:
        method = build_method(config)
        capture = _Capture(batch)
        kept = [c for c in build_callbacks(config) if not isinstance(c, pl.callbacks.ProgressBar)]
        callbacks = [*kept, Clock(), capture]  # the clock only takes its state, which else would be missed
        trainer = build_trainer(config, Path(scratch), callbacks, [])
        path = _checkpoint(place, callbacks, trainer, method, weights or ("best" if stored["test"] == "best" else "last"), notes)
        data.val_dataloader = lambda: DataLoader([batch], batch_size=None)  # type: ignore[arg-type]  # one batch, of whatever split there is
        try:
            trainer.validate(method, datamodule=data, ckpt_path=str(path), verbose=False, weights_only=True)
        except _Ready:
            pass
        except RuntimeError as error:
            if "state_dict" not in str(error):
                raise
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{path} does not fit the config beside it ({reason}): restore both, or run it again.") from error
    assert capture.model is not None, "validation started without a network"
    # every loader makes contiguous tensors, on which kernels may round otherwise than on channels-last ones
    model: Any = capture.model.float().eval().to(memory_format=torch.contiguous_format)
    x = batch[method.task.input]
    heads = method.heads()
    return Restored(
        place, stored, result, path, model, method.task.input, x[:ROWS].clone(),
        _random_like(x[:ROWS]), heads, capture.judged, data, notes,
    )  # fmt: skip


def _here(config: dict[str, Any]) -> dict[str, Any]:
    """The config for one process on this machine's CPU, without compilation, downloads and pretrained weights."""
    config = copy.deepcopy(config)
    config["hardware"] |= {
        "accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": "32-true",
        "sync_batchnorm": False, "compile": False, "deterministic": False,
    }  # fmt: skip
    # tensors made in inference mode could not be worked on afterwards
    config["trainer"] |= {"limit_val_batches": 1, "overfit_batches": 0.0, "profiler": None, "inference_mode": False}
    config["trainer"].pop("fast_dev_run", None)
    config["sweep_trial"] = None
    for group, key, value in (("model", "pretrained", False), ("dataset", "download", False), ("dataset", "workers", 0)):
        if key in config[group]:
            config[group][key] = value
    return config


def _data(config: dict[str, Any], notes: list[str]) -> Any:
    """The run's data, or random data of the same shapes when it is not here."""
    node = without_parts(config, "dataset")
    data = build(node)
    try:
        data.prepare_data()
        data.setup()
    except UserError as error:
        if node.get("fake") is not False:
            raise
        notes.append(f"the run's data is not here, so outputs are compared on random data of its shape alone ({error})")
        data = build({**node, "fake": True})
        data.setup()
    return data


def _first_batch(data: Any) -> dict[str, Tensor]:
    """A batch of the first of validation, test and training that has one."""
    for split in ("val", "test", "train"):
        loader = data.loader(split)
        if loader is not None:
            return next(iter(loader))
    raise UserError("the run's data has no examples: check its folder.")


def _checkpoint(
    place: Path, callbacks: list[pl.Callback], trainer: pl.Trainer, method: Any, which: str, notes: list[str]
) -> Path:
    checkpoints = place / "checkpoints"
    if which == "best":
        for callback in callbacks:
            if isinstance(callback, Checkpoints):
                callback.folder = checkpoints  # the run may have been moved since
                callback.setup(trainer, method, "validate")
                if callback.best_model_path:
                    return Path(callback.best_model_path)
        raise UserError(f"{checkpoints} holds no best checkpoint: use --weights last.")
    last = find_last(checkpoints)
    if last is None:
        raise UserError(f"{checkpoints} holds no checkpoint: run it again with callbacks=default (which keeps the last one).")
    if last.skipped:
        notes.append(last.skipped)
    return last.path


def _random_like(x: Tensor) -> Tensor:
    """At least two rows, as exporters take a dimension of one for a constant; texts are half as long."""
    x = torch.cat([x, x])[: max(2, len(x))]
    generator = torch.Generator().manual_seed(0)
    if x.is_floating_point():
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)
    x = x[:, : x.shape[1] // 2 + 1]  # a program must not have learnt the length of a text
    return torch.randint(int(x.min()), int(x.max()) + 1, x.shape, generator=generator, dtype=x.dtype)
