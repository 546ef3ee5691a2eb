"""Whether a run that was disturbed left what one that was not leaves: every file, every tensor, every line."""

import json
from pathlib import Path
from typing import Any

import torch

from papermix.run.checkpoint_io import read

# what a clock, the machine's memory, or the moment decides
_MOMENTARY = {"wall_seconds", "peak_memory_bytes", "git", "seconds"}


def same(a: Any, b: Any) -> bool:
    """Whether two nested states are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and _bits(a) == _bits(b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return type(a) is type(b) and repr(a) == repr(b)


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def timeless(node: Any) -> Any:
    """A state without what a clock decides."""
    if isinstance(node, dict):
        return {k: timeless(v) for k, v in node.items() if k not in _MOMENTARY}
    return [timeless(v) for v in node] if isinstance(node, list) else node


def files(folder: Path) -> dict[str, Path]:
    """Relative name -> path of all files of a run or a sweep but its lock."""
    return {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


def differences(reference: Path, folder: Path) -> list[str]:
    """What differs between two folders, one short sentence each; nothing when they are the same bit for bit."""
    there, here = files(reference), files(folder)
    found = [f"{name} is missing" for name in there if name not in here]
    found += [f"{name} was left behind" for name in here if name not in there]
    for name in there.keys() & here.keys():
        if name.endswith(".ckpt"):
            a, b = timeless(read(there[name])), timeless(read(here[name]))
            found += [f"{name}: {part} differs" for part in a.keys() | b.keys() if not same(a.get(part), b.get(part))]
        elif name.endswith(".json"):
            a, b = (timeless(json.loads(p.read_text(encoding="utf-8"))) for p in (there[name], here[name]))
            if not same(a, b):
                found.append(f"{name} differs")
        elif name not in ("sweep.csv", "sweep.md") and there[name].read_bytes() != here[name].read_bytes():
            found.append(f"{name} differs")
    return sorted(found)


def finished(parts: list[Path]) -> dict[str, tuple[bytes, int]]:
    """Files of the parts that have a result, with content and time of change: what nothing may touch any more."""
    done = [part for part in parts if (part / "result.json").is_file()]
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for part in done for p in files(part).values()}
