"""The record of a run in TensorBoard: event files in the run folder, cut back to the checkpoint when the run is continued."""

import os
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from papermix.run.dashboards.about import about, as_markdown, figures, flat, result_lines


class TensorBoardRecord:
    """Scalars, pictures, and as text the config, what the run is, and its result; the config's values also as HPARAMS.

    Its state is the length of each event file. Loading a state cuts the files there, and tells a TensorBoard that is looking to
    forget what came after.

    Args:
        place: the run folder; the files are in its ``tensorboard`` folder.
    """

    def __init__(self, place: Path) -> None:
        self.place, self.folder = place, place / "tensorboard"
        self._config: Mapping[str, Any] | None = None
        self._writer: Any = None
        self._purge: int | None = None

    @property
    def experiment(self) -> Any:
        """The ``SummaryWriter``."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            _silence_its_thread()
            fresh = not self._files()
            self._writer = SummaryWriter(str(self.folder), purge_step=self._purge)
            if fresh and self._config is not None:
                self._introduce(self._config)
        return self._writer

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("events.out.tfevents.*"))

    def _introduce(self, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.summary import hparams

        facts = about(self.place, config)
        git = facts.git or {}
        lines = [
            ("run", facts.name),
            *facts.tags.items(),
            ("tags", ", ".join(facts.labels)),
            ("git commit", git.get("commit", "")),
            ("uncommitted changes", "yes" if git.get("dirty") else "no" if git else ""),
            ("command", f"`{facts.command}`"),
        ]
        self._writer.add_text("run/about", as_markdown([line for line in lines if line[1]], ("about", "")))
        text = yaml.safe_dump(facts.config, sort_keys=False, allow_unicode=True)
        self._writer.add_text("run/config", "\n".join(f"    {line}" for line in text.splitlines()))
        values = {k: v for k, v in {**flat(config), **facts.tags}.items() if isinstance(v, str | int | float)}
        # only the start of a session: TensorBoard then offers every scalar as its metric
        self._writer.file_writer.add_summary(hparams(values, {})[1])

    def log_hyperparams(self, config: Mapping[str, Any]) -> None:
        """Keep the config for the first line that is written: which files stay is known only when a checkpoint is loaded."""
        self._config = dict(config)

    def log_metrics(self, numbers: Mapping[str, float], step: int | None) -> None:
        """Add scalars."""
        for name, value in numbers.items():
            self.experiment.add_scalar(name, float(value), step)

    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Add an image file."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.experiment.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def log_result(self, result: Mapping[str, Any]) -> None:
        """Add the final table as text, and sizes and costs as scalars."""
        steps = int(result.get("steps", 0))
        self.experiment.add_text("run/result", as_markdown(result_lines(result)), steps)
        self.log_metrics(figures(result), steps)

    def state_dict(self) -> dict[str, Any]:
        """Bytes of each event file that belong to the past."""
        if self._writer is not None:
            self._writer.flush()
        return {"files": {path.name: path.stat().st_size for path in self._files()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Cut the files to a state's lengths, and remove those that it does not know. A state without files keeps them all."""
        self._release()
        if "files" in state or not state:
            for path in self._files():
                length = state.get("files", {}).get(path.name)
                if length is None:
                    path.unlink()
                elif path.stat().st_size > length:
                    os.truncate(path, length)
        self._purge = int(state["step"]) + 1 if "step" in state else None

    def close(self, status: str) -> None:
        """Write what is left, and close the file."""
        self._release()

    def _release(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


@cache
def _silence_its_thread() -> None:
    """A full disk shows in TensorBoard's thread, which prints a stack trace and raises again at the next call, where it is caught."""
    before = threading.excepthook

    def hook(args: Any) -> None:
        if type(args.thread).__name__ != "_AsyncWriterThread":
            before(args)

    threading.excepthook = hook
