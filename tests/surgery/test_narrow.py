"""Convolutions of few channels compute with channels last, and nobody notices."""

import pytest
import torch
from torch import Tensor, nn

from papermix.surgery.narrow import speed_up


def formats(model: nn.Module, x: Tensor) -> list[bool]:
    """For each convolution, whether its input comes with channels last."""
    seen: list[bool] = []
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    handles = [m.register_forward_pre_hook(lambda _, args: seen.append(not args[0].is_contiguous())) for m in convolutions]
    model(x)
    for handle in handles:
        handle.remove()
    return seen


def convolution(inputs: int, outputs: int, kernel: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (6, 10, 2), (12, 16, 1), (16, 20, 1), (38, 40, 1)])
def test_outputs_and_gradients_are_those_of_before(inputs: int, outputs: int, stride: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(inputs), convolution(inputs, outputs, stride=stride), nn.ReLU())
    x = torch.randn(3, inputs, 9, 7, requires_grad=True)
    results = []
    for turned in (False, True):
        handles = speed_up(model) if turned else []
        assert formats(model, x) == [turned]
        y = model(x)
        assert y.is_contiguous()
        weights = torch.linspace(-1, 1, y.numel()).view_as(y)
        results.append([y, *torch.autograd.grad((y * weights).sum(), [x, *model.parameters()])])
        for handle in handles:
            handle.remove()
    for before, after in zip(*results):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert formats(model, x) == [False]


def test_gradients_come_back_in_the_usual_format() -> None:
    model = nn.Sequential(nn.Identity(), convolution(6, 6))
    speed_up(model)
    x = torch.randn(2, 6, 8, 8, requires_grad=True)
    strides: list[bool] = []
    y = x * 2
    y.register_hook(lambda grad: strides.append(grad.is_contiguous()))
    model(y).sum().backward()
    assert strides == [True]


@pytest.mark.parametrize(
    "layer",
    [
        convolution(16, 32),
        convolution(3, 8),
        convolution(70, 70),
        convolution(6, 6, kernel=1),
        convolution(6, 6, groups=2),
        convolution(6, 6).to(memory_format=torch.channels_last),
    ],
    ids=["blocks filled", "an image", "many channels", "1x1", "groups", "channels last already"],
)
def test_others_are_left_as_they_are(layer: nn.Conv2d) -> None:
    speed_up(layer)
    assert formats(layer, torch.randn(2, layer.in_channels, 8, 8)) == [False]


def test_only_training_is_turned_and_sizes_may_change() -> None:
    layer, x = convolution(6, 6), torch.randn(2, 6, 8, 8)
    speed_up(layer)
    with torch.no_grad():
        assert formats(layer, x) == [False]
    assert formats(layer, x) == [True]
    assert formats(layer.double(), x.double()) == [False]
    layer.float()
    layer.weight = nn.Parameter(torch.randn(32, 16, 3, 3))
    layer.bias, layer.in_channels, layer.out_channels = nn.Parameter(torch.zeros(32)), 16, 32
    assert formats(layer, torch.randn(2, 16, 8, 8)) == [False]
    assert layer(x.new_zeros(16, 8, 8)).shape == (32, 8, 8)
