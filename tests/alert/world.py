"""A machine that takes no time: a clock that stands still, networks that move it on, RAPL as files."""

from pathlib import Path

import torch
from torch import Tensor, nn

from papermix.alert.profile import Profile, at_settings
from papermix.alert.stream import Clock

# the card's three networks and three power settings, seconds and watts
STATED = {"small": ([0.03], [0.6]), "medium": ([0.06], [0.7]), "large": ([0.1], [0.76])}
POWERS = [("15 W", 15.0, 1.8), ("25 W", 25.0, 1.25), ("40 W", 40.0, 1.0)]


def card() -> Profile:
    """The card's profile."""
    return Profile(at_settings(STATED, POWERS), 0.1, "40 W", 0.25)


class Still(Clock):
    """Time goes on when it is told to."""

    def __init__(self) -> None:
        self.time, self.slept, self.factor = 0.0, 0.0, 1.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.time += seconds

    def compute(self, seconds: float) -> None:
        """Work that takes so long in quiet on one thread."""
        self.time += self.factor * seconds / torch.get_num_threads()


class Slow(nn.Module):
    """A network that says ``x`` itself is the class, up to ``wrong`` of its exits something else; each exit takes its time."""

    def __init__(self, clock: Still, seconds: list[float]):
        super().__init__()
        self.clock, self.seconds = clock, seconds
        if len(seconds) > 1:
            self.num_exits = len(seconds)
            self.step = self._step

    def start(self, x: Tensor) -> "State":
        return State(0, x)

    def _step(self, state: "State") -> tuple[Tensor, "State"]:
        self.clock.compute(self.seconds[state.done])
        return nn.functional.one_hot(state.x, 4).float(), State(state.done + 1, state.x)

    def forward_exits(self, x: Tensor) -> list[Tensor]:
        return [nn.functional.one_hot(x, 4).float()] * len(self.seconds)

    def forward(self, x: Tensor) -> Tensor:
        self.clock.compute(self.seconds[0])
        return nn.functional.one_hot(x, 4).float()


class State:
    """How far it has come."""

    def __init__(self, done: int, x: Tensor):
        self.done, self.x = done, x


def zone(root: Path, name: str, energy: int, label: str = "package-0") -> Path:
    """A zone of powercap as Linux writes it."""
    made = root / name
    made.mkdir(parents=True)
    for file, text in (
        ("name", label),
        ("energy_uj", energy),
        ("max_energy_range_uj", 1000),
        ("constraint_0_power_limit_uw", 65000000),
    ):
        (made / file).write_text(f"{text}\n")
    return made
