"""Residual branches: which are found, and which a network cannot be without."""

import pytest
import torch
from torch import Tensor, nn

from papermix.models.nested.width_nested import NestedResNet
from papermix.models.resnet_cifar import ResNetCifar
from papermix.models.transformer_lm import TransformerLM
from papermix.surgery.blocks import residual_blocks


class Branch(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x).relu())


class Spied(nn.Module):
    """A block whose inner values a layer outside reads, too."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.other, self.head = Branch(), Branch(), nn.Linear(6 + 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.block.first(x)
        x = self.other(x + self.block.second(inner))
        return self.head(torch.cat((inner, x), -1))


class Inside(Branch):
    """The same in a block of its own."""

    def forward(self, x: Tensor) -> Tensor:
        inner = self.first(x)
        self.inner = inner
        return x + self.second(inner)


class Peeking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.other, self.head = Inside(), Branch(), nn.Linear(6 + 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.other(self.block(x))
        return self.head(torch.cat((self.block.inner, x), -1))


def names(model: nn.Module, x: Tensor) -> list[str]:
    return [block.name for block in residual_blocks(model, x)]


def test_blocks_of_a_residual_network() -> None:
    found = residual_blocks(ResNetCifar(14, width=4), torch.randn(2, 3, 8, 8))
    assert [block.name for block in found] == ["stage1.0", "stage1.1", "stage2.1", "stage3.1"]
    assert found[0].branch[-1] == found[0].last == "stage1.0.norm2"


@pytest.mark.parametrize("model", [Spied(), Peeking()])
def test_a_block_of_which_others_read_more_than_its_sum_is_none(model: nn.Module) -> None:
    assert names(model, torch.randn(3, 4)) == ["other"]


def test_stripes_of_a_nested_network_are_read_by_later_ones() -> None:
    assert names(NestedResNet(exits=2, width=2, blocks=[2, 1]), torch.randn(2, 3, 8, 8)) == []


def test_a_block_that_reshapes_what_its_layers_make_is_none() -> None:
    model = TransformerLM(11, width=16, layers=1, heads=2)
    found = residual_blocks(model, torch.randint(11, (2, 5)))
    assert [block.branch[1:] for block in found] == [("blocks.0.fc1", "blocks.0.fc2")]


def test_the_pass_leaves_no_trace() -> None:
    model = ResNetCifar(8, width=4).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x, state = torch.randn(2, 3, 8, 8), torch.get_rng_state()
    residual_blocks(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in model.modules())
