"""Which channels belong together: taking zeroed ones away changes no output, on every kind of network."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.models.densenet_cifar import DenseNetCifar
from papermix.models.lstm_lm import LSTMLM
from papermix.models.mlp import MLP
from papermix.models.resnet_cifar import ResNetCifar
from papermix.models.small_cnn import SmallCNN
from papermix.models.vgg_cifar import VGGCifar
from papermix.models.wide_resnet import WideResNet
from papermix.sparsity.magnitude import Magnitude
from papermix.surgery.channels import Group, channel_groups, take

# network -> (how it is made, its free groups)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (lambda: ResNetCifar(width=8), 12),
    "resnet20_projections": (lambda: ResNetCifar(width=8, shortcut="B"), 12),
    "resnet20_pre_activation": (lambda: ResNetCifar(width=8, version=2), 12),
    "vgg": (lambda: VGGCifar(depth=11, width=4), 8),
    "wide_resnet": (lambda: WideResNet(10, 1), 6),
    "densenet": (lambda: DenseNetCifar(16, 4), 15),
    "small_cnn": (lambda: SmallCNN((4, 8), (1, 2)), 3),
    "mlp": (lambda: MLP(hidden=(16, 12)), 2),
    "mlp_of_maps": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(8), nn.Flatten(), nn.Linear(54, 5)), 1),
    "transposed": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 8, 2, 2), nn.GELU(), nn.Conv2d(8, 2, 1)), 2),
    "gated": (lambda: nn.Sequential(nn.Conv2d(3, 12, 3), nn.GLU(1), nn.Conv2d(6, 2, 1)), 1),
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=4), 12),
    "test_resnet": (lambda: timm.create_model("test_resnet", num_classes=4), 11),
    "mobilenet": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=4), 26),
    "efficientnet": (lambda: timm.create_model("test_efficientnet", num_classes=4), 13),
}


def randomise(model: nn.Module) -> nn.Module:
    """Norms that do something, in eval mode."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.eval()


@torch.no_grad()
def remove(model: nn.Module, groups: list[Group], share: float = 0.6) -> tuple[nn.Module, dict[str, Tensor]]:
    """Zero random channels of all free groups in ``model``; the copy from which they are taken, and what was kept."""
    modules, keep = dict(model.named_modules()), {}
    for group in groups:
        if group.fixed or group.mixed:
            continue
        order = torch.randperm(group.size)
        kept = max(1, int(share * group.size))
        keep[group.name] = order[:kept].sort().values
        for slot in [*group.producers, *group.norms]:
            tensor = getattr(modules[slot.module], slot.attribute)
            gone = (slot.offset + order[kept:, None] * slot.repeat + torch.arange(slot.repeat)).flatten()
            if slot.attribute != "running_var":
                tensor.index_fill_(slot.dim, gone, 0)
    small = copy.deepcopy(model)
    take(small, keep, groups)
    return small, keep


@pytest.mark.parametrize("name", list(NETWORKS))
def test_taking_zeroed_channels_away_changes_no_output(name: str) -> None:
    make, free = NETWORKS[name]
    model = randomise(make())
    x = torch.randn(2, 3, 32, 32)
    groups = channel_groups(model, x)
    assert len({group.name for group in groups}) == len(groups)
    assert sum(not group.fixed and not group.mixed for group in groups) == free, [(g.name, g.fixed, g.mixed) for g in groups]
    small, keep = remove(model, groups)
    with torch.no_grad():
        expected, got = model(x), small(x)
    assert torch.allclose(expected, got, rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())
    # the layers' own numbers are right: the smaller network's groups have the sizes kept
    sizes = {g.name.partition("[")[0]: g.size for g in channel_groups(small, x)}
    assert all(sizes[key.partition("[")[0]] == len(index) for key, index in keep.items() if "[" not in key)
    head = getattr(small, "get_classifier", lambda: None)()
    if isinstance(head, nn.Linear):
        assert head.in_features == head.weight.shape[1] == small.num_features


@pytest.mark.parametrize("tied", [False, True])
def test_hidden_units_of_a_language_model(tied: bool) -> None:
    model = randomise(LSTMLM(30, 2, 12, embedding=8, tied=tied, dropout_hidden=0.1, weight_drop=0.2))
    tokens = torch.randint(0, 30, (2, 5))
    groups = channel_groups(model, tokens)
    assert sorted(g.size for g in groups if not g.fixed) == ([8, 12] if tied else [8, 12, 12])
    small, _ = remove(model, groups)
    with torch.no_grad():
        assert torch.allclose(model(tokens)[0], small(tokens)[0], atol=1e-6)
    assert small.lstm[0].hidden_size == 7 and small.embedding.embedding_dim == 4
    assert not tied or small.head.weight is small.embedding.weight


def test_where_the_channels_of_a_dense_network_lie() -> None:
    model = randomise(DenseNetCifar(10, 4, bottleneck=False, compression=1.0))
    groups = {g.name: g for g in channel_groups(model, torch.zeros(1, 3, 8, 8))}
    first = groups["stage1.0.layers.2"]
    assert first.size == 4 and [s.dim for s in first.producers] == [0]
    assert {(s.module, s.offset) for s in first.norms if s.attribute == "weight"} == {
        ("stage1.1.layers.0", 16),
        ("stage2.0.0", 16),
    }
    assert {(s.module, s.dim, s.offset) for s in first.consumers} == {("stage1.1.layers.2", 1, 16), ("stage2.0.2", 1, 16)}


def test_what_cannot_change_says_why() -> None:
    x = torch.zeros(1, 3, 64, 64)
    groups = {g.name: g for g in channel_groups(timm.create_model("test_resnet", num_classes=4), x)}
    assert "input" in next(g.fixed for name, g in groups.items() if name.endswith(".in"))
    assert "output" in groups["fc"].fixed
    reasons = {g.fixed for g in channel_groups(timm.create_model("regnetx_002", num_classes=4), x)}
    assert any("groups" in reason for reason in reasons)
    convnext = channel_groups(timm.create_model("test_convnext", num_classes=4), x)
    assert any("layer norm" in g.mixed and not g.fixed for g in convnext)
    assert sum(not g.fixed and not g.mixed for g in convnext) == 9  # the hidden channels of its MLPs

    class Shuffle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(self.a(x))
            return self.c(y.view(-1, 2, 4, *y.shape[2:]).sum(1) + y[:, :4])

    found = {g.name: g for g in channel_groups(Shuffle(), x)}
    assert not found["a"].fixed and "reshaped" in found["b[0:4]"].fixed


def test_masks_are_taken_with_their_weights() -> None:
    model = randomise(SmallCNN((4, 8), (1, 2), num_classes=4))
    sparsity = Magnitude(density=0.5)
    sparsity.attach(model)
    sparsity.harden()
    x = torch.randn(2, 3, 16, 16)
    groups = channel_groups(model, x)
    assert not any(g.fixed for g in groups if g.name.endswith("stage2.1.0"))
    small, _ = remove(model, groups)
    with torch.no_grad():
        assert torch.allclose(model(x), small(x), atol=1e-5)
    mask = small.get_submodule("stage2.1.0.parametrizations.weight.0").mask
    assert mask.shape == small.get_submodule("stage2.1.0").weight.shape == (4, 2, 3, 3)


def test_the_pass_leaves_no_trace_and_parameters_keep_their_identity() -> None:
    model = ResNetCifar(depth=8, width=4).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.stage1.eval()
    state = torch.random.get_rng_state()
    groups = channel_groups(model, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training and not model.stage1.training and model.stage2.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    parameters = list(model.parameters())
    take(model, {"stem.0": [0, 2]}, groups)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert model.stem[0].weight.shape == (2, 3, 3, 3) and torch.equal(model.stem[0].weight, before["stem.0.weight"][[0, 2]])


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"stem.9": [0]}, "did you mean 'stem.0'"),
        ({"head": [0]}, "network's output"),
        ({"stem.0": []}, "at least one"),
        ({"stem.0": [1, 1]}, "each once"),
        ({"stem.0": [4]}, "0 to 3"),
    ],
)
def test_bad_choices(keep: dict[str, list[int]], words: str) -> None:
    model = ResNetCifar(depth=8, width=4)
    groups = channel_groups(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(UserError, match=words):
        take(model, keep, groups)
