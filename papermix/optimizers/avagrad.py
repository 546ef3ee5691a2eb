"""AvaGrad, AvaGradW and Delayed Adam: adaptive optimizers whose learning rate and adaptability are tuned apart.

Savarese, McAllester, Babu & Maire, "Domain-independent Dominance of Adaptive Methods", CVPR 2021 (arXiv 1912.01823).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from papermix.errors import UserError
from papermix.sharding import is_sharded, local

# elements for each thread that a block may have: what a step reads and writes of them fits into a core's own cache
_BLOCK = 65536

# parameters, their gradients, their first and their second moments
Columns = Sequence[list[Tensor]]


class AvaGrad(Optimizer):
    """Adam whose step sizes come from the previous second moment and have a root mean square of ``lr`` (the paper's Algorithm 2).

    Elementwise, for the parameters ``w`` of a group with gradients ``g``, in step ``t``::

        m_t = b1 m_{t-1} + (1 - b1) g_t
        eta_t = 1 / (sqrt(v_{t-1}) + eps)                  # v has not seen g_t
        w_{t+1} = w_t - lr eta_t / rms(eta) m_t            # rms over all elements of the group; gamma = 1 / rms(eta)
        v_t = b2 v_{t-1} + (1 - b2) g_t^2

    For ``eps`` far above the gradients this is SGD with an averaged momentum and the same ``lr``; for a small one it adapts as
    Adam does. The best ``lr`` hardly depends on ``eps``. Parameters without a gradient (None) are left alone and do not count in
    the root mean square; those whose gradient is always zero do count, with ``eta = 1 / eps``, and rule it when ``eps`` is small.

    The moments of 16-bit parameters are kept in 32 bits. On the CPU the step goes through the parameters in blocks that stay in
    the processor's cache, on other devices all tensors take each operation together. Of sharded parameters each process moves its
    share, by the root mean square over all of them.

    Args:
        params: parameters or parameter groups; each group has a root mean square of its own.
        lr: learning rate, as for SGD (0.1 to 1); a float or a tensor of one element.
        betas: decay ``b1`` of the mean and ``b2`` of the squares of gradients, in [0, 1).
        eps: adaptability, positive, useful from 1e-3 to 1: no numerical guard, but a knob beside ``lr``.
        weight_decay: L2 penalty: ``weight_decay * w`` is added to the gradient that the moments see (``p.grad`` stays as it is).
        bias_correction: as in the authors' code: moments are corrected for their start at zero as in Adam, the first step of a
            tensor only fills its moments, and the root mean square is one second moment older than eta. False: as in the paper,
            no correction, every step moves, the root mean square is that of the same eta.
        shared_norm: take the root mean square over all groups for which this is set.
        foreach: treat many tensors at once. False: one by one, without cutting them into blocks.

    Raises:
        UserError: a value out of its range, complex parameters, sparse gradients.
    """

    # what AvaGradW and DelayedAdam change
    decoupled = False
    normalized = True

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float | Tensor = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 0.1,
        weight_decay: float = 0.0,
        *,
        bias_correction: bool = True,
        shared_norm: bool = False,
        foreach: bool = True,
    ):
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "gamma": None}
        super().__init__(params, defaults | {"bias_correction": bias_correction, "shared_norm": shared_norm, "foreach": foreach})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, its values and parameters checked."""
        super().add_param_group(param_group)
        group, name = self.param_groups[-1], type(self).__name__
        for key in ("lr", "eps", "weight_decay"):
            if not 0 <= group[key] < math.inf or (key == "eps" and group[key] == 0):
                raise UserError(f"{name}: {key}={group[key]} must be finite and {'positive' if key == 'eps' else 'at least 0'}.")
        if len(group["betas"]) != 2 or not all(0 <= beta < 1 for beta in group["betas"]):
            raise UserError(f"{name}: betas={list(group['betas'])} must be two numbers in [0, 1).")
        if any(p.is_complex() for p in group["params"]):
            raise UserError(f"{name} takes no complex parameters: give it torch.view_as_real of them.")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update all parameters that have a gradient; returns what ``closure``, called once before, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if any(p.grad.layout != torch.strided for g in self.param_groups for p in g["params"] if p.grad is not None):
            raise UserError(f"{type(self).__name__} takes no sparse gradients: make the embedding with sparse=False.")
        found = [(group, *self._update(group)) for group in self.param_groups]
        shared = [each for each in found if each[0]["shared_norm"]]
        for group, squares, count in found:
            if group["shared_norm"]:
                squares, count = [x for _, more, _ in shared for x in more], sum(n for _, _, n in shared)
            if squares:
                group["gamma"] = (count / sum(x.to(squares[0].device) for x in squares)).sqrt()  # type: ignore[union-attr]
        return loss

    def _update(self, group: dict[str, Any]) -> tuple[list[Tensor], int]:
        """Move a group's parameters; returns parts of the sum of the squared eta, and the number of its elements."""
        alike: dict[tuple[torch.device, torch.dtype, int], Columns] = {}
        count, sharded = 0, None
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state.update(step=0, exp_avg=torch.zeros_like(p, dtype=_kept(p)), exp_avg_sq=torch.zeros_like(p, dtype=_kept(p)))
            state["step"] += 1
            count += p.numel()
            sharded = p if is_sharded(p) else sharded
            columns = alike.setdefault((p.device, p.dtype, state["step"]), ([], [], [], []))
            for column, tensor in zip(columns, (p, p.grad, state["exp_avg"], state["exp_avg_sq"])):
                column.append(local(tensor))
        squares = [x for (_, _, t), columns in alike.items() if (x := self._move(group, t, columns)) is not None]
        if sharded is not None and squares:
            squares = [torch.stack(squares).sum()]
            torch.distributed.all_reduce(squares[0], group=sharded.device_mesh.get_group())
        return squares, count

    def _move(self, group: dict[str, Any], t: int, columns: Columns) -> Tensor | None:
        """Step ``t`` of tensors of one type on one device; returns their sum of the squared eta."""
        (b1, b2), eps, lr, decay, corrected = (group[k] for k in ("betas", "eps", "lr", "weight_decay", "bias_correction"))
        moves, limit = t > 1 or not corrected, _block_size(columns[0][0])
        # v stays uncorrected: 1 / (sqrt(v) / c + eps) = c / (sqrt(v) + c eps)
        c, c_next = (math.sqrt(1 - b2 ** (t - 1)), math.sqrt(1 - b2**t)) if corrected else (1.0, 1.0)
        rate = float(lr) * c / (1 - b1**t if corrected else 1.0)
        gamma: Any = 1.0 if not self.normalized else eps if group["gamma"] is None else group["gamma"]
        unit: Any = 1.0
        if moves and not limit and isinstance(gamma, Tensor):
            unit = gamma.to(columns[0][0].device)  # to read its value would wait for the device
        elif moves:
            rate *= float(gamma)
        # what makes the denominator of this step that of the norm
        rest, factor = ((c_next - c) * eps / unit, c_next / unit) if corrected else (eps, 1.0)
        sums: list[Tensor] = []
        for p, g, m, v in _blocks(columns, limit) if group["foreach"] else ([[x] for x in row] for row in zip(*columns)):
            if g[0].dtype != m[0].dtype:
                g = [x.to(m[0].dtype) for x in g]
            if decay and not self.decoupled:
                g = list(torch._foreach_add(g, p, alpha=decay))
            torch._foreach_lerp_(m, g, 1 - b1)
            roots = torch._foreach_sqrt(v)
            torch._foreach_mul_(v, b2)
            torch._foreach_addcmul_(v, g, g, 1 - b2)
            if moves:
                if decay and self.decoupled:
                    torch._foreach_mul_(p, 1 - float(lr) * decay)
                torch._foreach_add_(roots, c * eps)
                if isinstance(unit, Tensor):
                    torch._foreach_div_(roots, unit)
                torch._foreach_addcdiv_(p, m, roots, -rate)
            if self.normalized:
                roots = roots if corrected else torch._foreach_sqrt(v)
                torch._foreach_add_(roots, rest)
                torch._foreach_pow_(roots, -2)
                # on the CPU the norm adds up in too few bits
                sums += [x.sum() for x in roots] if limit else torch._foreach_norm(roots, 1)
        return factor**2 * torch.stack(sums).sum() if sums else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; the moments of 16-bit parameters keep their 32 bits."""
        super().load_state_dict(state_dict)
        kept = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for number, p in zip(kept, chain.from_iterable(group["params"] for group in self.param_groups)):
            for key, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor) and value.dtype != self.state[p][key].dtype:
                    self.state[p][key] = value.to(p.device, _kept(p))


class AvaGradW(AvaGrad):
    """AvaGrad with decoupled weight decay: each step that moves first shrinks the weights by ``lr * weight_decay`` of themselves.

    Arguments as those of :class:`AvaGrad`.
    """

    decoupled = True


class DelayedAdam(AvaGrad):
    """AvaGrad without normalisation (gamma = 1): Adam whose step sizes have not seen the current gradient (Algorithm 1).

    Unlike Adam's, its steps point down the gradient on average, so that it converges as SGD does for any constant ``b2``. The
    best ``lr`` grows with ``eps``, as Adam's does. Arguments as those of :class:`AvaGrad`; ``shared_norm`` has no effect.
    """

    normalized = False


def _kept(p: Tensor) -> torch.dtype:
    """Type of a parameter's moments."""
    return torch.float32 if p.dtype in (torch.float16, torch.bfloat16) else p.dtype


def _block_size(p: Tensor) -> int:
    """Elements of a block on a parameter's device; 0: all at once."""
    return _BLOCK * torch.get_num_threads() if p.is_cpu else 0


def _blocks(columns: Columns, limit: int) -> Iterator[list[list[Tensor]]]:
    """Rows of tensors in blocks of at most ``limit`` elements, larger tensors cut; all in one block when it is 0."""
    block: list[list[Tensor]] = [[] for _ in columns]
    room = limit
    for row in zip(*columns):
        for piece in _pieces(row, limit):
            if limit and block[0] and piece[0].numel() > room:
                yield block
                block, room = [[] for _ in columns], limit
            for column, tensor in zip(block, piece):
                column.append(tensor)
            room -= piece[0].numel()
    yield block


def _pieces(row: Sequence[Tensor], limit: int) -> Iterable[Sequence[Tensor]]:
    """Tensors of one shape as vectors of at most ``limit`` elements; as they are where their layouts in memory differ."""
    if not limit or row[0].numel() <= limit:
        return [row]
    order = sorted(range(row[0].ndim), key=row[0].stride, reverse=True)
    views = [x.permute(order) for x in row]
    if not all(x.is_contiguous() for x in views):
        return [row]
    return zip(*(x.view(-1).split(limit) for x in views))
