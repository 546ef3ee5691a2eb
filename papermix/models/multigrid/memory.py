"""Multigrid neural memory: pyramids of convolutional LSTM cells, written by frames, read by queries (Huynh, Maire & Walter 2020).

Inside, time is in front of the batch and both are one dimension, [T * B, C, h, w], so that whatever has no recurrence is
computed for all steps at once; layer after layer, as no layer's state depends on those above it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papermix.errors import UserError
from papermix.models.image_model import check_positive
from papermix.models.memory.interface import MemoryModel, State
from papermix.models.multigrid.layers import (
    MultigridConv,
    Pyramid,
    Shortcut,
    gather,
    gathered,
    input_channels,
    input_pyramid,
    window,
)

Norm = Literal["none", "batch"]


class ConvLSTMCell(nn.Module):
    """Convolutional LSTM (Shi et al. 2015) over whole sequences, 3x3 kernels (Huynh et al. 2020, section 3).

    i = sig(Wx*x + Wh*h + wi c + b), f likewise, c' = f c + i tanh(Wx*x + Wh*h + b), o = sig(Wx*x + Wh*h + wo c' + b),
    h' = o tanh(c'); the terms w c are there with ``peepholes`` only. One convolution of the frames makes the four gates of all
    steps, in the order i, f, o, g; one of h those of each step.

    Both kernels start as one of Glorot & Bengio (2010), uniform; biases and peepholes start at zero.

    Args:
        in_channels: channels of x.
        channels: C of h and c.
        forget_bias: a constant added in f.
        peepholes: height and width for which there are peepholes, one for each cell, or None.
    """

    offset: Tensor

    def __init__(self, in_channels: int, channels: int, forget_bias: float = 1.0, peepholes: tuple[int, int] | None = None):
        super().__init__()
        self.channels = channels
        self.input = nn.Conv2d(in_channels, 4 * channels, 3, padding=1)
        self.hidden = nn.Conv2d(channels, 4 * channels, 3, padding=1, bias=False)
        self.peepholes = nn.Parameter(torch.zeros(3, channels, *peepholes)) if peepholes else None
        offset = torch.tensor([0.0, forget_bias, 0.0, 0.0]).repeat_interleave(channels)
        self.register_buffer("offset", offset.view(-1, 1, 1), persistent=False)
        bound = math.sqrt(6 / (9 * (in_channels + channels + 4 * channels)))
        nn.init.uniform_(self.input.weight, -bound, bound)
        nn.init.uniform_(self.hidden.weight, -bound, bound)
        nn.init.zeros_(self.input.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, steps: int, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """h of all steps, [T * B, C, h, w], for ``x`` [T * B, in_channels, h, w], and (h, c) after the last, each [B, C, h, w]."""
        gates = self.input(x) + self.offset
        kernel, peep = self.hidden.weight, self.peepholes
        if state is None:
            zeros = x.new_zeros(len(x) // steps, self.channels, *x.shape[2:])
            state = zeros, zeros
        h, c = state
        outputs = []
        for given in gates.chunk(steps):
            i, f, o, g = (given + F.conv2d(h, kernel, padding=1)).chunk(4, 1)
            if peep is not None:
                i, f = i + peep[0] * c, f + peep[1] * c
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            if peep is not None:
                o = o + peep[2] * c
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.cat(outputs), (h, c)


class MultigridLSTM(nn.Module):
    """A layer of :class:`ConvLSTMCell`, one for each level, on what each level gathers from the layer below.

    Args:
        channels: of the incoming pyramid.
        levels: levels of this layer.
        width: channels of h and c at all of them.
        base: cells of level 0 along a side.
        forget_bias: see the cell.
        peepholes: whether the cells have them.
        after: makes what passes up from h, from its number of channels; the state stays as it is.
    """

    def __init__(
        self,
        channels: Mapping[int, int],
        levels: range,
        width: int,
        base: int,
        forget_bias: float,
        peepholes: bool,
        after: Callable[[int], nn.Module],
    ):
        super().__init__()
        self.levels = levels
        read = gathered(channels, levels)
        sizes = {j: (base * 2**j, base * 2**j) if peepholes else None for j in levels}
        self.cells = nn.ModuleList(ConvLSTMCell(read[j], width, forget_bias, sizes[j]) for j in levels)
        self.after = nn.ModuleList(after(width) for _ in levels)

    def forward(self, maps: Pyramid, steps: int, state: State | None) -> tuple[Pyramid, State]:
        read = gather(maps, self.levels)
        passed, states = {}, []
        for k, (j, cell, after) in enumerate(zip(self.levels, self.cells, self.after)):
            hidden, its_state = cell(read[j], steps, None if state is None else state[k])
            passed[j] = after(hidden)
            states.append(its_state)
        return passed, tuple(states)


def shortcuts(channels: Sequence[Mapping[int, int]], below: Sequence[Mapping[int, int]], residual: bool) -> nn.ModuleList:
    """Residual links of a stack: each second layer adds what the layer two below it passed on (none unless ``residual``).

    Args:
        channels: what the stack's layers make.
        below: what all layers pass on, those of stacks below this one first.
    """
    first = len(below) - len(channels)
    sources = [below[k - 2] if residual and k > 1 and k % 2 == 0 else {} for k in range(first, len(below))]
    return nn.ModuleList(Shortcut(own, source) for own, source in zip(channels, sources))


def linked(maps: Pyramid, passed: Sequence[Pyramid], link: nn.Module) -> Pyramid:
    """``maps`` with the residual link of the layer that made them, after what the layers below it passed on."""
    return link(maps, passed[-2]) if link.levels else maps


class Writer(nn.Module):
    """Layers of :class:`MultigridLSTM`: the memory. Residual links are in what passes up, not in what recurs.

    Args:
        channels: of the incoming pyramid.
        levels: number of levels of each layer, from level 0 on.
        widths: channels of each layer.
        base, forget_bias, peepholes, after: see :class:`MultigridLSTM`.
        residual: whether there are residual links.
    """

    def __init__(
        self,
        channels: Mapping[int, int],
        levels: Sequence[int],
        widths: Sequence[int],
        base: int,
        forget_bias: float,
        peepholes: bool,
        residual: bool,
        after: Callable[[int], nn.Module],
    ):
        super().__init__()
        self.channels = [dict.fromkeys(range(count), width) for count, width in zip(levels, widths)]
        self.layers = nn.ModuleList(
            MultigridLSTM(below, range(count), width, base, forget_bias, peepholes, after)
            for below, count, width in zip([channels, *self.channels], levels, widths)
        )
        self.links = shortcuts(self.channels, self.channels, residual)

    def forward(self, maps: Pyramid, steps: int, state: State | None) -> tuple[list[Pyramid], State]:
        """What each layer passes up, and each layer's state."""
        passed: list[Pyramid] = []
        states = []
        for k, (layer, link) in enumerate(zip(self.layers, self.links)):
            maps, its_state = layer(maps, steps, None if state is None else state[k])
            passed.append(maps := linked(maps, passed, link))
            states.append(its_state)
        return passed, tuple(states)


class Reader(nn.Module):
    """Multigrid convolutions over a query, each layer's output beside that of the writer's layer of the same depth.

    Several readers may read what one writer has written.

    Args:
        channels: of the query's pyramid.
        memory: channels of the pyramids that the writer's layers pass up; this one's layers have the same.
        residual: whether there are residual links, taken from the outputs with the writer's beside them.
        after: what follows a convolution, see :class:`MultigridConv`.
    """

    def __init__(
        self,
        channels: Mapping[int, int],
        memory: Sequence[Mapping[int, int]],
        residual: bool,
        after: Callable[[int], nn.Module],
    ):
        super().__init__()
        self.channels = [{j: 2 * width for j, width in its.items()} for its in memory]
        self.layers = nn.ModuleList(MultigridConv(c, out, after) for c, out in zip([channels, *self.channels], memory))
        self.links = shortcuts(memory, self.channels, residual)

    def forward(self, maps: Pyramid, memory: Sequence[Pyramid]) -> list[Pyramid]:
        """What each layer passes up, for a query's pyramid and what the writer's layers passed up at the same steps."""
        passed: list[Pyramid] = []
        for layer, link, written in zip(self.layers, self.links, memory):
            maps = linked(layer(maps), passed, link)
            passed.append(maps := {j: torch.cat([x, written[j]], 1) for j, x in maps.items()})
        return passed


class Decoder(nn.Module):
    """Multigrid convolutions that lose levels, down to one from which the answer is read.

    Maps are read at the coarsest level that is no smaller than they are (or the finest there is), by a convolution without
    what follows it, and resized (bilinear) if no level has their size. Vectors are read at level 0 by a linear layer.

    Args:
        below: channels of what the layers so far passed up, from the first on: the last feeds this, links reach to those before.
        out_shape: [C, H, W] or [D].
        levels: number of levels of each layer, never growing.
        widths: channels of each layer.
        base: cells of level 0 along a side.
        residual, after: see :class:`Reader`.
    """

    def __init__(
        self,
        below: Sequence[Mapping[int, int]],
        out_shape: Sequence[int],
        levels: Sequence[int],
        widths: Sequence[int],
        base: int,
        residual: bool,
        after: Callable[[int], nn.Module],
    ):
        super().__init__()
        self.out_shape = tuple(out_shape)
        top = max(below[-1])
        self.target = next((j for j in below[-1] if base * 2**j >= max(out_shape[1:], default=0)), top)
        own = [dict.fromkeys(window(top, self.target, count), width) for count, width in zip(levels, widths)]
        chain = [below[-1], *own]
        self.layers = nn.ModuleList(MultigridConv(channels, out, after) for channels, out in zip(chain, own))
        self.links = shortcuts(own, [*below, *own], residual)
        if len(out_shape) == 1:
            self.head: nn.Module = nn.Linear(chain[-1][0] * base**2, out_shape[0])
        else:
            self.head = MultigridConv(chain[-1], {self.target: out_shape[0]}, lambda _: nn.Identity())

    def forward(self, passed: Sequence[Pyramid]) -> Tensor:
        """Answers [N, *out_shape] from what all layers so far passed up."""
        passed = list(passed)
        for layer, link in zip(self.layers, self.links):
            passed.append(linked(layer(passed[-1]), passed, link))
        if len(self.out_shape) == 1:
            return self.head(passed[-1][0].flatten(1))
        answer = self.head(passed[-1])[self.target]
        size = self.out_shape[1:]
        return answer if answer.shape[2:] == size else F.interpolate(answer, size, mode="bilinear")


class MultigridMemory(MemoryModel):
    """Multigrid neural memory (Huynh, Maire & Walter, ICML 2020): a writer that frames go through, and how it is read.

    With queries ("encoder + query"): a reader as deep as the writer, then a decoder. Without: the decoder stands on the writer.
    No layer addresses anything; where is written and read is learned.

    The defaults are the released network for mapping. The released one for associative recall has levels (3,) * 5, channels
    (4, 4, 8, 8, 16), decoder_levels (3, 3, 2, 2, 1), decoder_channels (16, 16, 16, 16, 10), norm ``batch``, and query's and
    frame's shape (1, 28, 28). (Its batch norms use the statistics of the batch at test, too; here they use running ones.)

    The state is a tuple over layers of tuples over levels, coarsest first, of (h, c), each [B, C, S, S].

        memory, state = model.write(frames, state)
        answers = model.read(memory, query)

    Args:
        in_shape, query_shape, out_shape: see :class:`MemoryModel`; how they meet the levels: :func:`input_pyramid`,
            :class:`Decoder`.
        levels: number of levels of each layer of the writer, the coarsest first; a layer has at most one more than that below.
        channels: channels of each layer of the writer.
        decoder_levels: number of levels of each layer of the decoder, never growing.
        decoder_channels: channels of each layer of the decoder, or one number for all.
        base: cells of the coarsest level along a side; each finer one has twice as many.
        peepholes: gates see the cell (the paper's equations; its code has none).
        forget_bias: constant in the forget gates.
        residual: every second layer adds the output of the one two below, where that has not more channels.
        norm: ``none``, or ``batch`` behind every layer but the last.

    Raises:
        UserError: numbers of levels or channels that do not fit each other.
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        query_shape: Sequence[int] | None,
        out_shape: Sequence[int],
        levels: Sequence[int] = (2, 2, 3, 3, 4, 4, 5),
        channels: Sequence[int] = (4, 4, 8, 8, 16, 16, 16),
        decoder_levels: Sequence[int] = (4, 4, 3, 3, 2, 2),
        decoder_channels: int | Sequence[int] = 16,
        base: int = 3,
        peepholes: bool = False,
        forget_bias: float = 1.0,
        residual: bool = True,
        norm: Norm = "none",
    ):
        super().__init__(in_shape, query_shape, out_shape)
        widths = [decoder_channels] * len(decoder_levels) if isinstance(decoder_channels, int) else decoder_channels
        _check_layers("levels", levels, "channels", channels)
        _check_layers("decoder_levels", decoder_levels, "decoder_channels", widths)
        check_positive(base=base)
        if not levels:
            raise UserError("levels=[] leaves no memory: give the number of levels of each layer.")
        if any(a < b for a, b in zip([levels[-1], *decoder_levels], decoder_levels)):
            raise UserError(f"decoder_levels={list(decoder_levels)} must not grow, nor begin with more than levels ends with.")
        if norm not in ("none", "batch"):
            raise UserError(f"norm='{norm}' must be none or batch.")

        def normed(channels: int) -> nn.Module:
            return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()

        def after(channels: int) -> nn.Module:
            return nn.Sequential(nn.ReLU(inplace=True), normed(channels))

        self.base, self.count = base, levels[0]
        read = input_channels(in_shape, base, levels[0])
        self.writer = Writer(read, levels, channels, base, forget_bias, peepholes, residual, normed)
        self.reader = None
        if query_shape is not None:
            self.reader = Reader(input_channels(query_shape, base, levels[0]), self.writer.channels, residual, after)
        below = (self.reader or self.writer).channels
        self.decoder = Decoder(below, out_shape, decoder_levels, widths, base, residual, after)
        self.cells = sum(width * (base * 2**j) ** 2 for count, width in zip(levels, channels) for j in range(count))

    def write(self, frames: Tensor, state: State | None = None) -> tuple[list[Pyramid], State]:
        """What the memory passes up after each of ``frames`` [B, T, *in_shape], maps [T * B, C, S, S], and its state."""
        steps = frames.shape[1]
        return self.writer(input_pyramid(_in_front(frames), self.base, self.count), steps, state)

    def read(self, memory: list[Pyramid], query: Tensor | None = None) -> Tensor:
        """Answers [N, *out_shape] of maps [N, C, S, S] that the memory passed up, to queries [N, *query_shape] if it has a reader."""
        if self.reader is None:
            return self.decoder(memory)
        if query is None:
            raise UserError("this MultigridMemory is read by queries: give one for each of the memory's maps.")
        return self.decoder(self.reader(input_pyramid(query, self.base, self.count), memory))

    def remember(self, frames: Tensor, state: State | None, query: Tensor | None, asked: Tensor | None) -> tuple[Tensor, State]:
        memory, state = self.write(frames, state)
        queries = None if query is None else _in_front(query)
        count, steps = frames.shape[:2]
        if asked is None:
            answers = self.read(memory, queries)
        else:
            rows = _in_front(asked).nonzero()[:, 0]
            if not len(rows):  # what is read for nothing keeps every parameter in the graph
                rows = torch.arange(count, device=asked.device)
            memory = [{j: x[rows] for j, x in maps.items()} for maps in memory]
            found = self.read(memory, None if queries is None else queries[rows])
            answers = found.new_zeros(steps * count, *self.out_shape).index_copy(0, rows, found)
        return answers.unflatten(0, (steps, count)).transpose(0, 1), state


def _in_front(x: Tensor) -> Tensor:
    """[B, T, ...] -> [T * B, ...]."""
    return x.transpose(0, 1).flatten(0, 1)


def _check_layers(a: str, levels: Sequence[int], b: str, channels: Sequence[int]) -> None:
    if len(levels) != len(channels):
        raise UserError(f"{a}={list(levels)} and {b}={list(channels)} must have one number for each layer.")
    check_positive(**{f"{a}[{k}]": n for k, n in enumerate(levels)}, **{f"{b}[{k}]": n for k, n in enumerate(channels)})
