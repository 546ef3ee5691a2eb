"""Tokens per second of lstm_lm through train.py beside a plain PyTorch loop; bits per character beside xz -9e (--train)."""

import lzma
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules import corpora
from papermix.run.allocator import give_back_freed_memory
from papermix.run.folder import read_json
from scripts.benchmarks.harness import Check, Options, Report, Timing, Window, each_round, interleave
from scripts.benchmarks.parts import Config, config_of, data_of, device_of, fit, settle, terminal

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "experiment=foundation/pydocs_char"
# the loop by hand has no locked dropout, so neither has the other; pictures and samples come at validations only
SPEED = [RECIPE, "model.dropout_in=0", "model.dropout_out=0", "scheduler.warmup=0"]
TINY = ["model.width=8", "model.embedding=8", "dataset.batch_size=2", "dataset.seq_len=4"]


class PlainLSTM(nn.Module):
    """Embedding, LSTM, linear layer, time first: the language model of PyTorch's tutorials.

    Args:
        vocab_size, embedding, width, layers: the sizes.
    """

    def __init__(self, vocab_size: int, embedding: int, width: int, layers: int):
        super().__init__()
        self.encoder = nn.Embedding(vocab_size, embedding)
        self.rnn = nn.LSTM(embedding, width, layers)
        self.decoder = nn.Linear(width, vocab_size)

    def forward(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Logits [T, B, V] and the state after tokens [T, B]."""
        x, state = self.rnn(self.encoder(tokens), state)
        return self.decoder(x), state


def by_hand(config: Config, steps: int, skip: int) -> Timing:
    """Truncated back-propagation with a carried state, as in every tutorial."""
    give_back_freed_memory()
    sizes, batch, length = config["model"], config["dataset"]["batch_size"], config["dataset"]["seq_len"]
    device = device_of(config)
    model = PlainLSTM(sizes["vocab_size"], sizes["embedding"] or sizes["width"], sizes["width"], sizes["layers"]).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config["optimizer"]["lr"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps + skip + 1)
    text = data_of(config).texts["train"]
    streams = text[: len(text) // batch * batch].view(batch, -1).t().contiguous().to(device)
    chunks = range(0, len(streams) - length, length)
    window = Window(skip, steps, settle(device))
    state: Any = None
    model.train()
    for start in window.watch(list(chunks)[: steps + skip + 1]):
        tokens, target = streams[start : start + length], streams[start + 1 : start + 1 + length]
        if state is not None:
            state = tuple(s.detach() for s in state)
        logits, state = model(tokens, state)
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), target.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config["trainer"]["gradient_clip_val"])
        optimizer.step()
        schedule.step()
    return window.timing()


def tokens(timing: Timing, config: Config) -> Timing:
    """Steps turned into tokens."""
    per_step = config["dataset"]["batch_size"] * config["dataset"]["seq_len"]
    return Timing(timing.wall, timing.cpu, timing.count * per_step)


def train(report: Report) -> None:
    """Train the recipe from the shell and compare its test text's bits per character with what xz needs."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "train.py", RECIPE, f"hydra.run.dir={folder}/run"], cwd=ROOT, check=True)
        result = read_json(Path(folder) / "run" / "result.json")
        config = config_of([RECIPE], Path(folder) / "other")
        dataset = config["dataset"]
        text = corpora.pydocs(dataset["unit"], dataset["split_seed"])["test"]
    assert result is not None
    bits = result["metrics"]["test/bits_per_character"]
    xz = 8 * len(lzma.compress(text.encode(), lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)) / len(text)
    report.checks.append(Check("bits per character of the test text over those of xz -9e", [bits / xz], 1.0, "<="))
    report.checks.append(Check("minutes of training", [result["wall_seconds"] / 60], 10, "<="))
    report.notes.append(f"test text of {len(text)} characters: {bits:.3f} bits per character after training, {xz:.3f} by xz -9e")


def run(options: Options) -> Report:
    """Speed always; quality with ``--train``."""
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or before)
    steps, skip = (1, 1) if options.smoke else (20, 4)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*SPEED, f"hardware={options.device}", *(TINY if options.smoke else [])]
        config = config_of(overrides, Path(folder))
        arms = {
            "loop by hand": lambda: tokens(by_hand(config, steps, skip), config),
            "train.py": lambda: tokens(fit(config, steps, skip), config),
        }
        with terminal():
            timings = interleave(arms, options.repetitions, warmup=0 if options.smoke else 1)
    torch.set_num_threads(before)
    sizes, data = config["model"], config["dataset"]
    report = Report("text", "token", {"lstm_lm": timings})
    report.notes.append(f"{sizes['layers']} LSTM layer(s) of {sizes['width']}, no dropout")
    report.notes.append(f"{data['batch_size']} streams, {data['seq_len']} tokens a step")
    what = "tokens per second, train.py over the loop by hand"
    report.checks.append(each_round(timings, lambda s: s["loop by hand"] / s["train.py"], what, 1.0))
    if options.train:
        train(report)
    return report
