"""Power: what RAPL measures and caps through Linux's powercap files, and a stated model where these are not to be had."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from papermix.errors import UserError

POWERCAP = Path("/sys/class/powercap")


class Rapl:
    """The processor packages' energy counters and power limits (Intel's and AMD's RAPL, as Linux shows them).

    Args:
        zones: folders of the packages, each with ``energy_uj``, ``max_energy_range_uj`` and, for limits,
            ``constraint_0_power_limit_uw``.
    """

    def __init__(self, zones: list[Path]):
        self.zones = zones
        self._ranges = [_number(zone / "max_energy_range_uj") for zone in zones]
        self._last = [_number(zone / "energy_uj") for zone in zones]

    @staticmethod
    def find(root: Path = POWERCAP) -> "Rapl | None":
        """The packages whose counters this user may read; None where there are none."""
        zones = []
        for zone in sorted(root.glob("*rapl:*")):
            try:
                if (zone / "name").read_text().startswith("package"):
                    _number(zone / "energy_uj"), _number(zone / "max_energy_range_uj")
                    zones.append(zone)
            except (OSError, ValueError):
                continue  # readable by root alone on most systems
        return Rapl(zones) if zones else None

    def joules(self) -> float:
        """Energy of all packages since the last call (or since this object was made)."""
        total = 0
        for i, zone in enumerate(self.zones):
            now = _number(zone / "energy_uj")
            used = now - self._last[i]
            # the counter begins anew at its range
            total += used if used >= 0 else used + self._ranges[i]
            self._last[i] = now
        return total * 1e-6

    def _limits(self) -> list[Path]:
        return [zone / "constraint_0_power_limit_uw" for zone in self.zones]

    def cap(self, watts: float) -> None:
        """Limit the power of all packages together. Raises UserError when this user may not."""
        try:
            for limit in self._limits():
                limit.write_text(str(round(1e6 * watts / len(self.zones))))
        except OSError as error:
            raise UserError(
                f"the power limit {error.filename} cannot be written ({error.strerror}): serve as root, or leave caps out and "
                "simulate them with callbacks=[default,alert_simulation]."
            ) from None

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Put the limits back at the end as they were."""
        before = [limit.read_text() for limit in self._limits()]
        try:
            yield
        finally:
            for limit, text in zip(self._limits(), before):
                limit.write_text(text)


def _number(path: Path) -> int:
    return int(path.read_text())


class StatedPower:
    """Power of a machine that measures none: ``idle`` watts, and ``thread`` more for each busy thread.

    Args:
        idle: watts while nothing computes.
        thread: watts of a busy thread.

    Raises:
        UserError: numbers that cannot be.
    """

    def __init__(self, idle: float = 5.0, thread: float = 10.0):
        if not idle >= 0 or not thread > 0:
            raise UserError(f"a power model of idle={idle} and thread={thread} watts cannot be.")
        self.idle, self.thread = idle, thread

    def busy(self, threads: int) -> float:
        """Watts while so many threads compute."""
        return self.idle + self.thread * threads


def cap_slowdown(watts: float, full: float, idle: float = 0.0, exponent: float = 3.0) -> float:
    """Stated model of a power cap: the power above ``idle`` grows as the frequency's cube, time as its inverse.

    Args:
        watts: the cap; at ``full`` nothing is slower.
        full: watts without a cap.
        idle: watts that do not depend on the frequency.
        exponent: of the frequency.

    Returns:
        Factor by which latencies grow, at least 1.

    Raises:
        UserError: a cap that leaves nothing to compute with.
    """
    if not watts > idle >= 0 or not full > idle or not exponent > 0:
        raise UserError(f"a cap of {watts} watts must be above the {idle} of idling, and so must the {full} of full power.")
    return float(max(1.0, ((full - idle) / (watts - idle)) ** (1 / exponent)))
