"""Where the numbers of a run go. Every logger keeps its place in the run folder, so that a continued run continues its
record too.
"""

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from pytorch_lightning.loggers.logger import DummyExperiment, Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only, rank_zero_warn

from papermix.errors import UserError

_HEADER = b"step,epoch,name,value\n"
_PATIENCE = 5  # failures in a row after which a logger is left alone


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


class Guarded(Logger):
    """A logger whose failures (network, disk, server) are told once and never stop the run; only the first process logs.

    Args:
        kind: its name in messages and checkpoints.
        folder: the run folder.
        make: builds the logger at its first use; it may fail like any other call.
        picture: ``picture(logger, name, path, step)`` sends an image file; None: it takes no pictures.
    """

    def __init__(
        self, kind: str, folder: str, make: Callable[[], Any], picture: Callable[[Any, str, Path, int], None] | None = None
    ) -> None:
        super().__init__()
        self.kind, self.folder = kind, folder
        self._make, self._picture = make, picture
        self._logger: Any = None
        self._failures = 0
        self._told = False

    def _try(self, act: Callable[[Any], Any], default: Any = None) -> Any:
        if getattr(rank_zero_only, "rank", 0) > 0 or self._failures >= _PATIENCE:
            return default
        try:
            if self._logger is None:
                self._logger = self._make()
            result = act(self._logger)
        except Exception as error:
            self._failures += 1
            if not self._told:
                self._told = True
                why = str(error).strip().splitlines()
                rank_zero_warn(f"Logger {self.kind} failed and the run goes on: {type(error).__name__}: {why[0] if why else ''}")
            return default
        self._failures = 0
        return result

    @property
    def name(self) -> str:
        """The kind of logger."""
        return self.kind

    @property
    def version(self) -> str:
        """Empty: a run folder has one record of each kind."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return self.folder

    @property
    def experiment(self) -> Any:
        """The wrapped logger's own object, or one that swallows every call."""
        return self._try(lambda logger: getattr(logger, "experiment", None)) or DummyExperiment()

    @property
    def path(self) -> Path | None:
        """The wrapped logger's file, if it has one."""
        return self._try(lambda logger: getattr(logger, "path", None))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Pass the numbers on."""
        self._try(lambda logger: logger.log_metrics(metrics, step))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Pass the config on."""
        self._try(lambda logger: logger.log_hyperparams(params, *args, **kwargs))

    def log_picture(self, name: str, path: str | os.PathLike, step: int) -> None:
        """Pass an image file on, where the logger takes pictures."""
        picture = self._picture
        if picture is not None:
            self._try(lambda logger: picture(logger, name, Path(path), step))

    def save(self) -> None:
        """Pass on."""
        self._try(lambda logger: logger.save())

    def finalize(self, status: str) -> None:
        """Pass on."""
        self._try(lambda logger: logger.finalize(status))

    def state_dict(self) -> dict[str, Any]:
        """The wrapped logger's state, or {}."""
        return self._try(lambda logger: logger.state_dict() if hasattr(logger, "state_dict") else {}, {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Pass on, where the logger has a state."""
        self._try(lambda logger: logger.load_state_dict(state) if hasattr(logger, "load_state_dict") else None)


def csv(folder: str) -> Guarded:
    """``<folder>/metrics.csv``."""
    return Guarded("csv", folder, lambda: CSVLogger(Path(folder) / "metrics.csv"))


def tensorboard(folder: str) -> Guarded:
    """Event files in ``<folder>/tensorboard``."""
    _require("tensorboard", "pip install 'papermix[tensorboard]'")

    def make() -> Any:
        from pytorch_lightning.loggers import TensorBoardLogger

        return TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False)

    def picture(logger: Any, name: str, path: Path, step: int) -> None:
        from matplotlib.image import imread

        logger.experiment.add_image(name, imread(path)[..., :3], step, dataformats="HWC")

    return Guarded("tensorboard", folder, make, picture)


def wandb(
    folder: str, project: str = "papermix", entity: str | None = None, name: str | None = None, mode: str = "online"
) -> Guarded:
    """Weights & Biases, files in ``<folder>/wandb``; the run's id is in ``<folder>/wandb.id``.

    Args:
        folder: the run folder; its name is the run's, when ``name`` is None.
        project: project to log to.
        entity: user or team; None: the default of the account.
        name: the run's name.
        mode: ``online``, or ``offline`` (send later with ``wandb sync``).
    """
    if mode not in ("online", "offline"):
        raise UserError(f"logger.wandb.mode={mode!r} must be online or offline.")
    _require("wandb", "pip install wandb")

    def make() -> Any:
        from pytorch_lightning.loggers import WandbLogger

        file = Path(folder) / "wandb.id"
        known = _read_id(file)
        identity = known or uuid4().hex[:8]
        settings: dict[str, Any] = {"console": "off"}  # the progress bar is no record
        logger = WandbLogger(
            name=name or Path(folder).name, save_dir=folder, id=identity, project=project, entity=entity, resume="allow",
            offline=mode == "offline", log_model=False, settings=settings,
        )  # fmt: skip
        if known is None:
            _write_id(file, identity)
        return logger

    def picture(logger: Any, name: str, path: Path, step: int) -> None:
        logger.log_image(name, [str(path)], step)

    return Guarded("wandb", folder, make, picture)


def mlflow(folder: str, experiment: str = "papermix", name: str | None = None, uri: str | None = None) -> Guarded:
    """MLflow; the run's id is in ``<folder>/mlflow.id``.

    Args:
        folder: the run folder; its name is the run's, when ``name`` is None.
        experiment: MLflow's experiment, made when it is missing.
        name: the run's name.
        uri: tracking server or database; None: SQLite in ``<folder>/mlflow.db``.
    """
    _require("mlflow", "pip install 'papermix[mlflow]'")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

    def make() -> Any:
        import logging

        from pytorch_lightning.loggers import MLFlowLogger

        for noisy in ("alembic", "mlflow"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        base = Path(folder).absolute()
        base.mkdir(parents=True, exist_ok=True)
        file = base / "mlflow.id"
        known = _read_id(file)
        logger = MLFlowLogger(
            experiment_name=experiment,
            run_name=name or base.name,
            tracking_uri=uri or f"sqlite:///{base / 'mlflow.db'}",
            artifact_location=None if uri else (base / "mlflow").as_uri(),
            run_id=known,
            log_model=False,
        )
        if known is None:
            _write_id(file, str(logger.run_id))
        else:
            logger.experiment.update_run(known, status="RUNNING")
        return logger

    def picture(logger: Any, name: str, path: Path, step: int) -> None:
        logger.experiment.log_artifact(logger.run_id, str(path), "pictures")

    return Guarded("mlflow", folder, make, picture)


def _require(package: str, cure: str) -> None:
    if find_spec(package) is None:
        raise UserError(f"logger={package} needs a package that is not installed: {cure}.")


def _read_id(file: Path) -> str | None:
    return (file.read_text().strip() or None) if file.exists() else None


def _write_id(file: Path, identity: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(identity + "\n")
