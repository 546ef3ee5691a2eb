"""Where the numbers of a run go. Every logger keeps its place in the run folder, so that a continued run continues its
record too; what the dashboards are told stands in ``papermix/run/dashboards``.
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger

from papermix.errors import UserError, nearest
from papermix.run.dashboards.guard import Background, Guarded

_HEADER = b"step,epoch,name,value\n"


class CSVLogger(Logger):
    """Numbers as lines ``step,epoch,name,value`` of one file, added at the end.

    A line is in the file when ``log_metrics`` returns, and on the disk when a checkpoint is written: its state is the
    length of the file, and loading the state cuts the file there, so that a continued run leaves the file of a run never
    stopped.

    Args:
        path: the file; it and its folder are made at the first line.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__()
        self.path = Path(path)
        self._epoch = 0

    @property
    def name(self) -> str:
        """``csv``."""
        return "csv"

    @property
    def version(self) -> str:
        """Empty: a run folder has one file."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a line for each number; ``epoch`` among them fills the second column, else the epoch last seen does."""
        self._epoch = int(metrics.get("epoch", self._epoch))
        place = f"{'' if step is None else int(step)},{self._epoch},"
        lines = [f"{place}{name},{float(value)!r}\n" for name, value in metrics.items() if name != "epoch"]
        if lines:
            self._append("".join(lines).encode())

    def _append(self, text: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:
            length = file.tell()
            data = text if length else _HEADER + text
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                file.truncate(length)  # no half line stays behind when the disk is full
                raise

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config has a file of its own in the run folder."""

    def state_dict(self) -> dict[str, int]:
        """Bytes of the file that belong to the past, all of them on the disk by now."""
        length = 0
        if self.path.exists():
            with open(self.path, "ab") as file:
                os.fsync(file.fileno())
                length = file.tell()
        return {"length": length, "epoch": self._epoch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Cut the file to a state's length. A shorter file keeps the lines up to the state's ``step``; no state empties it."""
        self._epoch = int(state.get("epoch", 0))
        if not self.path.exists():
            return
        length = int(state.get("length", 0))
        if self.path.stat().st_size >= length and not ("length" not in state and "step" in state):
            os.truncate(self.path, length)
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        last = int(state.get("step", 0))
        kept = [
            line
            for line in lines[1:]
            if line.endswith(b"\n") and line.split(b",")[0].isdigit() and int(line.split(b",")[0]) <= last
        ]
        self.path.write_bytes(_HEADER + b"".join(kept))


def csv(folder: str) -> Guarded:
    """``<folder>/metrics.csv``."""
    return Guarded("csv", folder, lambda: CSVLogger(Path(folder) / "metrics.csv"))


def tensorboard(folder: str) -> Guarded:
    """Event files in ``<folder>/tensorboard``."""
    _require("tensorboard", "pip install 'papermix[tensorboard]'")

    def make() -> Any:
        from papermix.run.dashboards.tensorboard import TensorBoardRecord

        return TensorBoardRecord(Path(folder).absolute())

    return Guarded("tensorboard", folder, make)


def wandb(
    folder: str, project: str = "papermix", entity: str | None = None, name: str | None = None, mode: str = "online",
    timeout: float = 20.0,
) -> Background:  # fmt: skip
    """Weights & Biases, files in ``<folder>/wandb``; ``<folder>/wandb.json`` says which record is this run's.

    Args:
        folder: the run folder; its name is the run's, when ``name`` is None.
        project: project to log to.
        entity: user or team; None: the default of the account.
        name: the run's name.
        mode: ``online``, or ``offline`` (send later with ``wandb sync``).
        timeout: seconds to wait for a silent server before the run ends without it.
    """
    if mode not in ("online", "offline"):
        raise UserError(f"logger.wandb.mode={mode!r} must be online or offline{nearest(mode, ('online', 'offline'))}.")
    _check_timeout("wandb", timeout)
    _require("wandb", "pip install wandb")

    def make() -> Any:
        from papermix.run.dashboards.wandb import WandbRecord

        return WandbRecord(Path(folder).absolute(), project, entity, name, mode == "offline", timeout)

    return Background("wandb", folder, make, timeout)


def mlflow(
    folder: str, outputs: str | None = None, experiment: str = "papermix", name: str | None = None, uri: str | None = None,
    timeout: float = 20.0,
) -> Background:  # fmt: skip
    """MLflow; ``<folder>/mlflow.json`` says which record is this run's.

    Args:
        folder: the run folder; its name is the run's, when ``name`` is None.
        outputs: folder of the database ``mlflow.db`` and of ``mlflow/`` with its pictures and files; None: the run folder.
        experiment: MLflow's experiment, made when it is missing.
        name: the run's name.
        uri: tracking server or database; None: SQLite in ``outputs``.
        timeout: seconds to wait for a silent server before the run ends without it.
    """
    _check_timeout("mlflow", timeout)
    _require("mlflow", "pip install 'papermix[mlflow]'")
    # a call that fails is tried again here, and random pauses between tries would draw from the training's own random numbers
    settings = {"DISABLE_TELEMETRY": "true", "HTTP_REQUEST_TIMEOUT": "10", "HTTP_REQUEST_MAX_RETRIES": "1"}
    for key, value in {**settings, "HTTP_REQUEST_BACKOFF_JITTER": "0"}.items():
        os.environ.setdefault(f"MLFLOW_{key}", value)
    base = Path(outputs or folder).absolute()

    def make() -> Any:
        from papermix.run.dashboards.mlflow import MLflowRecord

        place = Path(folder).absolute()
        return MLflowRecord(place, uri or f"sqlite:///{base / 'mlflow.db'}", None if uri else base / "mlflow", experiment, name)

    return Background("mlflow", folder, make, timeout)


def _check_timeout(kind: str, timeout: float) -> None:
    if not 0 < timeout < float("inf"):
        raise UserError(f"logger.{kind}.timeout={timeout} must be a number of seconds above 0.")


def _require(package: str, cure: str) -> None:
    if find_spec(package) is None:
        raise UserError(f"logger={package} needs a package that is not installed: {cure}.")
