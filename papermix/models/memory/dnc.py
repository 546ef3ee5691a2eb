"""Differentiable neural computer (Graves et al., Nature 538, 2016; equations as in its Methods)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from papermix.models.image_model import check_positive
from papermix.models.memory.interface import MemoryModel, State, joined, length

SMALL = 1e-6  # keeps the norm of an empty slot away from zero


def content_weights(memory: Tensor, keys: Tensor, strengths: Tensor) -> Tensor:
    """Where ``keys`` [B, K, W] are found in ``memory`` [B, N, W]: softmax over slots of strength times cosine, [B, K, N].

    ``strengths`` [B, K] are at least 1.
    """
    products = keys @ memory.transpose(1, 2)
    norms = _norm(keys)[:, :, None] * _norm(memory)[:, None]
    return (strengths[:, :, None] * products / norms).softmax(-1)


def usage_after(usage: Tensor, written: Tensor, read: Tensor, free: Tensor) -> Tensor:
    """Usage [B, N] after the last step's write weights [B, N], less what free gates [B, R] give up of its read weights [B, R, N]."""
    retention = (1 - free[:, :, None] * read).prod(1)
    return (usage + written - usage * written) * retention


def allocation_weights(usage: Tensor) -> Tensor:
    """Weights [B, N] of the slots to be written, the least used ones first; they sum to 1 less the product of all usages."""
    ordered, order = usage.sort(dim=-1, stable=True)
    before = torch.cat([torch.ones_like(ordered[:, :1]), ordered[:, :-1].cumprod(-1)], -1)
    return torch.zeros_like(usage).scatter(-1, order, (1 - ordered) * before)


def links_after(link: Tensor, precedence: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
    """Temporal links [B, N, N] and precedence [B, N] after a write with weights [B, N].

    ``link[:, i, j]`` is the degree to which i was written right after j; none is linked with itself.
    """
    now, other = written[:, :, None], written[:, None]
    link = (1 - now - other) * link + now * precedence[:, None]
    link = link.masked_fill(torch.eye(link.shape[1], dtype=torch.bool, device=link.device), 0)
    return link, (1 - written.sum(-1, keepdim=True)) * precedence + written


class DNC(MemoryModel):
    """Differentiable neural computer: an LSTM controller that reads and writes a memory of N slots of W numbers.

    Frame and query go in together, as in :class:`LSTMMemory`. The controller's layers are those of the paper: each reads the
    input, the last step's reads, the layer below and itself. Linear maps have biases, also where the paper has none.

    The state is (controller, memory): a tuple over layers of (h, c), each [B, width]; and (memory [B, N, W], usage [B, N], write
    weights [B, N], precedence [B, N], links [B, N, N], read weights [B, R, N], reads [B, R, W]), float32 in any precision.

    Args:
        in_shape, query_shape, out_shape: see :class:`MemoryModel`.
        width: hidden units of a layer of the controller.
        layers: its layers.
        slots: N.
        word: W.
        reads: R, read heads.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        query_shape: Sequence[int] | None,
        out_shape: Sequence[int],
        width: int = 256,
        layers: int = 1,
        slots: int = 256,
        word: int = 64,
        reads: int = 4,
    ):
        super().__init__(in_shape, query_shape, out_shape)
        check_positive(width=width, layers=layers, slots=slots, word=word, reads=reads)
        self.width, self.layers, self.slots, self.word, self.reads = width, layers, slots, word, reads
        self.input = nn.Linear(length(in_shape, query_shape), 4 * width * layers)
        self.recurrent = nn.ModuleList(
            nn.Linear(reads * word + width * (2 if layer else 1), 4 * width, bias=False) for layer in range(layers)
        )
        # read keys and strengths, write key and strength, erase, write vector, free gates, allocation and write gate, read modes
        self.sizes = (reads * word, reads, word, 1, word, word, reads, 1, 1, 3 * reads)
        self.interface = nn.Linear(width * layers, sum(self.sizes))
        self.head = nn.Linear(width * layers + reads * word, length(out_shape))
        self.cells = slots * word + layers * width

    def remember(self, frames: Tensor, state: State | None, query: Tensor | None, asked: Tensor | None) -> tuple[Tensor, State]:
        controller, memory = self._empty(frames) if state is None else state
        given = self.input(joined(frames, query)).unbind(1)
        with parametrize.cached():  # each weight is computed once for all steps
            outputs, state = self._run(given, controller, memory)
        return self.head(outputs).unflatten(2, self.out_shape), state

    def _run(self, inputs: Sequence[Tensor], controller: State, memory: State) -> tuple[Tensor, State]:
        """Hidden units and reads of all steps, [B, T, ...], and the state, for the inputs' share in the controllers' gates."""
        dtype = inputs[0].dtype
        read = memory[-1].flatten(1).to(dtype)
        outputs = []
        for given in inputs:
            hidden: list[Tensor] = []
            after = []
            for (h, c), gates, recurrent in zip(controller, given.chunk(self.layers, 1), self.recurrent):
                i, f, o, g = (gates + recurrent(torch.cat([read, *hidden[-1:], h], 1))).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                hidden.append(h)
                after.append((h, c))
            controller = tuple(after)
            memory = self._access(self.interface(torch.cat(hidden, 1)), memory)
            read = memory[-1].flatten(1).to(dtype)
            outputs.append(torch.cat([*hidden, read], 1))
        return torch.stack(outputs, 1), (controller, memory)

    def _access(self, interface: Tensor, state: State) -> State:
        """One step of the memory: write, then read."""
        memory, usage, written, precedence, link, read, _ = state
        with torch.autocast(interface.device.type, enabled=False):
            parts = interface.float().split(self.sizes, 1)
            keys, strengths, key, strength, erase, value, free, allocation, write, modes = parts
            usage = usage_after(usage, written, read, free.sigmoid())
            found = content_weights(memory, key[:, None], _one_plus(strength))[:, 0]
            share = allocation.sigmoid()
            written = write.sigmoid() * (share * allocation_weights(usage) + (1 - share) * found)
            memory = memory * (1 - written[:, :, None] * erase.sigmoid()[:, None]) + written[:, :, None] * value[:, None]
            link, precedence = links_after(link, precedence, written)
            found = content_weights(memory, keys.unflatten(1, (self.reads, self.word)), _one_plus(strengths))
            back, here, ahead = modes.unflatten(1, (self.reads, 3)).softmax(2)[..., None].unbind(2)
            read = back * (read @ link) + here * found + ahead * (read @ link.transpose(1, 2))
            return memory, usage, written, precedence, link, read, read @ memory

    def _empty(self, frames: Tensor) -> State:
        b, n = len(frames), self.slots
        h = frames.new_zeros(b, self.width)
        shapes = ((n, self.word), (n,), (n,), (n,), (n, n), (self.reads, n), (self.reads, self.word))
        memory = tuple(frames.new_zeros(b, *shape, dtype=torch.float32) for shape in shapes)
        return ((h, h),) * self.layers, memory


def _one_plus(x: Tensor) -> Tensor:
    return 1 + F.softplus(x)


def _norm(x: Tensor) -> Tensor:
    return (x.square().sum(-1) + SMALL).sqrt()
