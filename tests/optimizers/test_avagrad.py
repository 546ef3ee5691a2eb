"""AvaGrad, AvaGradW and Delayed Adam: the equations, their limits, and what any optimizer must do."""

import copy
import io
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from papermix.errors import UserError
from papermix.optimizers import AvaGrad, AvaGradW, DelayedAdam, avagrad

ROOT = Path(__file__).parents[2]
CLASSES = [AvaGrad, AvaGradW, DelayedAdam]


def parameters(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    """A scalar, a vector, matrices in two layouts, images channels last, and an empty tensor."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in [(), (3,), (7, 5), (5, 7), (4, 3, 2, 2), (0, 3)]]
    made[3] = made[3].t()
    made[4] = made[4].to(memory_format=torch.channels_last)
    return [torch.nn.Parameter(x) for x in made]


def gradient(p: Tensor, step: int) -> Tensor:
    """A gradient that depends on the place and the step, laid out like the parameter or, for matrices, not."""
    g = torch.sin(p.detach() * (step + 1) + 0.1 * step) * 10.0 ** (step % 3 - 1)
    return g.t().contiguous().t() if p.ndim == 2 and step % 2 else g


def trajectory(make, steps: int, late: bool = False, params=None) -> list[Tensor]:
    """Parameters after some steps; with ``late`` the second one gets gradients from the third step on, the third never."""
    params = params or parameters()
    optimizer = make(params)
    for step in range(steps):
        for i, p in enumerate(params):
            p.grad = None if late and (i == 2 or (i == 1 and step < 2)) else gradient(p, step)
        optimizer.step()
    return [p.detach().clone() for p in params]


class Plain:
    """The authors' rules in a loop over tensors."""

    def __init__(self, params, lr=0.1, betas=(0.9, 0.999), eps=0.1, weight_decay=0.0, decoupled=False, normalized=True):
        self.params, self.lr, self.betas, self.eps, self.decay = params, lr, betas, eps, weight_decay
        self.decoupled, self.normalized, self.gamma = decoupled, normalized, None
        self.state = {p: [0, torch.zeros_like(p), torch.zeros_like(p)] for p in params}

    @torch.no_grad()
    def step(self) -> None:
        (b1, b2), total, count = self.betas, 0.0, 0
        for p in self.params:
            if p.grad is None:
                continue
            t, m, v = self.state[p]
            t, g = t + 1, p.grad
            if not self.decoupled:
                g = g + self.decay * p
            m = b1 * m + (1 - b1) * g
            if t > 1:
                if self.decoupled:
                    p *= 1 - self.lr * self.decay
                gamma = self.gamma if self.normalized else 1.0
                p -= gamma * self.lr / (1 - b1**t) * m / (v.sqrt() / math.sqrt(1 - b2 ** (t - 1)) + self.eps)
            total += float(((v.sqrt() / math.sqrt(1 - b2**t) + self.eps) ** -2).sum())
            count += p.numel()
            self.state[p] = [t, m, b2 * v + (1 - b2) * g * g]
        self.gamma = 1 / math.sqrt(total / count)


# ---- the equations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("way", ["blocks", "cut", "whole", "device"])
@pytest.mark.parametrize("cls", CLASSES)
def test_all_ways_equal_the_loop(cls, way, late, monkeypatch) -> None:
    """Blocks that hold all tensors, blocks that cut them, one by one, and the way of accelerators."""
    options = {"lr": 0.3, "betas": (0.8, 0.99), "eps": 0.05, "weight_decay": 0.1}
    kinds = {"decoupled": cls is AvaGradW, "normalized": cls is not DelayedAdam}
    expected = trajectory(lambda params: Plain(params, **options, **kinds), 6, late)
    if way == "cut":
        monkeypatch.setattr(avagrad, "_block_size", lambda p: 4)
    if way == "device":
        monkeypatch.setattr(avagrad, "_block_size", lambda p: 0)
    found = trajectory(lambda params: cls(params, foreach=way != "whole", **options), 6, late)
    assert not any(torch.equal(a, b) for a, b in zip(found[:2], parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_blocks_hold_every_element_once() -> None:
    rows = [p.detach() for p in parameters()]
    for limit, largest in ((4, 4), (10**6, 10**6), (0, math.inf)):
        blocks = list(avagrad._blocks([rows, [2 * x for x in rows]], limit))
        assert all(sum(x.numel() for x in first) <= largest for first, _ in blocks)
        assert all(torch.equal(2 * a, b) for first, second in blocks for a, b in zip(first, second))
        assert sum(x.numel() for first, _ in blocks for x in first) == sum(x.numel() for x in rows)
        assert sum(float(x.sum()) for first, _ in blocks for x in first) == pytest.approx(sum(float(x.sum()) for x in rows))


def test_tensors_laid_out_differently_are_not_cut() -> None:
    a, b = torch.arange(6.0).view(2, 3), torch.arange(6.0).view(3, 2).t()
    (block,) = avagrad._blocks([[a], [b]], 4)
    assert block[0][0] is a and block[1][0] is b


def run_example(cls=AvaGrad, **options) -> list[list[float]]:
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = cls([w], **{"lr": 0.1, "eps": 0.1, **options})
    seen = []
    for _ in range(5):
        optimizer.zero_grad()
        (0.5 * (w[0] ** 2 + 10 * w[1] ** 2)).backward()
        optimizer.step()
        seen.append(w.tolist())
    return seen


def test_worked_example() -> None:
    """Numbers of the authors' code."""
    expected = [[1, -2], [0.9909091, -1.9900497], [0.8876346, -1.8768407], [0.7737738, -1.7503102], [0.6570838, -1.6188781]]
    assert run_example() == [pytest.approx(w, abs=2e-6) for w in expected]
    assert run_example(weight_decay=0.01)[2] == pytest.approx([0.8866307, -1.8758512], abs=2e-6)
    assert run_example(AvaGradW, weight_decay=0.01)[2] == pytest.approx([0.8856829, -1.8728945], abs=2e-6)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_first_step_fills_the_moments_only(cls) -> None:
    p = torch.nn.Parameter(torch.randn(1000, 300))
    optimizer = cls([p], eps=0.3, weight_decay=0.1)
    before = p.detach().clone()
    p.grad = torch.randn_like(p)
    optimizer.step()
    assert torch.equal(p, before) and optimizer.state[p]["step"] == 1
    if cls is not DelayedAdam:
        assert float(optimizer.param_groups[0]["gamma"]) == pytest.approx(0.3, rel=1e-6)


def test_a_large_eps_is_sgd_with_averaged_momentum() -> None:
    found, expected, m = parameters(), parameters(), [torch.zeros_like(p) for p in parameters()]
    optimizer = AvaGrad(found, lr=0.1, eps=1e8)
    for t in range(1, 8):
        for i, (p, q) in enumerate(zip(found, expected)):
            p.grad = torch.cos(q.detach() + t)
            m[i] = 0.9 * m[i] + 0.1 * p.grad
            if t > 1:
                q.data -= 0.1 * m[i] / (1 - 0.9**t)
        optimizer.step()
    for p, q in zip(found, expected):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=0)


@pytest.mark.parametrize("cls", [AvaGrad, AvaGradW])
def test_scaling_loss_and_eps_scales_the_updates(cls) -> None:
    """eta / rms(eta) stays, m scales. A power of two makes it exact."""
    one, many = (trajectory(lambda params, c=c: Scaled(cls(params, eps=0.1 * c), c), 4) for c in (1.0, 8.0))
    start = parameters()
    for p, a, b in zip(start, one, many):
        torch.testing.assert_close(b - p, 8 * (a - p), rtol=1e-9, atol=1e-12)


class Scaled:
    """An optimizer that sees ``c`` times the gradients of the parameters' start."""

    def __init__(self, optimizer, c: float) -> None:
        self.optimizer, self.c, self.step_number = optimizer, c, 0
        self.start = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]

    def step(self) -> None:
        for p, start in zip(self.optimizer.param_groups[0]["params"], self.start):
            p.grad = self.c * gradient(start, self.step_number)
        self.optimizer.step()
        self.step_number += 1


@pytest.mark.parametrize("cls", CLASSES)
def test_the_step_size_has_not_seen_the_gradient(cls) -> None:
    """The last gradient enters through the momentum alone: the step is linear in it, however large."""

    def last(factor: float) -> Tensor:
        p = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer = cls([p], lr=0.1, eps=0.01)
        for step in range(4):
            before = p.detach().clone()
            p.grad = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) * (step + 1) * (factor if step == 3 else 1)
            optimizer.step()
        return p.detach() - before

    zero, one, huge = last(0.0), last(1.0), last(1e6)
    torch.testing.assert_close(huge - zero, 1e6 * (one - zero), rtol=1e-9, atol=0)


def test_groups_have_norms_of_their_own_unless_shared() -> None:
    def split(**options):
        return lambda params: AvaGrad([{"params": params[:2]}, {"params": params[2:]}], **options)

    together = trajectory(AvaGrad, 4)
    apart, shared = trajectory(split(), 4), trajectory(split(shared_norm=True), 4)
    assert not torch.allclose(apart[2], together[2], rtol=1e-5)
    torch.testing.assert_close(shared, together, rtol=1e-12, atol=0)


def test_delayed_adam_is_avagrad_with_gamma_one() -> None:
    class Fixed(AvaGrad):
        def step(self, closure=None):
            self.param_groups[0]["gamma"] = torch.tensor(1.0, dtype=torch.float64)
            return super().step(closure)

    options = {"lr": 0.02, "weight_decay": 0.01}
    torch.testing.assert_close(
        trajectory(lambda p: DelayedAdam(p, **options), 5), trajectory(lambda p: Fixed(p, **options), 5), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("way", ["blocks", "device"])
@pytest.mark.parametrize("cls", CLASSES)
def test_the_algorithm_as_printed(cls, way, monkeypatch) -> None:
    """No bias correction, the norm of the step's own eta, a first step that moves."""
    if way == "device":
        monkeypatch.setattr(avagrad, "_block_size", lambda p: 0)
    expected, state = parameters(), {}
    for step in range(5):
        etas = {}
        for i, p in enumerate(expected):
            g = gradient(p, step)
            m, v = state.get(i, (0.0, torch.zeros_like(p)))
            etas[i] = 1 / (v.sqrt() + 0.05)
            state[i] = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        flat = torch.cat([eta.flatten() for eta in etas.values()])
        rms = 1.0 if cls is DelayedAdam else flat.norm() / math.sqrt(len(flat))
        for i, p in enumerate(expected):
            p.data -= 0.1 * etas[i] / rms * state[i][0].detach()
    found = trajectory(lambda params: cls(params, lr=0.1, eps=0.05, bias_correction=False), 5)
    torch.testing.assert_close(found, [p.detach() for p in expected], rtol=1e-12, atol=1e-12)


def test_always_zero_gradients_rule_the_norm_when_eps_is_small() -> None:
    """The documented limit: a dead element has eta = 1 / eps."""
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = AvaGrad([p], lr=1.0, eps=1e-6)
    for _ in range(4):
        p.grad = torch.tensor([1.0, 1.0, 1.0, 0.0])
        optimizer.step()
    assert float(optimizer.param_groups[0]["gamma"]) == pytest.approx(2e-6, rel=1e-3)
    assert 1 - float(p.detach()[0]) < 1e-5


# ---- what any optimizer must do ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("cls", CLASSES)
def test_a_state_that_was_stored_goes_on_bit_for_bit(cls, dtype) -> None:
    def steps(optimizer, params, numbers):
        for step in numbers:
            for p in params:
                p.grad = gradient(p, step).to(dtype)
            optimizer.step()

    params = parameters(dtype)
    optimizer = cls(params, weight_decay=0.01)
    steps(optimizer, params, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = cls(others)
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    steps(optimizer, params, range(3, 6))
    steps(other, others, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(params, others))
    for p, q in zip(params, others):
        assert optimizer.state[p]["exp_avg"].dtype == other.state[q]["exp_avg"].dtype
        assert all(torch.equal(optimizer.state[p][k], other.state[q][k]) for k in ("exp_avg", "exp_avg_sq"))
    copied = copy.deepcopy(optimizer)
    assert copied.param_groups[0]["gamma"] == optimizer.param_groups[0]["gamma"]


def test_closure() -> None:
    p = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer, calls = AvaGrad([p]), []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0 and calls == [True]
    assert optimizer.step() is None


@pytest.mark.parametrize("cls", CLASSES)
def test_gradients_stay_as_they_are(cls) -> None:
    params = parameters()
    optimizer = cls(params, weight_decay=0.5)
    for step in range(3):
        for p in params:
            p.grad = gradient(p, step)
        before = [p.grad.clone() for p in params]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, before))


def test_parameters_without_a_gradient_are_left_alone_and_do_not_count() -> None:
    used, idle = parameters()[2], parameters()[3]
    optimizer, alone = AvaGrad([used, idle], weight_decay=0.1), parameters()[2]
    before = idle.detach().clone()
    reference = AvaGrad([alone], weight_decay=0.1)
    optimizer.step()
    assert optimizer.param_groups[0]["gamma"] is None
    for step in range(3):
        used.grad, alone.grad = gradient(used, step), gradient(alone, step)
        optimizer.step()
        reference.step()
    assert torch.equal(idle, before) and torch.equal(used, alone) and idle not in optimizer.state


def test_a_step_that_the_scaler_skips_does_not_count() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer, scaler = AvaGrad([p]), torch.amp.GradScaler("cpu")
    for bad in (False, True, False):
        optimizer.zero_grad()
        scaler.scale((p * (math.inf if bad else 1.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.state[p]["step"] == 2 and torch.isfinite(p).all() and not torch.equal(p, torch.ones(3))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_16_bit_parameters_keep_32_bit_moments(dtype, tolerance) -> None:
    """Squares of gradients of 1e-4 are nothing in 16 bits; the path follows that of 32 bits up to rounding."""
    small, exact = (torch.nn.Parameter(torch.linspace(-1, 1, 50).to(kind)) for kind in (dtype, torch.float32))
    optimizers = [AvaGrad([p], lr=0.5, eps=1e-4, weight_decay=1e-4) for p in (small, exact)]
    for step in range(20):
        g = (1e-4 * torch.sin(torch.arange(50.0) + step)).to(dtype)
        small.grad, exact.grad = g, g.float()
        for optimizer in optimizers:
            optimizer.step()
    state = optimizers[0].state[small]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32 and small.dtype == dtype
    assert float(state["exp_avg_sq"].max()) > 0
    torch.testing.assert_close(optimizers[0].param_groups[0]["gamma"], optimizers[1].param_groups[0]["gamma"], rtol=1e-2, atol=0)
    torch.testing.assert_close(small.float(), exact.detach(), rtol=0, atol=tolerance)


def test_the_rate_is_read_at_every_step() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = AvaGrad([p], lr=torch.tensor(0.1))
    for step in range(4):
        optimizer.param_groups[0]["lr"].fill_(0.1 if step < 2 else 0.0)
        before, p.grad = p.detach().clone(), torch.ones(3)
        optimizer.step()
        assert torch.equal(p, before) == (step != 1)
    assert torch.isfinite(optimizer.param_groups[0]["gamma"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr": -0.1}, "lr=-0.1 must be finite and at least 0"),
        ({"eps": 0.0}, "eps=0.0 must be finite and positive"),
        ({"eps": math.nan}, "eps=nan must be finite"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 must be"),
        ({"betas": (0.9, 1.0)}, r"betas=\[0.9, 1.0\] must be two numbers in \[0, 1\)"),
        ({"betas": (0.9,)}, r"betas=\[0.9\] must be two numbers"),
    ],
)
def test_bad_values(options, sentence) -> None:
    with pytest.raises(UserError, match=f"AvaGradW: {sentence}"):
        AvaGradW([torch.nn.Parameter(torch.ones(2))], **options)


def test_complex_and_sparse_are_refused() -> None:
    with pytest.raises(UserError, match=r"AvaGrad takes no complex parameters: give it torch\.view_as_real"):
        AvaGrad([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    dense, embedding = torch.nn.Parameter(torch.ones(2)), torch.nn.Embedding(5, 2, sparse=True)
    optimizer = DelayedAdam([dense, *embedding.parameters()])
    dense.grad = torch.ones(2)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match="DelayedAdam takes no sparse gradients"):
        optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize("name", ["avagrad", "avagradw", "delayed_adam"])
def test_options_are_what_the_classes_take(name) -> None:
    node = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "optimizer" / f"{name}.yaml"))
    assert isinstance(node, dict)
    groups = node.pop("groups")
    cls = getattr(avagrad, node.pop("_target_").rpartition(".")[2])
    options = {k: v for k, v in node.items() if k != "_partial_"}
    optimizer = cls([torch.nn.Parameter(torch.ones(2))], **options)
    assert optimizer.defaults["foreach"] and groups["decay_norm_and_bias"]


def test_import_is_light() -> None:
    heavy = "{'timm', 'pytorch_lightning', 'hydra', 'torchvision', 'omegaconf', 'matplotlib', 'scipy'}"
    code = f"import sys; from papermix.optimizers import AvaGrad; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
