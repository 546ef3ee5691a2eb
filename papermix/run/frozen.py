"""Composed configs as bytes, and back without running anything that the bytes might ask for."""

import builtins
import collections
import dataclasses
import enum
import io
import pickle
import typing
from importlib import import_module
from typing import Any

from omegaconf import DictConfig
from omegaconf.base import Metadata, Node

from papermix.errors import UserError

_PLAIN = {
    **{("builtins", name): getattr(builtins, name) for name in ("bool", "bytes", "dict", "float", "int", "list", "set", "str", "tuple")},
    **{("collections", name): getattr(collections, name) for name in ("OrderedDict", "defaultdict")},
    **{("typing", name): getattr(typing, name) for name in ("Any", "Dict", "List", "Optional", "Tuple", "Union")},
}
_HOMES = ("omegaconf.", "hydra.conf", "hydra.types", "hydra._internal.core_plugins.", "hydra_plugins.")


class _Configs(pickle.Unpickler):
    """Makes plain containers, OmegaConf's nodes, and the dataclasses and enumerations of Hydra and its plugins; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if module.startswith(_HOMES):
            found: Any = import_module(module)
            for part in name.split("."):
                found = vars(found).get(part)
                if not isinstance(found, type) or found.__module__ != module:
                    break
            else:
                if dataclasses.is_dataclass(found) or issubclass(found, Node | Metadata | enum.Enum):
                    return found
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def to_bytes(cfg: DictConfig) -> bytes:
    """A composed config, interpolations unresolved, with its ``hydra`` node."""
    return pickle.dumps(cfg)


def from_bytes(data: bytes, where: str) -> DictConfig:
    """The inverse of :func:`to_bytes`. Raises UserError when ``data``, found at ``where``, is anything but a config."""
    try:
        cfg = _Configs(io.BytesIO(data)).load()
    except Exception as error:  # damaged bytes can fail in any way
        raise UserError(f"{where} is no frozen config ({error}): delete it and run the same command again.") from None
    if not isinstance(cfg, DictConfig):
        raise UserError(f"{where} is no frozen config: delete it and run the same command again.")
    return cfg
