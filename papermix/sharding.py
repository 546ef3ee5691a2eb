"""Sharded weights: of every parameter, its gradient and its optimizer state each process keeps a share (FSDP2, ``fully_shard``).

A sharded parameter is a ``DTensor`` cut along its first dimension. A unit (a block of the network) is put together when its
forward or backward pass begins and is dropped after it, so that a process never holds more than its shares and a unit or two.
What stands below also takes plain tensors, and leaves them as they are.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from papermix.errors import UserError, nearest

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a share of a larger one."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This process's share, in the same memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def full(tensor: Tensor) -> Tensor:
    """The whole tensor. All processes must ask for it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def like(whole: Tensor, other: Tensor) -> Tensor:
    """A tensor that every process has whole, sharded as another one of its shape is; nothing is sent."""
    if not is_sharded(other) or is_sharded(whole):
        return whole
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    return distribute_tensor(whole.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def gathered(tree: Any, keep: bool = True) -> Any:
    """Nested containers with all sharded tensors whole, on the CPU; None in their place where not ``keep``. A call for all processes."""
    if is_sharded(tree):
        whole = full(tree.detach())
        return whole.cpu() if keep else None
    if isinstance(tree, dict):
        return {k: gathered(v, keep) for k, v in tree.items()}
    return type(tree)(gathered(v, keep) for v in tree) if type(tree) in (list, tuple) else tree


def repeated(model: nn.Module) -> list[str]:
    """Names of the repeated blocks of a network: the children of a container (Sequential, ModuleList, ModuleDict) that have
    weights and of whose class there are two or more. Containers within containers are opened, blocks are not.
    """
    found: list[str] = []

    def walk(path: str, module: nn.Module) -> None:
        children = {name: child for name, child in module.named_children() if name != "parametrizations"}
        able = [name for name, child in children.items() if not isinstance(child, _CONTAINERS) and _has_weights(child)]
        kinds = Counter(_kind(children[name]) for name in able) if isinstance(module, _CONTAINERS) else Counter()
        for name, child in children.items():
            if name in able and kinds[_kind(child)] > 1:
                found.append(f"{path}{name}")
            else:
                walk(f"{path}{name}.", child)

    walk("", model)
    return found


def _kind(module: nn.Module) -> type:
    """A module's class, without the one that parametrizations put over it."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _has_weights(module: nn.Module) -> bool:
    return any(p.ndim > 1 for p in module.parameters())


def units(model: nn.Module, patterns: Sequence[str] | None = None) -> list[str]:
    """Names of the modules that are put together one at a time, inner ones first; the rest of the network is a unit of its own.

    A module that shares a parameter with another place of the network is left to the rest.

    Args:
        model: any module.
        patterns: of their names (``blocks.*``); None: see :func:`repeated`.

    Raises:
        UserError: a pattern that matches no module with parameters.
    """
    names = repeated(model)
    if patterns is not None:
        there = [n for n, m in model.named_modules() if n and "parametrizations" not in n and next(m.parameters(), None) is not None]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in there):
                raise UserError(f"hardware.blocks: '{pattern}' matches no part of the network{nearest(pattern, there)}.")
        names = [name for name in there if any(fnmatchcase(name, p) for p in patterns)]
    everywhere = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    alone = []
    for name in names:
        inside = Counter(id(p) for _, p in model.get_submodule(name).named_parameters(remove_duplicate=False))
        if all(everywhere[key] == count for key, count in inside.items()):
            alone.append(name)
    return sorted(alone, key=lambda name: -name.count("."))


def shard(module: nn.Module, names: Sequence[str], mesh: Any) -> None:
    """Shard all parameters of a module over a mesh of processes, in place. Other parameters stand in their place, see :func:`same_attributes`.

    Args:
        module: whose ``forward`` everything is computed in.
        names: its units, see :func:`units`.
        mesh: one-dimensional ``DeviceMesh``.
    """
    from torch.distributed.fsdp import fully_shard

    for name in names:
        fully_shard(module.get_submodule(name), mesh=mesh, reshard_after_forward=True)
    fully_shard(module, mesh=mesh)


@contextlib.contextmanager
def same_attributes(module: nn.Module) -> Iterator[None]:
    """What was said of parameters in attributes (``is_mask``) is said of those that stand in their place after a ``with`` block."""
    own = set(vars(nn.Parameter(torch.empty(0)))) | {"_local_tensor", "_spec"}
    said = {name: {k: v for k, v in vars(p).items() if k not in own} for name, p in module.named_parameters()}
    yield
    for name, parameter in module.named_parameters():
        vars(parameter).update(said[name])


def reshard(module: nn.Module) -> None:
    """Back to shares, wherever parameters are whole: what is next computed sees what was written to the shares meanwhile."""
    for part in parts(module):
        part.reshard()


@contextlib.contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Every parameter whole in every process, for a look at the network. What is written to the parameters is lost.

    All processes must enter, and if training goes on after it, all must run the network inside equally often: blocks are fetched in
    the order of the passes before.
    """
    sharded = parts(module)
    with same_attributes(module):
        for part in sharded:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
    try:
        yield
    finally:
        for part in sharded:
            part.set_reshard_after_forward(part is not module, recurse=False)
            part.reshard()


def parts(module: nn.Module) -> list[Any]:
    """The sharded units of a module; none where nothing is sharded."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]
