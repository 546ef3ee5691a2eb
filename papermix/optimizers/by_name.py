"""Any optimizer of torch.optim or timm.optim, chosen by its name."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import optim

from papermix.errors import UserError, nearest


def by_name(
    params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
    name: str,
    lr: float | None = None,
    weight_decay: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> optim.Optimizer:
    """Build the optimizer called ``name`` (case does not matter).

    torch.optim is looked up first, then timm's registry; ``timm.muon`` and ``torch.muon`` say which one where both have it.

    Args:
        params: parameters or parameter groups.
        name: ``adagrad``, ``lamb``, ``timm.muon``, ...
        lr: learning rate; None leaves the optimizer's own default.
        weight_decay: likewise.
        options: further keyword arguments of that optimizer.

    Raises:
        UserError: unknown name, unknown keyword, a value that the optimizer refuses, or a package that it lacks.
    """
    factory = _find(name)
    given = {"lr": lr, "weight_decay": weight_decay}
    keywords = {key: value for key, value in given.items() if value is not None} | dict(options or {})
    accepted = inspect.signature(factory).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        for key in keywords:
            if key not in accepted:
                known = [k for k in accepted if k != "params"]
                raise UserError(f"optimizer '{name}' takes no '{key}'{nearest(key, known)}: it takes {', '.join(known)}.")
    try:
        return factory(params, **keywords)
    except (ValueError, TypeError, ImportError, RuntimeError, AssertionError) as error:
        raise UserError(f"optimizer '{name}' cannot be made: {str(error).strip('. ') or type(error).__name__}.") from error


def _find(name: str) -> Any:
    """The class, or a partial of it, that makes the optimizer ``name``."""
    library, _, plain = name.lower().rpartition(".")
    torchs = {
        key.lower(): value
        for key, value in vars(optim).items()
        if inspect.isclass(value) and issubclass(value, optim.Optimizer) and value is not optim.Optimizer
    }
    if library in ("", "torch") and plain in torchs:
        return torchs[plain]
    from timm.optim import get_optimizer_class, list_optimizers

    timms = [str(known) for known in list_optimizers()]
    if library in ("", "timm") and plain in timms:
        try:
            return get_optimizer_class(plain, bind_defaults=True)
        except ImportError as error:
            raise UserError(f"optimizer '{name}' needs a package that is not installed: {str(error).strip('. ')}.") from error
    known = [*torchs, *timms]
    raise UserError(f"there is no optimizer '{name}' in torch.optim or timm.optim{nearest(plain, known)}.")
