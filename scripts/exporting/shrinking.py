"""A physically smaller network with the same outputs: channels that say nothing about the input are taken out."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from papermix.errors import UserError
from papermix.metrics.count import density, flops, parameters
from papermix.surgery.channels import Group, Slot, channel_groups, take
from scripts.benchmarks.harness import interleave, timed

# examples at a time, and rounds, when speed is measured
ROWS, ROUNDS = 32, 11


def costs(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Size and cost of a network."""
    return {"parameters": parameters(model)["total"], "flops": flops(model, x), "density": density(model)}


def shrunk(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """:func:`shrink` a network in place; returns its costs, those ``before``, and the measured ``speedup``."""
    before = copy.deepcopy(model)
    removed = shrink(model, x)
    measured = costs(model, x) | {"before": costs(before, x), "removed": removed}
    return measured | {"speedup": speedup(before, model, x), "speedup_rows": ROWS}


def speedup(before: nn.Module, after: nn.Module, x: Tensor) -> float:
    """How many times as fast ``after`` is, the median over interleaved rounds, ``ROWS`` examples at a time."""
    x = x[torch.arange(ROWS) % len(x)]

    def passes(model: nn.Module, count: int) -> int:
        with torch.no_grad():
            for _ in range(count):
                model(x)
        return count

    first = timed(lambda: passes(before, 3))
    count = max(1, round(0.05 / first.each))  # rounds of about 50 ms
    arms = {"before": lambda: timed(lambda: passes(before, count)), "after": lambda: timed(lambda: passes(after, count))}
    timings = interleave(arms, ROUNDS)
    ratios = sorted(a.each / b.each for a, b in zip(timings["before"], timings["after"]))
    return ratios[len(ratios) // 2]


@torch.no_grad()
def shrink(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Take channels out, in place, that depend on nothing: all weights that make them are zero.

    Behind a norm such a channel is a constant, zero or not. Those that are zero where they are read go. Those that are not are
    joined into one: its column in every layer that reads it becomes the sum of theirs, each times the ratio of its constant to
    the one that stays. That is exact, borders padded with zeros included, and costs one channel of a group.

    Args:
        model: in evaluation mode, without parametrizations.
        x: inputs, [B, ...]; constants are measured on them and on noise.

    Returns:
        Group -> how many of its channels went.

    Raises:
        UserError: there is no such channel.
    """
    model.eval()
    groups = channel_groups(model, x[:1])
    candidates = {g.name: silent(model, g) for g in groups if not g.fixed and not g.mixed and g.producers and g.consumers}
    readers = {slot.module for g in groups for slot in g.consumers if g.name in candidates}
    with _watched(model, readers) as seen:
        model(x)
        model(torch.randn_like(x) if x.is_floating_point() else x.flip(0))
    keep: dict[str, Tensor] = {}
    for group in groups:
        quiet = candidates.get(group.name)
        if quiet is None or not quiet.any() or any(slot.module not in seen for slot in group.consumers):
            continue
        constants = []
        for slot in group.consumers:
            if isinstance(model.get_submodule(slot.module), nn.RNNBase) and slot.attribute != "weight_ih_l0":
                constants.append(torch.zeros(group.size, slot.repeat))  # its own hidden units, silent and so at zero
                continue
            low, high = (_channels(bound, slot, group.size, 0) for bound in seen[slot.module])
            quiet &= ((high - low) <= 1e-6 * (1 + high.abs())).all(1)
            constants.append((low + high) / 2)
        gone = join(model, group, quiet, constants)
        if gone.any():
            keep[group.name] = (~gone).nonzero()[:, 0]
    if not keep:
        raise UserError(
            "--shrink: no channel of this network is empty in all layers that make it, so nothing can be taken out: "
            "train with a structured sparsity (sparsity=magnitude sparsity.pattern=filter), or leave --shrink out."
        )
    sizes = {group.name: group.size for group in groups}
    take(model, keep, groups)
    return {name: sizes[name] - len(kept) for name, kept in keep.items()}


def silent(model: nn.Module, group: Group) -> Tensor:
    """Which channels, bool [C], no input reaches: every weight that makes them is zero (of recurrent layers the biases, too)."""
    quiet = torch.ones(group.size, dtype=torch.bool)
    for slot in group.producers:
        module = model.get_submodule(slot.module)
        tensor: Tensor = getattr(module, slot.attribute)
        if tensor.ndim > 1 or isinstance(module, nn.RNNBase):
            quiet &= ~_channels(tensor, slot, group.size, slot.dim).flatten(1).any(1)
    return quiet


def join(model: nn.Module, group: Group, quiet: Tensor, constants: list[Tensor]) -> Tensor:
    """Which of the channels ``quiet`` may go, bool [C], after the others of them have been joined into one that stays.

    Args:
        quiet: bool [C], channels that are constant wherever they are read.
        constants: for each of the group's consumers [C, repeat], the constants that it reads.
    """
    zero = quiet & torch.stack([(c == 0).all(1) for c in constants]).all(0)
    gone = zero.clone()
    if len(others := (quiet & ~zero).nonzero()[:, 0]) > 1:
        # the one that stays must not vanish where another is read, and is best where all are large
        needed = [c[others].abs().amax(0) for c in constants]
        ratio = [(c[others].abs() / n).nan_to_num(1.0) for c, n in zip(constants, needed)]
        least = torch.stack([r.amin(1) for r in ratio]).amin(0)
        if least.max() > 1e-3:
            stays = int(others[least.argmax()])
            leave = others[others != stays]
            for slot, values in zip(group.consumers, constants):
                columns = _channels(getattr(model.get_submodule(slot.module), slot.attribute), slot, group.size, slot.dim)
                shares = (values[leave] / values[stays]).nan_to_num(0.0).to(columns.dtype)
                columns[stays] += torch.einsum("cr,cr...->r...", shares, columns[leave])
            gone[leave] = True
    if gone.all():
        gone[0] = False  # a layer without channels is none
    return gone


def _channels(tensor: Tensor, slot: Slot, size: int, dim: int) -> Tensor:
    """A view [C, repeat, ...] of the entries of a group's channels along ``dim``, which comes first."""
    part = tensor.detach().movedim(dim, 0)[slot.offset : slot.offset + size * slot.repeat]
    return part.unflatten(0, (size, slot.repeat))


@contextmanager
def _watched(model: nn.Module, names: set[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Smallest and largest value, over all calls, examples and positions, of every channel that the named layers read."""
    seen: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].detach()
            rows = x.movedim(1 if isinstance(module, _ConvNd) else -1, 0).flatten(1)
            low, high = seen.get(name, [rows[:, 0], rows[:, 0]])
            seen[name] = [torch.minimum(low, rows.amin(1)), torch.maximum(high, rows.amax(1))]

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
