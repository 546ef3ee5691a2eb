"""AvaGrad's step on ResNet-50's parameters beside torch's multi-tensor Adam, and beside loops over the parameters."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from papermix.optimizers import AvaGrad
from scripts.benchmarks.harness import Options, Report, each_round, interleave, timed
from scripts.benchmarks.parts import settle


class Loop:
    """AvaGrad as a loop over parameters, operation for operation as the authors' code.

    Args:
        squares: sum of the squares of the reciprocals of a tensor's elements.
    """

    def __init__(self, params: list[Tensor], squares: Callable[[Tensor], Tensor], lr: float = 0.1, eps: float = 0.1):
        self.params, self.squares, self.lr, self.eps, self.t = params, squares, lr, eps, 0
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in params]
        self.gamma = torch.tensor(eps)

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters."""
        self.t += 1
        total, gamma = torch.zeros((), device=self.params[0].device), float(self.gamma)
        for p, (m, v) in zip(self.params, self.moments):
            g: Any = p.grad
            m.mul_(0.9).add_(g, alpha=0.1)
            root = v.sqrt()
            if self.t > 1:
                denominator = root.div(math.sqrt(1 - 0.999 ** (self.t - 1))).add_(self.eps)
                p.addcdiv_(m, denominator, value=-gamma * self.lr / (1 - 0.9**self.t))
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            total += self.squares(root.div_(math.sqrt(1 - 0.999**self.t)).add_(self.eps))
        self.gamma = (sum(p.numel() for p in self.params) / total).sqrt()


def run(options: Options) -> Report:
    """All on the same parameters and gradients, each on copies of its own."""
    import timm

    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or before)
    device = torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")
    wait = settle(device)
    name = "test_resnet" if options.smoke else "resnet50"
    shapes = [p.shape for p in timm.create_model(name).parameters()]
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(2, *shape, generator=generator) / 100 for shape in shapes]

    def arm(make: Callable[[list[Tensor]], Any], steps: int = 1 if options.smoke else 5) -> Any:
        params: list[Tensor] = []
        for p, g in values:
            params.append(torch.nn.Parameter(p.clone().to(device)))
            params[-1].grad = g.clone().to(device)
        optimizer = make(params)

        def work() -> int:
            for _ in range(steps):
                optimizer.step()
            wait()
            return steps

        return lambda: timed(work)

    arms = {
        "torch.optim.Adam(foreach=True)": arm(lambda params: torch.optim.Adam(params, foreach=True)),
        "AvaGrad": arm(AvaGrad),
        "AvaGrad(foreach=False)": arm(lambda params: AvaGrad(params, foreach=False)),
        "loop as published": arm(lambda params: Loop(params, lambda e: e.norm(-2) ** -2)),
        "loop, norm by squares": arm(lambda params: Loop(params, lambda e: e.pow(-2).sum())),
    }
    timings = interleave(arms, options.repetitions, warmup=0 if options.smoke else 2)
    used = torch.get_num_threads()
    torch.set_num_threads(before)
    count = sum(math.prod(shape) for shape in shapes)
    report = Report("optimizers", "step", {f"{name}, {len(shapes)} tensors": timings})
    adam, ours, _, published, squares = arms
    report.checks = [
        each_round(timings, lambda s: s[ours] / s[adam], "AvaGrad over torch.optim.Adam(foreach=True)", 1.15, "<="),
        each_round(timings, lambda s: s[published] / s[ours], "loop over the parameters, as published, over AvaGrad", 2),
        each_round(timings, lambda s: s[squares] / s[ours], "the same with the norm by squares instead of norm(-2)"),
    ]
    report.notes.append(f"{count / 1e6:.1f} M float32 parameters on {device.type}, {used} threads; five steps in each round")
    return report
