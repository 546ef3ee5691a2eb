"""What a network weighs and costs: parameters, density, floating-point operations."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from papermix.sparsity.scope import weights


def parameters(model: nn.Module) -> dict[str, int]:
    """``total`` and ``trainable`` numbers of parameters; tied ones count once, learned masks (``is_mask``) not at all."""
    own = [p for p in model.parameters() if not getattr(p, "is_mask", False)]
    return {"total": sum(p.numel() for p in own), "trainable": sum(p.numel() for p in own if p.requires_grad)}


@torch.no_grad()
def density(model: nn.Module) -> float:
    """Share of non-zero entries in all weights of two or more dimensions, tied ones once, as the forward pass sees them."""
    used = [getattr(module, attribute) for module, attribute in (weight.places[0] for weight in weights(model))]
    total = sum(w.numel() for w in used)
    return sum(int(torch.count_nonzero(w)) for w in used) / total if total else 1.0


def flops(model: nn.Module, example: Any, effective: bool = False) -> int:
    """Floating-point operations (a multiply-add is two) of the forward pass of one example, as ``torch.utils.flop_counter``.

    Matrix products, convolutions, attention and recurrent layers are counted, element-wise work is not. Parameters, training
    flags and random generators are left as they were.

    Args:
        model: any module, called as ``model(example)`` in eval mode.
        example: a batch (a tensor, or nested containers of tensors, batch first); its first example is used. For text,
            one example is one sequence of T tokens.
        effective: count only what non-zero weights need: each operation times the density of the weight it uses. A weight
            that is first transformed by other means (weight standardisation) counts as dense.
    """
    one = tree_map(lambda x: x[:1] if isinstance(x, Tensor) else x, example)
    shares: dict[int, float] = {}
    total = 0
    inside_recurrent = 0

    def count(formula: Callable[..., int], *args: Any, **kwargs: Any) -> int:
        nonlocal total
        if not inside_recurrent:
            operands = [a for a in args if isinstance(a, Tensor)]
            share = math.prod(shares.get(a.untyped_storage().data_ptr(), 1.0) for a in operands) if shares else 1.0
            total += round(formula(*args, **kwargs) * share)
        return 0

    def enter_recurrent(*_: Any) -> None:
        nonlocal inside_recurrent
        inside_recurrent += 1

    def leave_recurrent(rnn: nn.RNNBase, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        nonlocal inside_recurrent, total
        inside_recurrent -= 1
        # torch counts fused kernels as nothing: each matrix is used once for every position
        x = args[0] if args else kwargs["input"]
        positions = x.data.shape[0] if isinstance(x, PackedSequence) else x.shape[:-1].numel()
        for name in rnn._flat_weights_names:
            if name.startswith("weight"):
                w = getattr(rnn, name)
                total += 2 * positions * (int(torch.count_nonzero(w)) if effective else w.numel())

    recurrent = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
    hooks = [module.register_forward_pre_hook(enter_recurrent) for module in recurrent]
    hooks += [module.register_forward_hook(leave_recurrent, with_kwargs=True) for module in recurrent]
    formulas = {op: partial(count, formula) for op, formula in flop_registry.items()}
    for formula in formulas.values():
        formula._get_raw = True  # type: ignore[attr-defined]
    try:
        # cached: each sparse weight is one tensor throughout, by whose memory its uses are recognised
        with _untouched(model), parametrize.cached():
            kept = _shares(model, shares) if effective else []
            with FlopCounterMode(display=False, custom_mapping=formulas):
                model(one)
            kept.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return total


def _shares(model: nn.Module, shares: dict[int, float]) -> list[Tensor]:
    """Fill ``shares`` with memory address -> density of every weight; the tensors are returned to keep the addresses theirs."""
    kept = []
    for weight in weights(model):
        for module, attribute in weight.places:
            w = getattr(module, attribute)
            # recurrent layers are counted by themselves; cuDNN puts all their weights into one memory
            if w.numel() and not isinstance(module, nn.RNNBase):
                shares[w.untyped_storage().data_ptr()] = int(torch.count_nonzero(w)) / w.numel()
                kept.append(w)
    return kept


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients and without torch's fused attention (which has no formula); everything is put back after."""
    training = {module: module.training for module in model.modules()}
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        with torch.random.fork_rng(devices=sorted(d.index or 0 for d in devices)), torch.no_grad():
            torch.backends.mha.set_fastpath_enabled(False)
            model.eval()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, flag in training.items():
            module.training = flag
