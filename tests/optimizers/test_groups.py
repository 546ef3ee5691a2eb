"""Parameter groups: every trainable parameter once, decay and learning rates where they belong."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from papermix.errors import UserError
from papermix.optimizers import param_groups
from papermix.optimizers.groups import plain_name


class Net(nn.Module):
    """stem - two blocks - norm - head, with a class token and a tied decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)
        self.tied = nn.Linear(4, 3)
        self.tied.weight = self.head.weight


def ids(groups: list[dict]) -> list[int]:
    return [id(p) for group in groups for p in group["params"]]


def names(model: nn.Module, group: dict) -> set[str]:
    wanted = {id(p) for p in group["params"]}
    return {plain_name(name) for name, p in model.named_parameters() if id(p) in wanted}


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("everything", [True, False])
def test_partition(layer_decay, everything) -> None:
    model = Net()
    model.stem.requires_grad_(False)
    groups = param_groups(model, decay_norm_and_bias=everything, layer_decay=layer_decay, lr=0.1, weight_decay_exclude=["token"])
    expected = {id(p) for p in model.parameters() if p.requires_grad}
    assert sorted(ids(groups)) == sorted(expected)
    assert len({group["name"] for group in groups}) == len(groups)
    for group in groups:
        off = {"token"} & names(model, group) or (not everything and any(p.ndim == 1 for p in group["params"]))
        assert group.get("weight_decay") == (0.0 if off else None)


def test_decay_everywhere_by_default() -> None:
    (group,) = param_groups(Net())
    assert group["name"] == "decay" and "weight_decay" not in group and "lr" not in group


def test_no_decay_for_norm_bias_and_what_the_model_says() -> None:
    model = Net()
    model.no_weight_decay = lambda: {"token"}  # type: ignore[assignment]
    decay, rest = param_groups(model, decay_norm_and_bias=False)
    assert names(model, decay) == {"stem.weight", "blocks.0.weight", "blocks.2.weight", "head.weight"}
    assert rest["weight_decay"] == 0.0 and "token" in names(model, rest)


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(3, 4))
        self.logit.is_mask = True  # type: ignore[attr-defined]

    def forward(self, weight):
        return weight * self.logit.sigmoid()


def test_masks_apart() -> None:
    model = Net()
    parametrize.register_parametrization(model.head, "weight", Gate())
    groups = {group["name"]: group for group in param_groups(model)}
    assert names(model, groups["masks"]) == {"head.weight.0.logit"}
    assert groups["masks"]["weight_decay"] == 0.0
    assert "head.weight" in names(model, groups["decay"])


def test_layer_decay_by_order() -> None:
    model = Net()
    rate = {}
    for group in param_groups(model, layer_decay=0.5, lr=0.8):
        rate |= dict.fromkeys(names(model, group), group["lr"])
    # layers: stem (with the token), block 0 (with its norm), block 2 (with the norm), head, tied decoder's bias
    assert rate["token"] == rate["stem.weight"] == pytest.approx(0.8 / 16)
    assert rate["blocks.0.bias"] == rate["blocks.1.weight"] == pytest.approx(0.8 / 8)
    assert rate["blocks.2.weight"] == rate["norm.bias"] == pytest.approx(0.8 / 4)
    assert rate["head.bias"] == rate["head.weight"] == pytest.approx(0.4)
    assert rate["tied.bias"] == pytest.approx(0.8)
    optimizer = torch.optim.SGD(param_groups(model, layer_decay=0.5, lr=0.8), lr=0.8)
    assert {group["lr"] for group in optimizer.param_groups} == set(rate.values())


def test_layer_decay_by_timms_matcher() -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3)
    rate = {}
    for group in param_groups(model, layer_decay=0.5, lr=1.0):
        rate |= dict.fromkeys(names(model, group), group["lr"])
    assert set(rate) == {name for name, _ in model.named_parameters()}
    assert rate["patch_embed.proj.weight"] == rate["cls_token"] < rate["blocks.0.mlp.fc1.weight"]
    assert rate["blocks.0.mlp.fc1.weight"] < rate["blocks.1.mlp.fc1.weight"] < rate["head.weight"] == 1.0


def test_errors() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UserError, match="no trainable parameter"):
        param_groups(frozen)
    with pytest.raises(UserError, match=r"'blocks.0.wieght' matches no .*did you mean 'blocks.0.weight'"):
        param_groups(Net(), weight_decay_exclude=["blocks.0.wieght"])
    with pytest.raises(UserError, match="single layer"):
        param_groups(nn.Linear(2, 2), layer_decay=0.5, lr=0.1)
    with pytest.raises(UserError, match="needs the learning rate"):
        param_groups(Net(), layer_decay=0.5)
    with pytest.raises(UserError, match=r"must lie in \(0, 1\]"):
        param_groups(Net(), layer_decay=1.5, lr=0.1)
