"""The slow copy and the projector."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from papermix.errors import UserError
from papermix.models.momentum import momentum_copy, momentum_restart, momentum_update
from papermix.models.projector import Projector


def test_one_update_is_the_weighted_mean_of_every_trainable_tensor() -> None:
    torch.manual_seed(0)
    source = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    target = momentum_copy(source)
    assert not any(p.requires_grad for p in target.parameters())
    old = {k: v.clone() for k, v in target.state_dict().items()}
    with torch.no_grad():
        for p in source.parameters():
            p.add_(torch.randn_like(p))
    source(torch.randn(8, 3))  # moves the statistics
    momentum_update(target, source, 0.999)
    for name, p in source.named_parameters():
        assert torch.allclose(target.get_parameter(name), 0.999 * old[name] + 0.001 * p, atol=1e-7)
    assert torch.equal(target[1].running_mean, old["1.running_mean"])
    momentum_restart(target, source)
    assert all(torch.equal(a, b) for a, b in zip(target.state_dict().values(), source.state_dict().values()))


def test_a_parametrized_weight_counts_as_what_it_is() -> None:
    class Half(nn.Module):
        def forward(self, w: torch.Tensor) -> torch.Tensor:
            return w * (torch.arange(w.numel()).view(w.shape) % 2)

    source = nn.Linear(3, 2)
    target = momentum_copy(source)
    parametrize.register_parametrization(source, "weight", Half())
    momentum_update(target, source, 0.0)
    assert torch.equal(target.weight, source.weight) and (target.weight == 0).any()


def test_what_it_cannot_follow_is_refused() -> None:
    source = nn.Linear(3, 2)
    target = momentum_copy(source)
    with pytest.raises(UserError, match="changes its shape"):
        momentum_update(target, nn.Linear(3, 4), 0.9)
    with pytest.raises(UserError, match="bf16-mixed"):
        momentum_update(target.bfloat16(), source, 0.9)


def test_projector() -> None:
    three = Projector(8, 16, 4, layers=3)
    assert [type(m).__name__ for m in three.layers[0]] == ["Linear", "BatchNorm1d", "ReLU"]
    assert [type(m).__name__ for m in three.layers[2]] == ["Linear", "BatchNorm1d"]
    assert three(torch.randn(5, 8)).shape == (5, 4) and three.layers[2][0].bias is None
    plain = Projector(8, norm=False)
    assert [type(m).__name__ for m in plain.layers[1]] == ["Linear"] and plain.layers[0][0].out_features == 8 and plain.dim == 128
    with pytest.raises(UserError, match="layers=0"):
        Projector(8, 8, 8, layers=0)
