"""No config runs code: what it may name as ``_target_``, and what its ``hydra`` node may hold before Hydra acts on it."""

import functools
import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from papermix.errors import UserError, nearest
from papermix.run.signatures import locate, names_in

# what a config may name as `_target_`: this project's packages, and the parts of libraries that build things
ALLOWED_TARGETS = (
    "papermix.", "lightning_modules.", "datamodules.", "callbacks.",
    "torch.optim.", "torch.nn.", "timm.optim.", "torchmetrics.", "torchvision.transforms.v2.",
    "pytorch_lightning.Trainer", "pytorch_lightning.trainer.trainer.Trainer", "pytorch_lightning.callbacks.", "pytorch_lightning.loggers.",
)  # fmt: skip
# the machinery starts processes, reads and writes: of it, only loggers are built
_MACHINERY = "papermix.run."
_LOGGERS = ("papermix.run.loggers.", "papermix.run.dashboards.")
_PLUGINS = ("hydra_plugins.", "hydra._internal.core_plugins.")
# environment that a config may set; others decide what code is loaded
_ENVIRONMENT = re.compile(r"(OMP|MKL|OPENBLAS)_NUM_THREADS|(NCCL|GLOO)_(SOCKET_IFNAME|DEBUG)|CUDA_VISIBLE_DEVICES|WANDB_MODE")
_LOGGING_CLASSES = ("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter", "logging.Filter")
_LOGGING_FACTORIES = ("colorlog.ColoredFormatter",)
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


def targets(node: Any, path: str = "") -> Iterator[tuple[str, dict]]:
    """All nodes with a ``_target_``, with their dotted paths."""
    if isinstance(node, dict):
        if node.get("_target_"):
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from targets(value, f"{path}.{i}")


def _listed(name: str) -> bool:
    if name.startswith(_MACHINERY):
        return name.startswith(_LOGGERS)
    return any(name == a or (a.endswith(".") and name.startswith(a)) for a in ALLOWED_TARGETS)


def check_allowed(target: Any, path: str) -> None:
    """Refuse a ``_target_`` that is no class or function of the allow-list: a config must not be able to run arbitrary code.

    A name is looked up in the source of its module, nothing is imported: one that leads out of it, as in
    ``torch.nn.modules.module.os.system``, is none of the module's, and what a module has from elsewhere is judged by its home.
    """
    if not isinstance(target, str):
        raise UserError(f"{path}._target_ must be a dotted name, not {target!r}.")
    listed = _listed(target) and "._" not in target
    found = locate(target) if listed else None
    module, _, name = target.rpartition(".")
    if listed and found is None:
        if names_in(module):
            raise UserError(f"{path}._target_={target}: {module} has no {name!r}{nearest(name, names_in(module))}.")
        raise UserError(f"{path}._target_={target}: there is no module {module!r} whose source could be read.")
    if found is None or not _listed(f"{found[0]}.{found[1].name}"):
        raise UserError(
            f"{path}._target_={target} is not allowed: only papermix's own packages, torch.optim, torch.nn, timm and Lightning may be built."
        )


def check_safe(config: Any, path: str = "") -> None:
    """Refuse a frozen config, or a node of one, that names anything but allowed targets, or holds an interpolation (it is resolved)."""
    for place, node in targets(config):
        check_allowed(node["_target_"], f"{path}.{place}".strip("."))
    for place, text in _strings(config, path):
        if "${" in text:
            raise UserError(f"{place}={text!r} is an interpolation, which a frozen config does not hold: write the value itself.")


def _strings(node: Any, path: str) -> Iterator[tuple[str, str]]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in pairs:
        place = f"{path}.{key}".lstrip(".")
        if isinstance(value, str):
            yield place, value
        else:
            yield from _strings(value, place)


# ---- what Hydra itself would do ------------------------------------------------------------------------------------------------


def install() -> None:
    """Let every config that Hydra composes be looked at before Hydra sets up logging, callbacks, launcher and sweeper from it."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    load = ConfigLoaderImpl.load_configuration
    if hasattr(load, "__wrapped__"):
        return

    @functools.wraps(load)
    def checked(*args: Any, **kwargs: Any) -> DictConfig:
        cfg = load(*args, **kwargs)
        check_hydra(cfg)
        return cfg

    ConfigLoaderImpl.load_configuration = checked  # type: ignore[method-assign]


def check_hydra(cfg: DictConfig) -> None:
    """Refuse a composed config whose ``hydra`` node would run code. Raises UserError."""
    hydra = cfg.get("hydra")
    if not isinstance(hydra, DictConfig):
        return
    if hydra.get("callbacks"):
        raise UserError("hydra.callbacks would be built by Hydra itself, unchecked: leave it out, and use callbacks=[...].")
    plain = {str(key): _resolved(hydra, str(key)) for key in hydra if key != "overrides"}
    for path, node in targets(plain, "hydra"):
        target = node["_target_"]
        if path not in ("hydra.launcher", "hydra.sweeper") or not str(target).startswith(_PLUGINS):
            raise UserError(f"{path}._target_={target} is not allowed: of hydra's node only the launcher and the sweeper are built.")
    for group in ("hydra_logging", "job_logging"):
        _check_logging(plain.get(group), f"hydra.{group}")
    for name in (plain.get("job") or {}).get("env_set") or {}:
        if not _ENVIRONMENT.fullmatch(str(name)):
            raise UserError(f"hydra.job.env_set.{name} could change what code is loaded: set {name} in the shell instead.")


def _resolved(node: DictConfig | ListConfig, key: Any) -> Any:
    """An entry as plain containers; an interpolation that has no value yet (it needs the run's own config) stays as it is written."""
    try:
        value = node._get_node(key) if OmegaConf.is_missing(node, key) else node[key]
    except (OmegaConfBaseException, UserError, ValueError):
        return str(OmegaConf.to_container(node, resolve=False)[key])  # type: ignore[call-overload, index]
    if isinstance(value, DictConfig) and not value._is_none() and not value._is_missing():
        return {str(k): _resolved(value, k) for k in value}
    if isinstance(value, ListConfig) and not value._is_none() and not value._is_missing():
        return [_resolved(value, i) for i in range(len(value))]
    return None if isinstance(value, DictConfig | ListConfig) else value


def _check_logging(node: Any, path: str) -> None:
    """Python's logging builds what ``class``, ``()`` and ``ext://`` name."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if isinstance(node, str) and node.startswith(("ext://", "cfg://")) and node not in _STREAMS:
        raise UserError(f"{path}={node} is not allowed: logging may write to {' or '.join(_STREAMS)}.")
    for key, value in node.items() if isinstance(node, dict) else ():
        if (key == "class" and value not in _LOGGING_CLASSES) or (key == "()" and value not in _LOGGING_FACTORIES):
            raise UserError(f"{path}.{key}={value} is not allowed: logging may be made of {', '.join(_LOGGING_CLASSES)}.")
        _check_logging(value, f"{path}.{key}")
