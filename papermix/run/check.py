"""Refuse an impossible config in one sentence, before torch is imported: the mix, the keys, the types, the interpolations."""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError, OmegaConfBaseException

from papermix.errors import UserError, nearest
from papermix.run import catalog
from papermix.run.guard import check_allowed, targets
from papermix.run.ranges import check_values
from papermix.run.signatures import accepts, literals, signature

# sub-nodes that the machinery builds by itself, and so are no arguments of the node they stand in
PARTS = {"dataset": {"task"}, "optimizer": {"groups"}}
CAPABILITIES = ("_gives_", "_needs_", "_clashes_")
# keys of a node that name weights as init_from does: an earlier stage, a run folder or a .ckpt file
LOADS = "_loads_"
# given by the machinery when the object is built, never by the config
LIVE = {"model", "task", "optimizer", "scheduler"}

_ROOT_TYPES: dict[str, tuple[type, ...]] = {
    "seed": (int,),
    "paper": (str, type(None)),
    "tags": (list,),
    "init_from": (str, type(None)),
    "test": (str,),
    "stages": (dict, type(None)),
    "resume": (str, type(None)),
    "traceback": (bool,),
}

# groups that every config has, and the keys without which nothing can be built
_GROUPS = {
    "dataset": ("_target_", "task"),
    "model": ("_target_",),
    "method": ("_target_",),
    "optimizer": ("_target_", "groups"),
    "scheduler": (),
    "sparsity": (),
    "hardware": (),
    "trainer": ("_target_",),
}


def check(cfg: DictConfig) -> None:
    """Check a composed config (with or without its ``hydra`` node). Raises UserError at the first fault."""
    check_mix(cfg)
    plain = resolved(cfg)
    for key, types in _ROOT_TYPES.items():
        value = plain.get(key)
        if key in plain and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
            words = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise UserError(f"{key}={value!r} is not of the right type: it takes {words}.")
    paper = plain.get("paper")
    if paper is not None and paper not in catalog.options("paper"):
        raise UserError(f"paper={paper}: there is no conf/paper/{paper}.yaml{nearest(paper, catalog.options('paper'))}.")
    _check_added(cfg, plain)
    _check_groups(plain)
    recipe = _choices(cfg).get("experiment")
    for path, node in targets(plain):
        _check_target(path, node, recipe)
    check_values(plain)


def _check_added(cfg: DictConfig, plain: dict[str, Any]) -> None:
    """Refuse keys added at the root (``+key=...``) that nothing reads: neither the machinery nor an interpolation."""
    known = catalog.root_keys()
    for key in plain:
        if key not in known and not re.search(r"\$\{" + re.escape(key) + r"[.}\[]", OmegaConf.to_yaml(cfg)):
            inside = [p for p in _paths(cfg) if p.count(".") == 1 and p.endswith(f".{key}")]
            close = f" (did you mean '{inside[0]}'?)" if inside else nearest(key, known)
            raise UserError(f"nothing reads the key {key!r}{close}; a key inside a group is written group.key=...")


def _check_groups(plain: dict[str, Any]) -> None:
    """Refuse a config from which a group, or what makes it one, was deleted."""
    for group, needed in _GROUPS.items():
        node = plain.get(group)
        if not isinstance(node, dict):
            raise UserError(f"this config has no {group}: choose one with {group}=NAME; there are {', '.join(catalog.options(group))}.")
        for key in needed:
            if not node.get(key):
                raise UserError(f"{group}.{key} is missing: do not delete it, or choose another {group}=NAME.")


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The config without ``hydra`` as plain containers, all interpolations resolved. Raises UserError naming a missing one."""
    if "hydra" in cfg:
        cfg = OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"])
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except InterpolationKeyError as e:
        missing = str(e).split("'")[1] if "'" in str(e) else str(e).splitlines()[0]
        group = missing.split(".")[0]
        raise UserError(
            f"{e.full_key or 'a key'} refers to ${{{missing}}}, which this config does not have: choose another {group}, "
            f"or set {e.full_key} yourself{nearest(missing, (p for p in _paths(cfg) if p != e.full_key))}."
        ) from e
    except InterpolationResolutionError as e:
        reason = str(e).splitlines()[0].rpartition(" resolving interpolation: ")[2].strip('"')
        raise UserError(f"{e.full_key or 'a key'} cannot be worked out ({reason}): set it to a value.") from e
    except OmegaConfBaseException as e:
        raise UserError(f"{e.full_key or 'a key'} has no value: give it on the command line ({e.full_key}=...).") from e
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def _paths(node: DictConfig | ListConfig | Any, prefix: str = "") -> Iterator[str]:
    """All dotted keys of a config, unresolved."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
        for key in node:
            path = f"{prefix}{key!s}"
            yield path
            if not OmegaConf.is_interpolation(node, str(key)) and not OmegaConf.is_missing(node, str(key)):
                yield from _paths(node[key], f"{path}.")


def key_paths(cfg: DictConfig) -> list[str]:
    """All dotted keys of a config, for nearest spellings."""
    return list(_paths(cfg))


def loads(node: Any) -> Iterator[tuple[str, str]]:
    """(dotted key, value) of all keys that name weights and are set, ``init_from`` first; of a list, each of its values."""
    if node.get("init_from"):
        yield "init_from", node["init_from"]
    for path, inner in targets(node):
        for key in inner.get(LOADS) or ():
            value = inner.get(key)
            yield from ((f"{path}.{key}", source) for source in (value if isinstance(value, list) else [value]) if source)


def _check_target(path: str, node: dict, recipe: str | None) -> None:
    target = node["_target_"]
    check_allowed(target, path)
    name = target.rpartition(".")[2]
    takes = signature(target)
    if takes is None:
        return
    given = {k: v for k, v in node.items() if not k.startswith("_") and k not in PARTS.get(path, ())}
    for key, value in given.items():
        if key not in takes.annotations:
            if takes.open:
                continue
            if recipe and catalog.sets("experiment", recipe, f"{path}.{key}"):
                group = path.partition(".")[0]
                raise UserError(
                    f"{path}.{key} is not an argument of {name}: experiment={recipe} sets it for its own {group}; leave it out with "
                    f"'~{path}.{key}'."
                )
            raise UserError(f"{path}.{key} is not an argument of {name}{nearest(key, takes.annotations)}.")
        wanted = accepts(takes.annotations[key], value)
        if wanted is not None:
            names = literals(takes.annotations[key])
            if names and isinstance(value, str):
                raise UserError(f"{path}.{key}={value} is not possible{nearest(value, names)}: {name} takes {wanted}.")
            raise UserError(f"{path}.{key}={_short(value)} is not of the right type: {name} takes {wanted}.")
    missing = takes.required - given.keys() - LIVE
    if missing and not node.get("_partial_") and not node.get("_args_"):
        raise UserError(f"{path} lacks {sorted(missing)[0]!r}, which {name} needs: set {path}.{sorted(missing)[0]}=...")


def _short(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _choices(cfg: DictConfig) -> Any:
    """The option chosen in each group."""
    choices = OmegaConf.select(cfg, "hydra.runtime.choices")
    if choices is None:
        from hydra.core.hydra_config import HydraConfig

        # @hydra.main takes its own node out of the config
        choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    return choices


def _entries(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """(how the user names it, node) of everything that may state capabilities."""
    choices = _choices(cfg)
    for group in catalog.MIXED:
        node = cfg.get(group) if group in cfg else None
        if not isinstance(node, DictConfig):
            continue
        if group in ("callbacks", "logger"):
            for name in node:
                if isinstance(node.get(name), DictConfig):
                    yield f"{group}.{name!s}", node[name]
        else:
            yield f"{group}={choices.get(group, node.get('_target_', group))}", node


def check_mix(cfg: DictConfig) -> None:
    """Every need must be given by some chosen option, and no option may clash with what is given."""
    entries = list(_entries(cfg))
    given: dict[str, str] = {}
    for label, node in entries:
        for word in node.get("_gives_") or ():
            given.setdefault(str(word), label)
    # any hardware may share weights out
    if OmegaConf.select(cfg, "hardware.strategy") == "fsdp":
        given.setdefault("fsdp", "hardware.strategy=fsdp")
    for label, node in entries:
        for word in node.get("_needs_") or ():
            if word not in given:
                have = catalog.givers(str(word))
                cure = f"choose one that gives it: {', '.join(have[:8])}{', ...' if len(have) > 8 else ''}" if have else "no option here gives it"
                raise UserError(f"{label} needs {str(word)!r}, which nothing in this mix gives; {cure}.")
        for word, why in (node.get("_clashes_") or {}).items():
            if word in given:
                raise UserError(f"{label} does not go with {given[word]}: {why}.")
