"""A network as a file that needs none of its classes: ONNX, and torch.export's program."""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from papermix.errors import UserError
from scripts.exporting.plain import outputs

# packages that each format needs besides torch
NEEDS: dict[str, tuple[str, ...]] = {"safetensors": ("safetensors",), "onnx": ("onnx", "onnxscript"), "pt2": ()}
# a file as a function from an input to outputs by name
Compute = Callable[[Tensor], dict[str, Tensor]]


class Program(nn.Module):
    """A network as a function from tensors to a tuple of tensors, its outputs in the order of ``names``.

    Its arguments are the input and, for a network with a carried state, a list of the state's tensors.
    """

    def __init__(self, model: Any, example: Tensor) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():
            found = model(example)
        self.names = list(outputs(found))
        self.states = [name for name in self.names if name.startswith("state")]
        self._state = found[1] if self.states else ()

    def forward(self, x: Tensor, state: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        found = self.model(x, _like(self._state, iter(state))) if self.states else self.model(x)
        return tuple(outputs(found).values())

    def arguments(self, x: Tensor) -> tuple[Any, ...]:
        """``x`` and, where there is a state, an empty one: zeros, its dimension 1 being the batch."""
        empty = [t.new_zeros(t.shape[0], len(x), *t.shape[2:]) for t in _leaves(self._state)]
        return (x, empty) if empty else (x,)

    def free(self, x: Tensor, batch: Any, time: Any) -> tuple[Any, ...]:
        """What exporters call dimensions of the arguments that may have any size: the batch, and the length of texts."""
        sizes = {0: batch, 1: time} if x.ndim == 2 and not x.is_floating_point() else {0: batch}
        return (sizes, [{1: batch} for _ in self.states]) if self.states else (sizes,)


def _leaves(state: Any) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else [t for s in state for t in _leaves(s)]


def _like(shape: Any, tensors: Iterator[Tensor]) -> Any:
    return next(tensors) if isinstance(shape, Tensor) else tuple(_like(s, tensors) for s in shape)


def check_packages(formats: Sequence[str]) -> None:
    """Raise UserError when a package is missing that a format (safetensors is always one) needs."""
    for name in ("safetensors", *formats):
        missing = [package for package in NEEDS[name] if not _installed(package)]
        if missing:
            raise UserError(
                f"{name} files need {' and '.join(missing)}: pip install {' '.join(missing)} (or 'papermix[export]')."
            )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def write_pt2(model: nn.Module, x: Tensor, path: Path) -> Compute:
    """Write torch.export's program; returns what the file computes. Raises UserError when the network cannot be traced."""
    program = Program(model, x)
    try:
        with _calm():
            free = program.free(x, Dim.DYNAMIC, Dim.DYNAMIC)
            torch.export.save(torch.export.export(program, program.arguments(x), dynamic_shapes=free), path)
    except Exception as error:
        path.unlink(missing_ok=True)
        raise UserError(f"there is no {path.name}: torch.export cannot trace this network ({_reason(error)}).") from error
    loaded = torch.export.load(path).module()

    def compute(x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return dict(zip(program.names, loaded(*program.arguments(x))))

    return compute


def write_onnx(model: nn.Module, x: Tensor, path: Path) -> Compute | None:
    """Write ONNX with named inputs and outputs; returns what the file computes, None when onnxruntime is not there to say.

    Raises:
        UserError: torch.onnx cannot express the network.
    """
    program = Program(model, x)
    names = ["input", *(f"{name}_before" for name in program.states)]
    try:
        with _calm():
            torch.onnx.export(
                program, program.arguments(x), path, dynamo=True, dynamic_shapes=program.free(x, "batch", "time"), external_data=False,
                input_names=names, output_names=program.names, verbose=False,
            )  # fmt: skip
    except Exception as error:
        path.unlink(missing_ok=True)
        raise UserError(f"there is no {path.name}: torch.onnx cannot express this network ({_reason(error)}).") from error
    if not _installed("onnxruntime"):
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def compute(x: Tensor) -> dict[str, Tensor]:
        given = [x, *(t for state in program.arguments(x)[1:] for t in state)]
        found = session.run(program.names, {name: tensor.numpy() for name, tensor in zip(names, given)})
        return {name: torch.from_numpy(value) for name, value in zip(program.names, found)}

    return compute


WRITERS: dict[str, Callable[[nn.Module, Tensor, Path], Compute | None]] = {"onnx": write_onnx, "pt2": write_pt2}


@contextmanager
def _calm() -> Iterator[None]:
    """No gradients, and none of the exporters' advice to their authors."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _reason(error: BaseException) -> str:
    """Type and first line of what was at the bottom of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
