"""Which parts of a network are residual branches ``x + branch(x)``, found by watching one forward pass."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from papermix.surgery.watch import answer, unchanged

SCALED = (_ConvNd, nn.Linear, _BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Block:
    """A module that adds to its input what a branch of its children makes of it.

    Attributes:
        name: of the module, as in ``named_modules``; with ``:2`` and so on for further branches of one module.
        branch: names of the children that only the branch runs through, in order: without them, and with zeros for what the
            last returns, the block is its shortcut.
        last: name of the last layer in the branch, whose weight and bias scale the whole branch.
    """

    name: str
    branch: tuple[str, ...]
    last: str


class Zero(nn.Module):
    """Zeros of the input's shape: what stands for a branch that was removed."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.zeros_like(x)


class Pass(nn.Module):
    """Its input: what stands for the other layers of such a branch."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x


def residual_blocks(model: nn.Module, example: Any) -> list[Block]:
    """The residual blocks of ``model`` whose shortcut is the identity, in the order of the forward pass.

    A block that changes the shape, and so has a shortcut of its own, is not among them: the network cannot be without it.
    Neither is one of which others read more than its sum, nor one whose own code asks its layers for a certain shape.
    The network is run once, in eval mode, on ``example`` (a tensor, or a tuple of arguments).
    """
    paths = _Paths(model)
    try:
        with unchanged(model), paths:
            answer(model, example)
    finally:
        for handle in paths.handles:
            handle.remove()
    return [block for block in paths.blocks.values() if block.name not in paths.read and _can_go(model, example, block)]


def _can_go(model: nn.Module, example: Any, block: Block) -> bool:
    """Whether the network runs without the layers of a branch: not if its code reshapes what one of them should have made."""
    layers = [model.get_submodule(name) for name in block.branch]
    own = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            vars(layer)["forward"] = (Zero if layer is layers[-1] else Pass)().forward
        with unchanged(model):
            answer(model, example)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False
    finally:
        for layer, forward in zip(layers, own):
            vars(layer).pop("forward") if forward is None else vars(layer).update(forward=forward)
    return True


class _Paths(TorchDispatchMode):
    """For every tensor, which calls of modules it depends on, as the bits of a number."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.names = {module: name for name, module in model.named_modules()}
        self.calls: list[tuple[nn.Module, int]] = []  # of each call: the module, the call around it
        self.stack: list[int] = []
        self.through: dict[int, tuple[Tensor, int]] = {}
        self.blocks: dict[str, Block] = {}
        self.read: set[str] = set()  # blocks whose inner tensors something outside reads
        self.sums: list[tuple[str, int, int]] = []  # of each block: its key, the bits of its branch, the bit that its sum gets
        self.handles = []
        for module in self.names:
            self.handles.append(module.register_forward_pre_hook(self._enter))
            self.handles.append(module.register_forward_hook(self._leave))

    def _enter(self, module: nn.Module, *_: Any) -> None:
        self.calls.append((module, self.stack[-1] if self.stack else -1))
        self.stack.append(len(self.calls) - 1)

    def _leave(self, *_: Any) -> None:
        self.stack.pop()

    def _of(self, tensor: Tensor) -> int:
        return self.through[id(tensor)][1] if id(tensor) in self.through else 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        operands = [self._of(tensor) for tensor in tensors]
        self.read |= {key for key, branch, done in self.sums if any(o & branch and not o & done for o in operands)}
        passed = sum(1 << call for call in self.stack)
        for operand in operands:
            passed |= operand
        if func.overloadpacket.__name__.rstrip("_") == "add" and len(tensors) == 2 and tensors[0].shape == tensors[1].shape:
            passed |= self._add(*operands)
        for out in tree_flatten(result)[0]:
            if isinstance(out, Tensor):
                self.through[id(out)] = (out, passed)
        return result

    def _add(self, a: int, b: int) -> int:
        """A sum, in the module that runs at the moment: the shortcut is the term that depends on no call but those of the other.

        Returns the bit that marks what depends on a block's sum, or 0 where the sum is no block's.
        """
        here = self.stack[-1] if self.stack else -1
        inside = [call for call in range(here + 1, len(self.calls)) if self._is_inside(call, here)]
        only_a, only_b = ([c for c in inside if (x & ~y) >> c & 1] for x, y in ((a, b), (b, a)))
        if bool(only_a) == bool(only_b) or here < 0:
            return 0
        ran = only_a or only_b
        branch = [c for c in ran if self.calls[c][1] == here]
        layers = [c for c in ran if isinstance(self.calls[c][0], SCALED) and self.calls[c][0].weight is not None]
        module = self.calls[here][0]
        name = self.names[module]
        names = tuple(self.names[self.calls[c][0]] for c in branch)
        if not layers or not branch or any(set(names) & set(block.branch) for block in self.blocks.values()):
            return 0
        more = sum(key.split(":")[0] == name for key in self.blocks)
        key = f"{name}:{more + 1}" if more else name
        self.blocks[key] = Block(key, names, self.names[self.calls[layers[-1]][0]])
        done = 1 << len(self.calls)
        self.calls.append((module, -1))  # no call, but a number that no call has
        self.sums.append((key, sum(1 << call for call in ran), done))
        return done

    def _is_inside(self, call: int, outer: int) -> bool:
        while call > outer:
            call = self.calls[call][1]
        return call == outer
