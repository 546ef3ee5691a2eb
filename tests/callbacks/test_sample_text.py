"""Sampled text: files where they belong, the same for the same model, training left as it was."""

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from callbacks.sample_text import SampleText
from datamodules.text import Text
from papermix.errors import UserError
from papermix.models.lstm_lm import LSTMLM
from papermix.models.transformer_lm import TransformerLM


class Plain(pl.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, batch_idx):
        out = self.model(batch["tokens"])
        logits = out[0] if self.model.stateful else out
        return F.cross_entropy(logits.flatten(0, 1), batch["target"].flatten())

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder, callbacks, stateful: bool = True, **data):
    torch.manual_seed(0)
    options = {"corpus": "pydocs", "unit": "char", "vocab_size": 104, "batch_size": 2, "seq_len": 8, "limit": 64, **data}
    model = LSTMLM(104, width=8, dropout_out=0.5) if stateful else TransformerLM(104, 1, 8, 2, max_length=8)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, default_root_dir=folder, callbacks=callbacks, use_distributed_sampler=False,
        logger=False, num_sanity_val_steps=1, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Plain(model), datamodule=Text(**options))
    return model


@pytest.mark.parametrize("stateful", [True, False])
def test_files_and_undisturbed_training(tmp_path, stateful):
    sampled = fit(tmp_path / "a", [SampleText(length=20, prompt="The ")], stateful)
    files = sorted(p.name for p in (tmp_path / "a" / "samples").iterdir())
    assert files == ["final.txt", "step_000004.txt", "step_000008.txt"]
    text = (tmp_path / "a" / "samples" / "final.txt").read_text()
    assert text.startswith("The ") and len(text.replace("<unk>", "?")) == 4 + 20 + 1
    assert text == (tmp_path / "a" / "samples" / "step_000008.txt").read_text()
    fit(tmp_path / "b", [SampleText(length=20, prompt="The ")], stateful)
    assert text == (tmp_path / "b" / "samples" / "final.txt").read_text()
    plain = fit(tmp_path / "c", [], stateful)
    assert all(torch.equal(p, q) for p, q in zip(sampled.parameters(), plain.parameters()))


@pytest.mark.parametrize("options, message", [({"length": 0}, "length=0"), ({"temperature": -1.0}, "must not be negative")])
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        SampleText(**options)


def test_empty_prompt(tmp_path):
    with pytest.raises(UserError, match="prompt is empty"):
        fit(tmp_path, [SampleText(prompt="")])


def test_needs_text(tmp_path):
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(UserError, match="needs a dataset of text"):
        SampleText().setup(trainer, Plain(torch.nn.Linear(1, 1)), "fit")
