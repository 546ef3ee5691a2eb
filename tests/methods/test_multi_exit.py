"""Training on all exits at once: the sum of the losses, Orthogonalized SGD, one exit after the other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.greedy_exits import GreedyExits
from lightning_modules.multi_exit import MultiExit
from lightning_modules.orthogonalized import Orthogonalized
from lightning_modules.tasks import Classification
from papermix.errors import UserError
from papermix.models.mlp import MLP
from papermix.models.nested.width_nested import NestedMLP
from papermix.optimizers.projection import orthogonalize
from papermix.run.checkpoint_io import read
from tests.machine import Killed, StopBefore, run, states_equal, weights
from tests.settings import TINY

RUN = [
    *TINY,
    "dataset=digits",
    "dataset.batch_size=8",
    "dataset.limit=160",
    "dataset.augment.crop=0",
    "model=nested_mlp",
    "model.exits=3",
    "model.width=4",
    "model.layers=2",
    "model.norm=false",
]
OSGD = [*RUN, "method=orthogonalized"]


def method_of(kind: Callable[..., Any] = MultiExit, model: nn.Module | None = None, **options: Any) -> Any:
    model = NestedMLP(8, exits=3, width=4, layers=2, norm=False) if model is None else model
    return kind(model, Classification(10), torch.optim.SGD, **options)


def batch_of(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {"image": torch.randn(16, 1, 8, 8, generator=g), "label": torch.randint(10, (16,), generator=g)}


class Trainer:
    """As much of a trainer as the backward pass looks at."""

    def __init__(self, method: nn.Module, accumulate: bool = False):
        self.optimizers = [torch.optim.SGD(method.parameters(), lr=0.1)]
        self.world_size, self.global_step = 1, 0
        self.accumulate = accumulate
        self.fit_loop = self

    def _should_accumulate(self) -> bool:
        return self.accumulate


def gradients(method: Any, batches: list[dict[str, Tensor]], scale: float = 1.0) -> list[Tensor]:
    """The gradients that a method leaves after these batches of one step."""
    method._trainer = trainer = Trainer(method)
    method.zero_grad()
    for i, batch in enumerate(batches):
        trainer.accumulate = i + 1 < len(batches)
        losses = [method.task.loss(o, batch) for o in method.exit_outputs(batch["image"])]
        method.backward(method.total(losses) * scale / len(batches))
    return [p.grad for p in method.parameters() if p.grad is not None]


def wanted(method: Any, batch: dict[str, Tensor], weights: list[float], **options: Any) -> list[Tensor]:
    """The same by :func:`orthogonalize` and plain sums."""
    parameters = list(method.parameters())
    losses = [method.task.loss(o, batch) for o in method.model.forward_exits(batch["image"])]
    g = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses]
    return [sum(w * part for w, part in zip(weights, parts)) for parts in zip(*orthogonalize(g, **options))]


def test_weights_of_the_exits() -> None:
    losses = [torch.tensor(v) for v in (1.0, 2.0, 4.0)]
    assert method_of().total(losses) == 7
    assert method_of(weights="linear").total(losses) == 0.5 * 1 + 2 + 1.5 * 4
    assert method_of(weights=[0, 0, 2]).total(losses) == 8
    adaptive = method_of(weights="adaptive")
    assert adaptive.total(losses) == pytest.approx(3 * 3 / (1 + 0.5 + 0.25))  # each loss weighs the same
    assert adaptive.exit_weights.tolist() == pytest.approx([12 / 7, 6 / 7, 3 / 7])
    adaptive.total([torch.tensor(v) for v in (101.0, 2.0, 4.0)])
    assert adaptive.loss_means.tolist() == pytest.approx([2, 2, 4])
    assert "loss_means" in adaptive.state_dict() and "exit_weights" not in adaptive.state_dict()


@pytest.mark.parametrize(
    ("options", "pure"),
    [
        ({}, {}),
        ({"scope": "tensor"}, {"scope": "tensor"}),
        ({"priority": [3, 1, 2]}, {"priority": [2, 0, 1]}),
        ({"normalise": "first", "weights": [1, 2, 0.5]}, {"normalise": "first"}),
    ],
)
def test_the_gradient_is_the_sum_of_the_projected_ones(options: dict[str, Any], pure: dict[str, Any]) -> None:
    torch.manual_seed(0)
    method, batch = method_of(Orthogonalized, **options), batch_of()
    expected = wanted(method, batch, options.get("weights", [1, 1, 1]), **pure)
    found = gradients(method, [batch])
    assert len(found) == len(list(method.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected))
    # what mixed precision multiplies a loss with comes back multiplied
    assert all(torch.allclose(a / 1024, b, atol=1e-6) for a, b in zip(gradients(method, [batch], 1024.0), expected))


def test_layers_are_vectors() -> None:
    method, batch = method_of(Orthogonalized, scope="layer"), batch_of()
    labels = [name.rpartition(".")[0] for name, _ in method.named_parameters()]
    assert len(set(labels)) < len(labels)
    expected = wanted(method, batch, [1, 1, 1], scope=labels)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients(method, [batch]), expected))


def test_gradients_of_several_batches_are_summed_for_each_loss_before_projecting() -> None:
    method = method_of(Orthogonalized)
    halves = [batch_of(1), batch_of(2)]
    whole = {k: torch.cat([h[k] for h in halves]) for k in halves[0]}
    expected = wanted(method, whole, [1, 1, 1])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients(method, halves), expected))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients(method, halves), expected))  # nothing is left over
    single = [gradients(method, [half]) for half in halves]
    mean = [(a + b) / 2 for a, b in zip(*single)]
    assert any(not torch.allclose(a, b, atol=1e-4) for a, b in zip(mean, expected))  # so that equality says something


def test_parameters_that_no_loss_reaches_get_no_gradient() -> None:
    method = method_of(Orthogonalized)
    method.model.extra = nn.Parameter(torch.ones(3))
    method.model.heads()[0].requires_grad_(False)
    gradients(method, [batch_of()])
    none = [name for name, p in method.named_parameters() if p.grad is None]
    assert none == ["model.extra", "model.early_heads.0.weight", "model.early_heads.0.bias"]


def test_pcgrad_differs_and_is_the_same_twice() -> None:
    torch.manual_seed(0)
    method, batch = method_of(Orthogonalized, rule="pcgrad"), batch_of()
    a, b = gradients(method, [batch]), gradients(method, [batch])
    assert all(torch.equal(x, y) for x, y in zip(a, b))
    projected = gradients(method_of(Orthogonalized, method.model), [batch])
    assert any(not torch.allclose(x, y) for x, y in zip(a, projected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_parameters_of_other_types(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    method = method_of(Orthogonalized).to(dtype)
    batch = batch_of() | {"image": batch_of()["image"].to(dtype)}
    found, expected = gradients(method, [batch]), wanted(method, batch, [1, 1, 1])
    assert all(g.dtype == dtype for g in found)
    near = 0.02 if dtype == torch.bfloat16 else 1e-12
    assert all((a - b).norm() <= near * b.norm() for a, b in zip(found, expected))


def test_mixed_precision(tmp_path: Path) -> None:
    assert run([*OSGD, "hardware.precision=bf16-mixed"], tmp_path)["steps"] == 12


def test_one_exit_is_plain_sgd_bit_for_bit(tmp_path: Path) -> None:
    for name, method in (("sgd", "multi_exit"), ("osgd", "orthogonalized"), ("plain", "supervised")):
        run([*RUN, "model.exits=1", f"method={method}"], tmp_path / name)
    sgd, osgd, plain = (weights(tmp_path / name) for name in ("sgd", "osgd", "plain"))
    assert states_equal(sgd, osgd) and states_equal(sgd, plain)


class Apart(NestedMLP):
    """Exits that share nothing: each is a network of its own."""

    def __init__(self) -> None:
        super().__init__(8, exits=1, width=4)
        self.nets = nn.ModuleList(MLP(8, hidden=(4 + k,), norm=False, in_chans=1) for k in range(3))
        self.num_exits = 3
        del self.exit1, self.head

    def forward_exits(self, x: Tensor) -> list[Tensor]:
        return [net(x) for net in self.nets]


def test_losses_that_share_nothing_give_the_gradient_of_their_sum_bit_for_bit() -> None:
    torch.manual_seed(0)
    model, batch = Apart(), batch_of()
    found = [g.clone() for g in gradients(method_of(Orthogonalized, model), [batch])]
    joint = method_of(MultiExit, model)
    joint.zero_grad()
    joint.total([joint.task.loss(o, batch) for o in model.forward_exits(batch["image"])]).backward()
    assert all(torch.equal(a, b) for a, b in zip(found, [p.grad for p in model.parameters() if p.grad is not None], strict=True))


def test_accumulation_and_clipping(tmp_path: Path) -> None:
    common = [*OSGD, "trainer.max_epochs=1"]
    large = [*common, "dataset.batch_size=16", "trainer.limit_train_batches=3"]
    small = [*common, "trainer.accumulate_grad_batches=2", "callbacks.checkpoints.every_n_steps=null"]
    run(large, tmp_path / "large")
    run(small, tmp_path / "small")
    a, b = weights(tmp_path / "large"), weights(tmp_path / "small")
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)
    plain = ["optimizer.momentum=0", "optimizer.nesterov=false", "optimizer.weight_decay=0", "scheduler=constant"]
    still = [*common, *plain, "trainer.gradient_clip_val=1e-6", "trainer.limit_train_batches=2"]
    clipped = run(still, tmp_path / "clipped")
    start = run([*still, "optimizer.lr=0"], tmp_path / "start")
    assert clipped["steps"] == start["steps"] == 2
    before, after = weights(tmp_path / "start"), weights(tmp_path / "clipped")
    moved = torch.stack([(after[k] - before[k]).square().sum() for k in before]).sum().sqrt()
    assert 0 < moved < 3e-7  # two steps of length 0.1 x 1e-6 at most


@pytest.mark.parametrize("method", ["multi_exit", "orthogonalized"])
def test_resumes_in_the_middle_of_an_epoch(method: str, tmp_path: Path) -> None:
    overrides = [*RUN, "model.norm=true", f"method={method}", "method.weights=adaptive"]
    never = run(overrides, tmp_path / "whole")
    with pytest.raises(Killed):
        run(overrides, tmp_path / "cut", StopBefore(3))
    at_two = weights(tmp_path / "cut")
    stopped = run(overrides, tmp_path / "cut")
    a, b = read(tmp_path / "whole/checkpoints/last.ckpt"), read(tmp_path / "cut/checkpoints/last.ckpt")
    assert not states_equal(a["state_dict"], at_two)
    assert states_equal(a["state_dict"], b["state_dict"]) and states_equal(a["optimizer_states"], b["optimizer_states"])
    assert never["metrics"] == stopped["metrics"]
    assert (tmp_path / "whole/metrics.csv").read_text() == (tmp_path / "cut/metrics.csv").read_text()


def test_numbers_of_every_exit(tmp_path: Path) -> None:
    result = run([*OSGD, "sparsity=magnitude", "sparsity.updates=2", "sparsity.end=0.5", "sparsity.density=0.5"], tmp_path)
    found = result["metrics"]
    for split in ("val", "test"):
        assert {f"{split}/accuracy{e}" for e in ("", "_exit1", "_exit2")} <= found.keys()
        assert f"{split}/accuracy_exit3" not in found
        assert len({found[f"{split}/loss{e}"] for e in ("", "_exit1", "_exit2")}) == 3
    assert {f"train/loss_exit{k}" for k in (1, 2, 3)} <= found.keys()
    assert found["train/loss"] == pytest.approx(sum(found[f"train/loss_exit{k}"] for k in (1, 2, 3)))
    costs = [found[f"test/flops_exit{k}"] for k in (1, 2, 3)]
    assert costs[0] == 2 * (64 * 4 + 4 * 4 + 4 * 10) and costs == sorted(costs) and costs[2] > result["flops"]
    assert all(found[f"test/effective_flops_exit{k}"] < cost for k, cost in enumerate(costs, 1))


def test_another_optimizer_and_networks(tmp_path: Path) -> None:
    for i, extra in enumerate(
        [
            ["optimizer=adamw"],
            ["model=nested_width", "model.width=2", "model.blocks=[1]", "~model.layers"],
            ["model=nested_both", "model.width=2", "model.layers=[1]"],
        ]
    ):
        base = [o for o in OSGD if i == 0 or not o.startswith("model.")]
        result = run([*base, *[e for e in extra if not e.startswith("~")], "trainer.max_epochs=1"], tmp_path / str(i))
        assert result["steps"] == 6


def test_one_exit_after_the_other(tmp_path: Path) -> None:
    greedy = [*[o for o in RUN if o != "model.norm=false"], "method=greedy_exits"]
    first = run([*greedy, "method.exit=1"], tmp_path / "first")
    second = run([*greedy, "method.exit=2", f"init_from={tmp_path / 'first'}"], tmp_path / "second")
    a, b = weights(tmp_path / "first"), weights(tmp_path / "second")
    moved = {k for k in a if not torch.equal(a[k], b[k])}
    assert moved and all(k.startswith(("model.exit2.", "model.early_heads.1.")) for k in moved)
    assert {k for k in b if "num_batches" in k and b[k] > 0 and "exit3" in k} == set()
    assert second["metrics"]["test/accuracy_exit1"] == first["metrics"]["test/accuracy_exit1"]
    method = method_of(GreedyExits, exit=2).train()
    assert [m.training for m in (method.model.exit1, method.model.exit2, method.model.exit3)] == [False, True, False]


def test_bad_input_is_refused() -> None:
    for arguments, words in (
        ({"weights": "equl"}, "did you mean 'equal'"),
        ({"weights": [1, 1]}, "3 numbers"),
        ({"weights": [1, 1, -1]}, "at least 0"),
        ({"weights": [0, 0, 0]}, "not all 0"),
        ({"kind": Orthogonalized, "scope": "layers"}, "did you mean 'layer'"),
        ({"kind": Orthogonalized, "priority": [0, 1, 2]}, "each of 1 to 3"),
        ({"kind": Orthogonalized, "priority": "first"}, "earliest"),
        ({"kind": Orthogonalized, "normalise": "men"}, "did you mean 'mean'"),
        ({"kind": Orthogonalized, "rule": "pcgrd"}, "did you mean 'pcgrad'"),
        ({"kind": GreedyExits, "exit": 4}, "from 1 to 3"),
        ({"model": MLP(8, in_chans=1)}, "single output"),
    ):
        with pytest.raises(UserError, match=words):
            method_of(**arguments)
    for method in ("multi_exit", "orthogonalized", "greedy_exits"):
        with pytest.raises(UserError, match=f"method={method} needs 'exits', .*model=nested_mlp"):
            from papermix.run.compose import compose, freeze

            overrides = ["model=mlp", f"method={method}"]
            freeze(compose(overrides, with_hydra=True), overrides, Path("runs/x"))
    frozen = method_of(Orthogonalized)
    frozen.requires_grad_(False)
    with pytest.raises(UserError, match="unfreeze"):
        gradients(frozen, [batch_of()])
