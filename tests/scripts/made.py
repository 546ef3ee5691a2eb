"""Made-up run folders: what a finished run leaves behind, without training anything."""

import json
from pathlib import Path
from typing import Any

import yaml


def make_run(root: Path, name: str, overrides: list[str], metrics: dict[str, float], **more: Any) -> Path:
    """Write a run's ``config.yaml``, ``result.json`` and ``metrics.csv``; ``more`` goes into the result."""
    place = root / name
    place.mkdir(parents=True)
    typed = dict(o.split("=", 1) for o in overrides)
    seed = int(typed.get("seed", 1))
    config: dict[str, Any] = {
        "seed": seed,
        "tags": [],
        "paths": {"run": str(place), "outputs": str(root), "data": "data"},
        "dataset": {"source": typed.get("dataset", "digits"), "seed": seed, "split_seed": 0},
        "model": {"name": typed.get("model", "mlp"), "widths": [32, 64]},
        "optimizer": {"lr": float(typed.get("optimizer.lr", 0.1))},
        "logger": {"csv": {"folder": str(place)}},
    }
    for key, value in typed.items():
        group, _, name = key.partition(".")
        if name:
            config.setdefault(group, {})[name] = yaml.safe_load(value)
    result = {
        "metrics": metrics,
        "parameters": 1000,
        "density": 1.0,
        "flops": 2000,
        "effective_flops": 2000,
        "wall_seconds": 10.0,
        "peak_memory_bytes": 10**8,
        "seed": seed,
        "paper": None,
        "tags": [],
        "stage": None,
        "monitor": {"name": "val/accuracy", "mode": "max"},
        "git": {"commit": "0" * 40, "dirty": False},
        "versions": {"papermix": "0.1.0"},
        "command": "python train.py " + " ".join(overrides),
        "folder": str(place),
        "stages_done": ["main"],
    }
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    (place / "result.json").write_text(json.dumps(result | more))
    accuracy = metrics.get("test/accuracy", 0.5)
    lines = [f"{s},0,val/accuracy,{accuracy * s / 30}\n{s},0,train/loss,{1 - s / 40}" for s in (10, 20, 30)]
    (place / "metrics.csv").write_text("step,epoch,name,value\n" + "\n".join(lines) + "\n")
    return place
