"""Names of runs: a stable function of the composed config (readable overrides and a hash), never of the clock."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from papermix.errors import UserError, nearest

# keys that do not change what is computed: they are left out of the hash and may differ when a run is continued
VOLATILE = ("hydra", "paths", "resume", "traceback", "tags", "sweep_trial", "_stages_")


def identity(cfg: DictConfig) -> str:
    """The config's content as canonical JSON, volatile keys left out, interpolations as they are written."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    return json.dumps({str(k): v for k, v in plain.items() if k not in VOLATILE}, sort_keys=True)


def short_hash(text: str) -> str:
    """Eight hexadecimal digits of a SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def readable(overrides: Sequence[str], limit: int = 100) -> str:
    """Overrides as a folder name: ``optimizer.lr=0.1,seed=2``; those of Hydra itself and volatile ones are left out."""
    shown = [o for o in overrides if o.lstrip("+~").split("=")[0].split(".")[0].split("/")[0].split("@")[0] not in VOLATILE]
    # where a run computes is not what it is: its settings are in the hash
    shown = [o for o in shown if not o.startswith("hardware=")]
    text = re.sub(r"[^A-Za-z0-9_.=,+-]+", "_", ",".join(o.lstrip("+~") for o in shown)).strip("_.")
    return text if len(text) <= limit else text[:limit].rstrip("_.,=")


def run_name(root: DictConfig) -> str:
    """``<experiment or dataset-model>[,overrides]-<hash>`` for a composed config with its ``hydra`` node."""
    choices: dict[str, Any] = dict(OmegaConf.select(root, "hydra.runtime.choices") or {})
    overrides = list(OmegaConf.select(root, "hydra.overrides.task") or [])
    experiment = choices.get("experiment")
    head = str(experiment) if experiment else f"{choices.get('dataset')}-{choices.get('model')}"
    named = ("experiment=", "+experiment=") if experiment else ("dataset=", "model=")
    rest = readable([o for o in overrides if not o.startswith(named)])
    return f"{head.replace('/', '.')}{',' + rest if rest else ''}-{short_hash(identity(root))}"


def run_dir(root: DictConfig) -> str:
    """Folder of a single run: the one that ``resume=`` names, else ``<paths.outputs>/<run name>``."""
    resume = root.get("resume")
    if not resume:
        return f"{root.paths.outputs}/{run_name(root)}"
    folder = Path(str(resume))
    if not (folder / "config.yaml").is_file() and not (folder / "origin.json").is_file():
        beside = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        hint = "" if folder.is_dir() else nearest(folder.name, beside)
        raise UserError(f"resume={resume} is not a run folder: it has no config.yaml{hint}.")
    return str(folder)


def register_resolvers() -> None:
    """Make ``${run_name:}``, ``${run_dir:}``, ``${not:value}``, ``${add:a,b}`` and ``${range:first,end}`` known to OmegaConf."""
    OmegaConf.register_new_resolver("run_name", lambda *, _root_: run_name(_root_), replace=True)
    OmegaConf.register_new_resolver("run_dir", lambda *, _root_: run_dir(_root_), replace=True)
    OmegaConf.register_new_resolver("not", lambda value: not value, replace=True)
    OmegaConf.register_new_resolver("add", lambda *numbers: sum(numbers), replace=True)
    OmegaConf.register_new_resolver("range", lambda first, end: list(range(first, end)), replace=True)
