"""Networks with exits: earlier ones know nothing of later ones, costs add up, step by step equals all at once, bad input."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from papermix.errors import UserError
from papermix.metrics.count import flops
from papermix.metrics.exits import exit_flops
from papermix.models.nested.base import ExitModel
from papermix.models.nested.branched import Branched
from papermix.models.nested.depth_nested import NestedDepth, reads
from papermix.models.nested.width_nested import NestedMLP, NestedResNet, stripes

SMALL: dict[str, Callable[..., ExitModel]] = {
    "mlp": lambda **k: NestedMLP(16, exits=3, width=4, layers=2, **k),
    "mlp_plain": lambda **k: NestedMLP(16, exits=3, width=4, layers=2, norm=False, **k),
    "width": lambda **k: NestedResNet(exits=3, width=2, blocks=(1, 1), **k),
    "width_imagenet": lambda **k: NestedResNet(exits=2, width=2, blocks=(1, 1), stem="imagenet", **k),
    "depth": lambda **k: NestedDepth(exits=3, layers=(1, 2), width=3, **k),
    "depth_sum": lambda **k: NestedDepth(exits=3, layers=(1, 2), width=3, aggregate="sum", **k),
    "both": lambda **k: NestedDepth(exits=3, layers=(1, 1), width=2, widen=True, **k),
    "both_sum": lambda **k: NestedDepth(exits=3, layers=(1, 1), width=2, widen=True, aggregate="sum", **k),
    "branched": lambda **k: Branched("test_resnet", **k),
}


def made(name: str, **arguments: int) -> ExitModel:
    torch.manual_seed(0)
    return SMALL[name](**{"num_classes": 5, "in_chans": 3, **arguments})


def image(batch: int = 4, chans: int = 3) -> Tensor:
    return torch.randn(batch, chans, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", list(SMALL))
def test_what_belongs_to_an_exit_acts_on_no_earlier_one(name: str) -> None:
    model, x = made(name), image()
    model(x)  # running statistics that are not those of the start
    model.eval()
    before = model.forward_exits(x)
    own = [{id(p) for part in model.exit_parts(k) for p in part.parameters()} for k in range(1, model.num_exits + 1)]
    assert set().union(*own) == {id(p) for p in model.parameters()} and sum(map(len, own)) == len(list(model.parameters()))
    for k in range(2, model.num_exits + 1):
        for part in model.exit_parts(k):
            for p in part.parameters():
                with torch.no_grad():
                    p.add_(0.1)
        after = model.forward_exits(x)
        assert all(torch.equal(a, b) for a, b in zip(before[: k - 1], after))
        assert all(not torch.equal(a, b) for a, b in zip(before[k - 1 :], after[k - 1 :]))
        before = after
    model.train()
    outputs = model.forward_exits(x)
    for k, output in enumerate(outputs, 1):
        grads = torch.autograd.grad(output.square().sum(), list(model.parameters()), retain_graph=True, allow_unused=True)
        reached = {id(p) for p, g in zip(model.parameters(), grads) if g is not None}
        heads = {id(p) for head in model.heads()[: k - 1] for p in head.parameters()}
        parts = {id(p) for i in range(1, k) for p in model.get_submodule(f"exit{i}").parameters()}
        assert reached <= set().union(*own[:k]) and own[k - 1] <= reached and not heads & reached
        if name.startswith(("mlp", "width", "branched")):
            assert parts <= reached  # every exit is built on all before it


@pytest.mark.parametrize("name", list(SMALL))
def test_step_by_step_equals_all_at_once(name: str) -> None:
    model, x = made(name).eval(), image()
    whole = model.forward_exits(x)
    assert len(whole) == model.num_exits and all(o.shape == (4, 5) for o in whole)
    assert torch.equal(model(x), whole[-1])
    state, kept = model.start(x), []
    for output in whole:
        kept.append(state)
        found, state = model.step(state)
        assert torch.allclose(found, output, atol=1e-6)
    again, _ = model.step(kept[1])  # going on from a state spoils none
    assert torch.allclose(again, whole[1], atol=1e-6)
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert isinstance(maps, list)
    assert [m.shape[1] for m in maps] == [i["num_chs"] for i in model.feature_info]
    assert torch.equal(maps[-1], model.forward_features(x))


@pytest.mark.parametrize("name", list(SMALL))
def test_costs_of_the_exits_add_up(name: str) -> None:
    model, x = made(name), image(1)

    class Step(nn.Module):
        def __init__(self, state: object) -> None:
            super().__init__()
            self.model, self.state = model, state

        def forward(self, _: Tensor) -> Tensor:
            return model.step(self.state)[0]  # type: ignore[arg-type]

    model.eval()
    steps, state = [], model.start(x)
    for _ in range(model.num_exits):
        steps.append(flops(Step(state), x))
        state = model.step(state)[1]
    upto = exit_flops(model, x)
    assert upto == [sum(steps[: k + 1]) for k in range(len(steps))] and min(steps) > 0
    early = sum(2 * head.weight.numel() for head in model.heads()[:-1])  # type: ignore[operator, union-attr, misc]
    assert flops(model, x) == upto[-1] - early  # forward computes the last head alone


def test_width_doubles_and_costs_less_than_a_dense_network_of_the_full_width() -> None:
    assert stripes(16, 4) == [16, 16, 32, 64]
    model = NestedMLP(28, exits=4, width=16, layers=3, in_chans=1)
    assert [i["num_chs"] for i in model.feature_info] == [16, 32, 64, 128]
    linears = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "exit" in n)
    own, total = [16, 16, 32, 64], [16, 32, 64, 128]
    assert linears == 784 * 128 + 2 * sum(o * t for o, t in zip(own, total))
    dense = NestedMLP(28, exits=1, width=128, layers=3, in_chans=1)
    x = torch.zeros(1, 1, 28, 28)
    assert exit_flops(model, x)[0] == exit_flops(NestedMLP(28, exits=1, width=16, layers=3, in_chans=1), x)[0]
    assert flops(model, x) < flops(dense, x)
    conv = NestedResNet(exits=3, width=2, blocks=(1, 1))
    assert [i["num_chs"] for i in conv.feature_info] == [4, 8, 16]
    x = torch.zeros(1, 3, 16, 16)
    assert flops(conv, x) < flops(NestedResNet(exits=1, width=8, blocks=(1, 1)), x)
    assert flops(NestedResNet(exits=1, width=2, blocks=(1, 1)), x) == exit_flops(conv, x)[0]


def test_a_single_stripe_is_a_plain_residual_network() -> None:
    from papermix.models.resnet_cifar import ResNetCifar

    nested, plain = NestedResNet(exits=1, width=4, blocks=(2, 2, 2)), ResNetCifar(14, width=4)
    named = list(plain.state_dict().values())
    assert [v.shape for v in nested.state_dict().values()] == [v.shape for v in named]
    nested.load_state_dict(dict(zip(nested.state_dict(), named)))
    x = image()
    assert torch.allclose(nested.eval()(x), plain.eval()(x), atol=1e-6)


def test_depth_doubles_behind_every_layer() -> None:
    assert [reads(i) for i in (0, 1, 2, 3, 6, 7)] == [[-1], [0, -1], [1, 0], [2, 1, -1], [5, 4, 2], [6, 5, 3, -1]]
    model = NestedDepth(exits=3, layers=(1, 2), width=3)
    layers = [sorted(map(int, model.get_submodule(f"exit{k}").layers)) for k in (1, 2, 3)]  # type: ignore[arg-type]
    assert layers == [[0, 1, 2], [1, 3, 5], [1, 3, 5, 7, 9, 11]]
    both = NestedDepth(exits=2, layers=(1, 1), width=3, widen=True)
    state = both.step(both.step(both.start(image()))[1])[1]
    assert [tuple(m.shape[1:]) for m in state.memory[1:]] == [(6, 16, 16)] * 3 + [(12, 8, 8)] * 2


def test_layers_read_what_they_should() -> None:
    """Each layer's input, by hand: the layers 1, 2 and 4 before it among those of its exit and earlier ones."""
    model = NestedDepth(exits=2, layers=(2,), width=3).eval()
    x = image()
    first, second = model.get_submodule("exit1"), model.get_submodule("exit2")
    stem = first.stem(x)  # type: ignore[operator]
    a0 = first.layers["0"](stem)  # type: ignore[index, operator]
    a1 = first.layers["1"](torch.cat((a0, stem), 1))  # type: ignore[index, operator]
    b0 = second.layers["1"](torch.cat((a0, stem), 1))  # type: ignore[index, operator]
    b1 = second.layers["3"](torch.cat((a1, b0, stem), 1))  # type: ignore[index, operator]
    outputs = model.forward_exits(x)
    assert torch.allclose(outputs[0], model.heads()[0](a1.mean((2, 3))), atol=1e-6)
    assert torch.allclose(outputs[1], model.heads()[1](torch.cat((b1, a1), 1).mean((2, 3))), atol=1e-6)


def test_batch_statistics_move_once_for_all_exits() -> None:
    model, x = made("width"), image()
    model.forward_exits(x)
    counts = {int(m.num_batches_tracked) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}  # type: ignore[arg-type]
    assert counts == {1}


def test_a_branched_network_is_its_backbone_with_heads() -> None:
    import timm

    import papermix.models.registry  # noqa: F401

    model = made("branched").eval()
    backbone = timm.create_model("test_resnet", features_only=True).eval()
    state = {k.partition(".")[2]: v for k, v in model.state_dict().items() if k.startswith("exit")}
    backbone.load_state_dict(state)
    x = image()
    maps = backbone(x)[1:]
    for output, head, features in zip(model.forward_exits(x), model.heads(), maps, strict=True):
        assert torch.allclose(output, head(features.mean((2, 3))), atol=1e-6)
    torch.manual_seed(3)
    raw = timm.create_model("test_resnet", features_only=True).state_dict()
    torch.manual_seed(3)
    kept = {k.partition(".")[2]: v for k, v in Branched("test_resnet").state_dict().items() if k.startswith("exit")}
    assert kept.keys() == raw.keys() and all(torch.equal(v, raw[k]) for k, v in kept.items())  # its own way to start is kept
    assert [i["num_chs"] for i in Branched("resnet20_cifar", maps=[0, 3]).feature_info] == [16, 64]


@pytest.mark.parametrize("name", list(SMALL))
def test_classifiers_of_all_exits_are_replaced(name: str) -> None:
    model = made(name)
    model.reset_classifier(7)
    assert [o.shape for o in model.forward_exits(image())] == [(4, 7)] * model.num_exits
    assert model.get_classifier() is model.heads()[-1]
    model.reset_classifier(0)
    assert model(image()).shape == (4, model.num_features)


def test_bad_input_is_refused() -> None:
    for build, words in (
        (lambda: NestedMLP(8, exits=0), "exits=0"),
        (lambda: NestedMLP(8, layers=0), "layers=0"),
        (lambda: NestedResNet(blocks=()), "leaves no layer"),
        (lambda: NestedResNet(stem="tiny"), "small or imagenet"),  # type: ignore[arg-type]
        (lambda: NestedResNet(blocks=(1, 0)), r"blocks\[1\]=0"),
        (lambda: NestedDepth(layers=()), "leaves no layer"),
        (lambda: NestedDepth(aggregate="mean"), "concat or sum"),  # type: ignore[arg-type]
        (lambda: Branched("resnet2_cifar"), "did you mean"),
        (lambda: Branched("test_resnet", maps=[2, 1]), "feature maps 0 to 4"),
        (lambda: Branched("test_resnet", maps=[9]), "feature maps 0 to 4"),
        (lambda: Branched("test_vit"), "no chain of layers"),
        (lambda: Branched("mlp_256x2_cifar", image_size=32), "convolutional network"),
    ):
        with pytest.raises(UserError, match=words):
            build()
