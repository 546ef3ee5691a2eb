"""What operations do to channels: labels on the dimensions of all tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

INPUT = "it reads the network's input or positions, not channels of a layer"

Ids = np.ndarray[Any, Any]
Labels = list[Ids | None]  # for each dimension: a number per channel, or None where entries are positions


@dataclass
class Axis:
    """One dimension of a parameter or buffer (or a number of padded channels) and the ids of its channels."""

    module: str
    attribute: str
    dim: int
    ids: Ids
    ndim: int
    roles: set[str] = field(default_factory=set)


class Tracer(TorchDispatchMode):
    """Labels the dimensions of all tensors with channel ids and unites the ids that operations couple."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.parent: Ids = np.zeros(0, dtype=np.int64)
        self.owner: list[Axis] = []  # the axes, in the order of first use
        self.axis_of: list[int] = []  # axis index of each id
        self.fixed: dict[int, str] = {}
        self.mixed: dict[int, str] = {}
        self.summed: set[int] = set()
        self.labels: dict[int, tuple[Tensor, Labels]] = {}
        self.names: dict[int, tuple[str, str]] = {}
        for path, module in model.named_modules():
            for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None:
                    self.names.setdefault(id(tensor), (path, attribute))
        self.stack: list[tuple[str, nn.Module]] = []
        self.muted = 0

    # ---- ids

    def new(self, module: str, attribute: str, dim: int, size: int, ndim: int) -> Ids:
        """Fresh ids for an axis."""
        start = len(self.parent)
        ids = np.arange(start, start + size)
        self.parent = np.concatenate([self.parent, ids])
        self.axis_of += [len(self.owner)] * size
        self.owner.append(Axis(module, attribute, dim, ids, ndim))
        return ids

    def find(self, ids: Ids) -> Ids:
        roots = self.parent[ids]
        while True:
            above = self.parent[roots]
            if np.array_equal(above, roots):
                self.parent[ids] = roots
                return roots
            roots = above

    def join(self, a: Ids, b: Ids) -> None:
        """Unite ids entry by entry."""
        while True:
            x, y = self.find(a), self.find(b)
            differ = x != y
            if not differ.any():
                return
            # of equal larger roots the last assignment wins, the others come in the next round
            self.parent[np.maximum(x, y)[differ]] = np.minimum(x, y)[differ]

    def fix(self, ids: Ids | None, why: str) -> None:
        for i in () if ids is None else ids.tolist():
            self.fixed.setdefault(i, why)

    def mix(self, ids: Ids | None, why: str) -> None:
        for i in () if ids is None else ids.tolist():
            self.mixed.setdefault(i, why)

    def role(self, ids: Ids | None, role: str) -> None:
        """Note what the axes are for that these ids come from."""
        for index in () if ids is None else dict.fromkeys(self.axis_of[i] for i in ids.tolist()):
            self.owner[index].roles.add(role)

    # ---- labels

    def of(self, tensor: Tensor) -> Labels:
        """Labels of a tensor; a parameter's or buffer's every dimension is an axis of its own."""
        known = self.labels.get(id(tensor))
        if known is not None:
            return known[1]
        labels: Labels = [None] * tensor.ndim
        if id(tensor) in self.names:
            module, attribute = self.names[id(tensor)]
            labels = [self.new(module, attribute, dim, size, tensor.ndim) for dim, size in enumerate(tensor.shape)]
        return self.put(tensor, labels)

    def put(self, tensor: Any, labels: Labels) -> Labels:
        if isinstance(tensor, Tensor):
            assert len(labels) == tensor.ndim, "labels of another number of dimensions"
            self.labels[id(tensor)] = (tensor, labels)  # held, so that no other tensor gets its id
        return labels

    def leave(self, output: Any) -> None:
        """The network's outputs keep their channels."""
        for tensor in tree_flatten(output)[0]:
            if isinstance(tensor, Tensor):
                for ids in self.of(tensor):
                    self.fix(ids, "it is the network's output")

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Follow which module runs; recurrent layers are taken as a whole."""
        handles = []
        names = {module: name for name, module in self.model.named_modules()}

        def enter(module: nn.Module, *_: Any) -> None:
            self.stack.append((names[module], module))
            if isinstance(module, nn.RNNBase):
                self.muted += 1

        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.stack.pop()
            if isinstance(module, nn.RNNBase):
                self.muted -= 1
                self.recurrent(module, args[0] if args else kwargs["input"], output)

        for module in names:
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def recurrent(self, rnn: nn.RNNBase, x: Any, output: Any) -> None:
        """Layers of one module share their hidden units' number, so they are coupled; the carried state is not followed."""
        out, state = output
        weights = {name: getattr(rnn, name) for name in rnn._flat_weights_names}
        labels = {name: self.of(w) for name, w in weights.items()}
        hidden = labels["weight_hh_l0"][1]
        assert hidden is not None
        odd = rnn.proj_size > 0 or rnn.bidirectional or not isinstance(x, Tensor)
        for name, ids in labels.items():
            rows = ids[0]
            assert rows is not None
            self.role(rows, "producer")
            self.join(rows, np.tile(hidden, len(rows) // len(hidden)))
            if name.startswith("weight"):
                self.role(ids[1], "consumer")
                if name.startswith("weight_ih_l0"):
                    self.enter(self.of(x)[-1] if isinstance(x, Tensor) else None, ids[1])
                elif not odd:
                    self.join(self._ids(ids[1]), hidden)
                else:
                    self.fix(ids[1], "it is a recurrent layer with projection, two directions or packed sequences")
        if odd:
            self.fix(hidden, "it is a recurrent layer with projection, two directions or packed sequences")
        if isinstance(out, Tensor):
            self.put(out, [*[None] * (out.ndim - 1), None if odd else hidden])
        for tensor in state if isinstance(state, tuple) else (state,):
            self.put(tensor, [None] * tensor.ndim)

    def _ids(self, ids: Ids | None) -> Ids:
        assert ids is not None
        return ids

    def enter(self, given: Ids | None, wanted: Ids | None) -> None:
        """Channels ``given`` go into the input dimension ``wanted`` of a weight."""
        if given is not None and wanted is not None:
            self.join(given, wanted)
        elif wanted is not None:
            self.fix(wanted, INPUT)
        else:
            self.fix(given, "it is multiplied with a matrix that is no parameter")

    # ---- operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self.muted:
            # aten.add_.Tensor is handled as add
            name = func.overloadpacket.__name__
            handler = _HANDLERS.get(name) or _HANDLERS.get(name.rstrip("_"))
            if handler is not None:
                handler(self, result, *args, **kwargs)
            elif torch.Tag.pointwise in func.tags:
                self.pointwise(result, args, kwargs)
                if name.rstrip("_") == "add":
                    self.added(args)
            else:
                self.unknown(name, result, args, kwargs)
        return result

    def unknown(self, name: str, result: Any, args: Any, kwargs: Any = None) -> None:
        for tensor in tree_flatten((args, kwargs))[0]:
            if isinstance(tensor, Tensor):
                for ids in self.of(tensor):
                    self.fix(ids, f"it passes through {name}, of which the relation of channels is not known")
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, Tensor):
                self.put(tensor, [None] * tensor.ndim)

    def added(self, args: Any) -> None:
        """Note channels that are sums of two layers' outputs; a bias is none."""
        terms = [t for t in args[:2] if isinstance(t, Tensor) and id(t) not in self.names]
        if len(terms) == 2 and terms[0].shape == terms[1].shape:
            for ids in self.of(terms[0]):
                self.summed.update(() if ids is None else ids.tolist())

    def pointwise(self, result: Any, args: Any, kwargs: Any = None) -> None:
        outs = [t for t in tree_flatten(result)[0] if isinstance(t, Tensor)]
        operands = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        ndim = outs[0].ndim
        labels: Labels = [None] * ndim
        for dim in range(ndim):
            at = [t for t in operands if dim - ndim + t.ndim >= 0 and t.shape[dim - ndim] == outs[0].shape[dim]]
            found = [self.of(t)[dim - ndim] for t in at]
            ids = [i for i in found if i is not None]
            if ids:
                # raw axes of parameters last, so that a result has the labels of what flows
                labels[dim] = ids[0]
                for other in ids[1:]:
                    self.join(ids[0], other)
                if len(ids) < len(found) and outs[0].shape[dim] > 1:
                    self.fix(ids[0], "it is combined with a tensor whose channels are not known")
        for out in outs:
            self.put(out, labels)


# ---- what each operation does to channels -----------------------------------------------------------------------------------


def _same(tracer: Tracer, result: Any, x: Tensor, *_: Any, **__: Any) -> None:
    """The first operand's channels: pooling, resizing, copies."""
    labels = tracer.of(x)
    for out in tree_flatten(result)[0]:
        if isinstance(out, Tensor):
            kept = [i if i is not None and len(i) == size else None for i, size in zip(labels, out.shape)]
            tracer.put(out, kept if out.ndim == x.ndim else [None] * out.ndim)


def _convolution(tracer: Tracer, result: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *args: Any, **_: Any) -> None:
    transposed, groups = args[3], args[5]
    w, channels = tracer.of(weight), tracer.of(x)[1]
    outputs, inputs = (w[1], w[0]) if transposed else (w[0], w[1])
    role = "producer"
    if groups == 1:
        tracer.role(inputs, "consumer")
        tracer.enter(channels, inputs)
    elif groups == x.shape[1] == result.shape[1] and weight.shape[1] == 1:
        role, outputs = "norm", w[0]
        tracer.enter(channels, outputs)
    else:
        for ids in (channels, outputs, inputs):
            tracer.fix(ids, f"it meets a convolution in {groups} groups")
        tracer.role(inputs, "consumer")
        outputs = w[0]
    tracer.role(outputs, role)
    if bias is not None:
        tracer.role(tracer.of(bias)[0], role)
        if outputs is not None and len(outputs) == len(bias):
            tracer.join(outputs, tracer._ids(tracer.of(bias)[0]))
    kept = outputs if outputs is not None and len(outputs) == result.shape[1] else None
    labels: Labels = [None] * result.ndim
    labels[1] = kept
    tracer.put(result, labels)


def _product(tracer: Tracer, result: Tensor, x: Tensor, y: Tensor, bias: Tensor | None = None) -> None:
    """[n, k] times [k, m]; a parameter on the right is a layer's transposed weight."""
    a, b = tracer.of(x), tracer.of(y)
    if b[0] is not None and b[1] is not None:
        tracer.role(b[0], "consumer")
        tracer.role(b[1], "producer")
    if a[1] is not None or b[0] is not None:
        tracer.enter(a[1], b[0])
    if bias is not None and b[1] is not None and bias.ndim == 1:
        tracer.role(tracer.of(bias)[0], "producer")
        tracer.enter(b[1], tracer.of(bias)[0])
    tracer.put(result, [a[0], b[1]])


def _addmm(tracer: Tracer, result: Tensor, bias: Tensor, x: Tensor, y: Tensor, **_: Any) -> None:
    _product(tracer, result, x, y, bias)


def _linear(tracer: Tracer, result: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    w = tracer.of(weight)
    tracer.role(w[0], "producer")
    tracer.role(w[1], "consumer")
    tracer.enter(tracer.of(x)[-1], w[1])
    if bias is not None:
        tracer.role(tracer.of(bias)[0], "producer")
        tracer.enter(w[0], tracer.of(bias)[0])
    tracer.put(result, [*tracer.of(x)[:-1], w[0]])


def _embedding(tracer: Tracer, result: Tensor, weight: Tensor, indices: Tensor, *_: Any, **__: Any) -> None:
    w = tracer.of(weight)
    tracer.role(w[1], "producer")
    tracer.put(result, [*[None] * indices.ndim, w[1]])


def _batch_norm(tracer: Tracer, result: Any, x: Tensor, *vectors: Any, **_: Any) -> None:
    channels = tracer.of(x)[1] if x.ndim > 1 else None
    for vector in vectors[:4]:
        if isinstance(vector, Tensor):
            tracer.role(tracer.of(vector)[0], "norm")
            tracer.enter(channels, tracer.of(vector)[0])
    for out in tree_flatten(result)[0]:
        if isinstance(out, Tensor):
            tracer.put(out, tracer.of(x) if out.shape == x.shape else [None] * out.ndim)
    # statistics of the batch, where a norm keeps none, run over all but the channels
    for dim, ids in enumerate(tracer.of(x)):
        if dim != 1:
            tracer.mix(ids, "a norm's statistics run over it")


def _layer_norm(
    tracer: Tracer, result: Any, x: Tensor, shape: Sequence[int], weight: Any = None, bias: Any = None, *_: Any
) -> None:
    labels = tracer.of(x)
    for dim in range(-len(shape), 0):
        tracer.mix(labels[dim], "the statistics of a layer norm run over it")
        for vector in (weight, bias):
            if isinstance(vector, Tensor):
                tracer.role(tracer.of(vector)[dim], "norm")
                tracer.enter(labels[dim], tracer.of(vector)[dim])
    _norm_result(tracer, result, x)


def _group_norm(
    tracer: Tracer, result: Any, x: Tensor, weight: Any, bias: Any, n: int, c: int, hw: int, groups: int, eps: float
) -> None:
    channels = tracer.of(x)[1]
    for vector in (weight, bias):
        if isinstance(vector, Tensor):
            tracer.role(tracer.of(vector)[0], "norm")
            tracer.enter(channels, tracer.of(vector)[0])
    if groups == 1:
        tracer.mix(channels, "the statistics of a group norm run over it")
    elif groups < c:
        tracer.fix(channels, f"a group norm cuts it into {groups} groups")
    _norm_result(tracer, result, x)


def _norm_result(tracer: Tracer, result: Any, x: Tensor) -> None:
    for out in tree_flatten(result)[0]:
        if isinstance(out, Tensor):
            tracer.put(out, list(tracer.of(x)) if out.shape == x.shape else [None] * out.ndim)


def _reduce(tracer: Tracer, result: Any, x: Tensor, dims: Any = None, *args: Any, **kwargs: Any) -> None:
    labels = tracer.of(x)
    dims = [dims] if isinstance(dims, int) else dims or range(x.ndim)
    gone = {d % x.ndim for d in dims} if x.ndim else set()
    for dim in gone:
        tracer.mix(labels[dim], "it is averaged or added up over its channels")
    for out in tree_flatten(result)[0]:
        if isinstance(out, Tensor):
            keeps = out.ndim == x.ndim
            tracer.put(out, [None if d in gone else ids for d, ids in enumerate(labels) if keeps or d not in gone])


def _softmax(tracer: Tracer, result: Tensor, x: Tensor, dim: int, *_: Any) -> None:
    tracer.mix(tracer.of(x)[dim], "a softmax runs over it")
    tracer.put(result, list(tracer.of(x)))


def _cat(tracer: Tracer, result: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> None:
    dim %= result.ndim
    parts = [t for t in tensors if t.ndim == result.ndim]
    labels: Labels = []
    for d in range(result.ndim):
        found = [tracer.of(t)[d] for t in parts]
        ids = [i for i in found if i is not None]
        if not ids:
            labels.append(None)
        elif d == dim and len(ids) == len(found):
            labels.append(np.concatenate(ids))
        elif d == dim:
            for i in ids:
                tracer.fix(i, "it is concatenated with something that is no channel of a layer")
            labels.append(None)
        else:
            for other in ids[1:]:
                tracer.join(ids[0], other)
            if len(ids) < len(found):
                tracer.fix(ids[0], "it is concatenated beside a tensor whose channels are not known")
            labels.append(ids[0])
    tracer.put(result, labels)


def _pad(tracer: Tracer, result: Tensor, x: Tensor, pad: Sequence[int], *_: Any) -> None:
    labels = list(tracer.of(x))
    name, module = tracer.stack[-1] if tracer.stack else ("", tracer.model)
    for i in range(len(pad) // 2):
        before, after, dim = pad[2 * i], pad[2 * i + 1], x.ndim - 1 - i
        ids = labels[dim]
        if ids is None or not (before or after):
            continue
        if before or after < 0 or getattr(module, "new_chans", None) != after:
            tracer.fix(ids, "channels are padded to it")
            labels[dim] = None
            continue
        fresh = tracer.new(name, "new_chans", 0, after, 1)
        tracer.role(fresh, "count")
        labels[dim] = np.concatenate([ids, fresh])
    tracer.put(result, labels)


def _view(tracer: Tracer, result: Tensor, x: Tensor, *_: Any, **__: Any) -> None:
    """Any reshape: dimensions are matched in blocks of equal size; a channel may be merged with positions, and come out again."""
    labels = tracer.of(x)
    result_labels: Labels = [None] * result.ndim
    i = j = 0
    while i < x.ndim or j < result.ndim:
        a, b = ([i], [j]) if i < x.ndim and j < result.ndim else ([], [])
        if not a:
            break  # what is left has size one
        m, n = x.shape[i], result.shape[j]
        while m != n:
            if m < n:
                a.append(a[-1] + 1)
                m *= x.shape[a[-1]]
            else:
                b.append(b[-1] + 1)
                n *= result.shape[b[-1]]
        i, j = a[-1] + 1, b[-1] + 1
        named = [d for d in a if labels[d] is not None]
        if not named:
            continue
        sizes = [x.shape[d] for d in a]
        if len(named) == 1:
            d = named[0]
            shape = [1] * len(a)
            shape[d - a[0]] = sizes[d - a[0]]
            grid = np.broadcast_to(tracer._ids(labels[d]).reshape(shape), sizes).reshape([result.shape[k] for k in b])
            varying = [
                k
                for k in range(len(b))
                if grid.shape[k] > 1 and not np.array_equal(grid, np.broadcast_to(np.take(grid, [0], k), grid.shape))
            ]
            if len(varying) == 1:
                k = varying[0]
                result_labels[b[k]] = np.moveaxis(grid, k, 0).reshape(grid.shape[k], -1)[:, 0]
                continue
            if not varying and sizes[d - a[0]] == 1:
                ones = [k for k in b if result.shape[k] == 1] or [b[0]]
                result_labels[ones[0]] = np.repeat(tracer._ids(labels[d]), result.shape[ones[0]])
                continue
        for d in named:
            tracer.fix(labels[d], "it is reshaped into something else")
    tracer.put(result, result_labels)


def _permute(tracer: Tracer, result: Tensor, x: Tensor, dims: Sequence[int]) -> None:
    tracer.put(result, [tracer.of(x)[d] for d in dims])


def _transpose(tracer: Tracer, result: Tensor, x: Tensor, a: int = 0, b: int = 1) -> None:
    labels = list(tracer.of(x))
    if x.ndim > 1:
        labels[a], labels[b] = labels[b], labels[a]
    tracer.put(result, labels)


def _unsqueeze(tracer: Tracer, result: Tensor, x: Tensor, dim: int) -> None:
    labels = list(tracer.of(x))
    labels.insert(dim % result.ndim, None)
    tracer.put(result, labels)


def _squeeze(tracer: Tracer, result: Tensor, x: Tensor, dims: Any = None) -> None:
    labels = tracer.of(x)  # as many as dimensions before, of which squeeze_ has taken some away by now
    wanted = range(x.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {d % len(labels) for d in wanted if result is x or x.shape[d] == 1} if len(labels) > result.ndim else set()
    tracer.put(result, [ids for d, ids in enumerate(labels) if d not in gone])


def _expand(tracer: Tracer, result: Tensor, x: Tensor, *_: Any, **__: Any) -> None:
    labels: Labels = [None] * (result.ndim - x.ndim)
    labels += tracer.of(x)
    tracer.put(result, [ids if ids is not None and len(ids) == size else None for ids, size in zip(labels, result.shape)])


def _slice(tracer: Tracer, result: Tensor, x: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> None:
    labels = list(tracer.of(x))
    ids = labels[dim]
    if ids is not None and result.shape[dim] != x.shape[dim]:
        tracer.fix(ids, "a part of it is cut out")
        labels[dim] = ids[start:end:step]
    tracer.put(result, labels)


def _select(tracer: Tracer, result: Tensor, x: Tensor, dim: int, index: int) -> None:
    labels = list(tracer.of(x))
    tracer.fix(labels.pop(dim), "one of its channels is picked out")
    tracer.put(result, labels)


def _split(tracer: Tracer, result: Sequence[Tensor], x: Tensor, sizes: Any, dim: int = 0) -> None:
    labels = list(tracer.of(x))
    ids = labels[dim]
    parts: list[Ids | None] = [None] * len(result)
    if ids is not None:
        parts = list(np.split(ids, np.cumsum([t.shape[dim] for t in result])[:-1]))
        if len({t.shape[dim] for t in result}) == 1 and isinstance(sizes, int):
            # equal parts stay equal when each loses the same
            for part in parts[1:]:
                tracer.join(tracer._ids(parts[0]), tracer._ids(part))
        else:
            tracer.fix(ids, "it is split at given sizes")
    for tensor, part in zip(result, parts):
        tracer.put(tensor, [part if d == dim % x.ndim else i for d, i in enumerate(labels)])


def _glu(tracer: Tracer, result: Tensor, x: Tensor, dim: int = -1) -> None:
    labels = list(tracer.of(x))
    ids = labels[dim]
    if ids is not None:
        labels[dim] = ids[: len(ids) // 2]
        tracer.join(ids[: len(ids) // 2], ids[len(ids) // 2 :])
    tracer.put(result, labels)


def _elementwise(tracer: Tracer, result: Any, *args: Any, **kwargs: Any) -> None:
    """What works entry by entry, though torch does not say so."""
    tracer.pointwise(result, args, kwargs)


def _made(tracer: Tracer, result: Any, *_: Any, **__: Any) -> None:
    """A new tensor, or a question about one: no channels."""
    for out in tree_flatten(result)[0]:
        if isinstance(out, Tensor):
            tracer.put(out, [None] * out.ndim)


_HANDLERS: dict[str, Any] = {
    "convolution": _convolution,
    "addmm": _addmm,
    "mm": _product,
    "linear": _linear,
    "embedding": _embedding,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "cat": _cat,
    "constant_pad_nd": _pad,
    "permute": _permute,
    "transpose": _transpose,
    "t": _transpose,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "expand": _expand,
    "slice": _slice,
    "select": _select,
    "split": _split,
    "split_with_sizes": _split,
    "glu": _glu,
    "as_strided_": _same,  # torch restores the memory format of a pooled map with it
    "hardswish": _elementwise,
    "_prelu_kernel": _elementwise,
    "_softmax": _softmax,
    "_log_softmax": _softmax,
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _view),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std", "var_mean", "max", "min", "logsumexp"), _reduce),
    **dict.fromkeys(
        ("native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"), _batch_norm
    ),
    **dict.fromkeys(("_batch_norm_with_update", "_batch_norm_no_update", "miopen_batch_norm"), _batch_norm),
    **dict.fromkeys(
        (
            *("max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "max_pool1d"),
            *("avg_pool1d", "avg_pool3d", "max_pool3d_with_indices", "_adaptive_avg_pool3d", "upsample_nearest2d"),
            *(
                "upsample_bilinear2d",
                "upsample_bicubic2d",
                "_upsample_bilinear2d_aa",
                "_upsample_bicubic2d_aa",
                "upsample_nearest1d",
            ),
            *("clone", "contiguous", "detach", "alias", "_to_copy", "lift_fresh", "reflection_pad2d", "replication_pad2d"),
            *("native_dropout", "bernoulli"),
        ),
        _same,
    ),
    **dict.fromkeys(
        ("zeros", "ones", "empty", "full", "arange", "new_zeros", "new_ones", "new_empty", "_local_scalar_dense"), _made
    ),
    **dict.fromkeys(("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "scalar_tensor"), _made),
}
