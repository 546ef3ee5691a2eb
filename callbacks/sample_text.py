"""What the language model writes, after each validation and at the end."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from callbacks.base import Callback
from papermix.errors import UserError
from papermix.models.generate import generate
from papermix.sharding import parts, whole


class SampleText(Callback):
    """Writes sampled text into ``samples/`` of the run folder: ``step_000120.txt`` after a validation, ``final.txt`` at the end.

    Each file starts with the prompt. Draws come from a generator of its own, seeded anew for each file: training is not
    disturbed, and files differ by the model alone. With several processes the first one writes.

    Args:
        length: tokens to write.
        temperature: below 1 the likely tokens become likelier; 0 takes the likeliest one.
        prompt: what the text starts with; of words, separated by spaces.
        seed: of the draws.

    Raises:
        UserError: length below 1, negative temperature, empty prompt; data or a model that are not of text; a prompt with a
            character that the vocabulary lacks.
    """

    def __init__(self, length: int = 400, temperature: float = 0.8, prompt: str = "\n", seed: int = 0):
        if length < 1:
            raise UserError(f"callbacks.sample_text.length={length} must be at least 1.")
        if temperature < 0:
            raise UserError(f"callbacks.sample_text.temperature={temperature} must not be negative.")
        self.length, self.temperature, self.prompt, self.seed = length, temperature, prompt, seed

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        if not (hasattr(data, "encode") and hasattr(data, "decode")):
            raise UserError("callbacks=sample_text needs a dataset of text with encode and decode, such as dataset=pydocs_char.")
        if not len(data.encode(self.prompt)):
            raise UserError("callbacks.sample_text.prompt is empty: give at least one token, for example '\\n'.")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.write(trainer, pl_module, f"step_{trainer.global_step:06d}.txt")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.write(trainer, pl_module, "final.txt")

    def write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, name: str) -> None:
        """Write one sample to the file ``name``."""
        if not trainer.is_global_zero and not parts(pl_module):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        prompt = data.encode(self.prompt)
        model: Any = pl_module.model
        # a sharded network runs in all processes
        with whole(pl_module):
            tokens = generate(model, prompt, self.length, self.temperature, torch.Generator().manual_seed(self.seed))
        if not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "samples" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(data.decode(torch.cat([prompt, tokens])) + "\n", encoding="utf-8")
