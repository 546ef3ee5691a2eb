"""Template banks and the layers that draw their kernels from them (Savarese & Maire 2019)."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.models.image_model import check_positive


class TemplateBank(nn.Module):
    """``count`` kernels T of one shape, of which every layer that draws from the bank mixes its own.

    Args:
        count: k, the number of templates.
        shape: of one kernel, as a layer's weight: [out, in / groups, height, width] of a convolution, [out, in] of a linear
            layer.
        std: of the normal distribution that they start from; None: Kaiming's (fan in, ReLU), each template for itself.
        name: for pictures and logs.

    Attributes:
        templates: the one parameter, [count * out, ...]: stacked along the outputs, so that it has a weight's dimensions (memory
            formats and sparsity take it as one).
    """

    def __init__(self, count: int, shape: Sequence[int], std: float | None = None, name: str = "bank"):
        super().__init__()
        check_positive(templates=count)
        if len(shape) < 2:
            raise UserError(f"a bank cannot hold kernels of shape {tuple(shape)}: a weight has outputs and inputs.")
        self.count, self.shape, self.name = count, tuple(shape), name
        self.templates = nn.Parameter(torch.empty(count * shape[0], *shape[1:]))
        if std is None:
            # fan in does not see that several templates are stacked
            nn.init.kaiming_normal_(self.templates, nonlinearity="relu")
        else:
            nn.init.normal_(self.templates, std=std)

    def stacked(self) -> Tensor:
        """All templates, [count, *shape]."""
        return self.templates.unflatten(0, (self.count, self.shape[0]))

    def mix(self, coefficients: Tensor) -> Tensor:
        """``sum_j coefficients[j] T[j]``, [count] -> [*shape], in the parameters' own precision and memory format."""
        templates: Tensor = self.templates
        last = (
            templates.ndim == 4 and not templates.is_contiguous() and templates.is_contiguous(memory_format=torch.channels_last)
        )
        if last:
            templates = templates.permute(0, 2, 3, 1)
        with torch.autocast(templates.device.type, enabled=False):
            kernel = coefficients @ templates.reshape(self.count, -1)
        kernel = kernel.view(self.shape[0], *templates.shape[1:])
        return kernel.permute(0, 3, 1, 2) if last else kernel

    def extra_repr(self) -> str:
        return f"{self.count} x {tuple(self.shape)}"


class Shared(nn.Module):
    """What makes a layer draw its ``weight`` from a bank, computed anew whenever it is asked for; stands before a layer's class.

    :func:`attach` makes shared layers of plain ones, in place. The first layer of a bank has it as a submodule, the others know
    it without registering it, so that ``state_dict``, optimizers and everything that walks over modules meet each template
    once. Stride, padding, bias and what else a layer has are its own.

    Attributes:
        plain: the class that the layer has without sharing.
        coefficients: parameter alpha [count]; weight decay leaves it alone (``no_decay``).
    """

    plain: type[nn.Module]
    no_decay = ("coefficients",)
    coefficients: nn.Parameter
    _bank: tuple[TemplateBank]

    def __init__(self, *_: Any, **__: Any):
        raise UserError(f"a {type(self).__name__} is made of a plain layer: attach(bank, [layer, ...]).")

    @property
    def bank(self) -> TemplateBank:
        """The templates."""
        return self._bank[0]

    @property
    def weight(self) -> Tensor:
        """The kernel, with a graph to templates and coefficients."""
        return self.bank.mix(self.coefficients)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, templates={self.bank.count}"


class SharedConv2d(Shared, nn.Conv2d):  # type: ignore[override, misc]
    """2-D convolution with its kernel from a bank."""

    plain = nn.Conv2d


class SharedLinear(Shared, nn.Linear):  # type: ignore[override, misc]
    """Linear layer with its weight from a bank."""

    plain = nn.Linear


@cache
def _shared_class(plain: type[nn.Module]) -> type[Shared]:
    known: dict[type[nn.Module], type[Shared]] = {nn.Conv2d: SharedConv2d, nn.Linear: SharedLinear}
    return known.get(plain) or type(f"Shared{plain.__name__}", (Shared, plain), {"plain": plain})


def attach(bank: TemplateBank, layers: Sequence[nn.Module], coefficients: Tensor | None = None) -> None:
    """Let ``layers`` draw their weights from ``bank``, in place; the first one registers it.

    Args:
        bank: the templates; it moves to the device and the type of the layers.
        layers: of any class that computes with ``self.weight``; those that are shared already leave their bank.
        coefficients: [layers, count], row i for layer i; None: a random orthogonal matrix, so that all kernels start uncorrelated
            where there are at least as many templates as layers.

    Raises:
        UserError: no layer, or a weight that has another shape or is no plain parameter.
    """
    if not layers:
        raise UserError("a bank without layers has no use: give at least one.")
    for layer in layers:
        if not isinstance(layer, Shared) and layer._parameters.get("weight") is None:
            raise UserError(f"the weight of this {type(layer).__name__} is no plain parameter: take off what computes it first.")
        shape: Any = layer.weight.shape
        if tuple(shape) != bank.shape:
            raise UserError(f"a layer with a weight of shape {tuple(shape)} cannot draw from templates of {bank.shape}.")
    if coefficients is None:
        coefficients = nn.init.orthogonal_(torch.empty(len(layers), bank.count, device=bank.templates.device))
    like: Any = layers[0].weight
    bank.to(device=like.device, dtype=like.dtype).train(layers[0].training)
    for layer, row in zip(layers, coefficients, strict=True):
        if not isinstance(layer, Shared):
            del layer._parameters["weight"]
            layer.__class__ = _shared_class(type(layer))  # type: ignore[arg-type, assignment]
        layer._modules.pop("bank", None)
        layer._parameters["coefficients"] = nn.Parameter(row.detach().to(like).clone())
        layer.__dict__["_bank"] = (bank,)
    layers[0]._modules["bank"] = bank


def detach(layer: Shared) -> None:
    """Give a shared layer its present kernel as a weight of its own and its plain class back, in place."""
    kernel = nn.Parameter(layer.weight.detach().clone())
    del layer._parameters["coefficients"]
    layer._modules.pop("bank", None)
    del layer.__dict__["_bank"]
    layer.__class__ = layer.plain  # type: ignore[assignment]
    layer._parameters = {"weight": kernel, **layer._parameters}
