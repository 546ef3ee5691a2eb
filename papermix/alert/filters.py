"""The two scalar filters of ALERT: the environment's slow-down with its uncertainty, and the share of power that idling draws."""

from papermix.errors import UserError


def _check(name: str, value: float, low: float, high: float = float("inf")) -> None:
    if not low <= value <= high:
        upper = "" if high == float("inf") else f" and at most {high:g}"
        raise UserError(f"{name}={value} must be at least {low:g}{upper}.")


class Slowdown:
    """Kalman filter of one random factor xi that all configurations share: a latency is xi times its mean in quiet.

    The process noise adapts to the corrections made: Q' = max(process, memory Q + (1 - memory) (K y_prev)^2), P = (1 - K) sigma^2
    + Q', K' = P / (P + measurement), mu' = mu + K' y, sigma'^2 = P, where y = ratio - mu and K, y_prev are of the step before.
    The variance kept is the predictive P, not the posterior (1 - K') P.

    Args:
        mean: mu before the first observation.
        variance: sigma^2 before it.
        gain: K before it.
        measurement: R, variance of the measurement.
        process: Q_0, least variance of the process; a smaller one makes a less cautious scheduler.
        memory: a, in [0, 1]: what of Q stays.

    Raises:
        UserError: a constant out of its range.
    """

    def __init__(
        self,
        mean: float = 1.0,
        variance: float = 0.1,
        gain: float = 0.5,
        measurement: float = 0.001,
        process: float = 0.1,
        memory: float = 0.3,
    ) -> None:
        for name, value in (("variance", variance), ("measurement", measurement), ("process", process)):
            _check(f"slowdown.{name}", value, 0.0)
        for name, value in (("gain", gain), ("memory", memory)):
            _check(f"slowdown.{name}", value, 0.0, 1.0)
        if not mean > 0 or measurement + process == 0:
            raise UserError(f"slowdown.mean={mean} must be above 0, and not both of slowdown.measurement and slowdown.process 0.")
        self.mean, self.variance, self.gain = mean, variance, gain
        self.measurement, self.least, self.memory = measurement, process, memory
        self._process, self._innovation = process, 0.0

    @property
    def deviation(self) -> float:
        """Standard deviation of the next slow-down."""
        return self.variance**0.5

    def update(self, ratio: float) -> None:
        """Take in the ratio of a measured latency to the profiled one, never that of a latency cut at a deadline."""
        innovation = ratio - self.mean
        kept = self.memory * self._process + (1 - self.memory) * (self.gain * self._innovation) ** 2
        self._process = max(self.least, kept)
        self.variance = (1 - self.gain) * self.variance + self._process
        self.gain = self.variance / (self.variance + self.measurement)
        self.mean += self.gain * innovation
        self._innovation = innovation


class IdlePower:
    """Kalman filter of phi, the power drawn between an answer and the next input, as part of that drawn while computing.

    W = (M + S) / (M + S + V), M' = (1 - W) (M + S), phi' = phi + W (ratio - phi).

    Args:
        ratio: phi before the first observation.
        variance: M before it.
        process: S.
        measurement: V.

    Raises:
        UserError: a negative constant.
    """

    def __init__(self, ratio: float = 0.25, variance: float = 0.01, process: float = 1e-4, measurement: float = 1e-3) -> None:
        for name, value in (("ratio", ratio), ("variance", variance), ("process", process), ("measurement", measurement)):
            _check(f"idle.{name}", value, 0.0)
        if measurement + process == 0:
            raise UserError("idle.measurement and idle.process must not both be 0.")
        self.ratio, self.variance, self.process, self.measurement = ratio, variance, process, measurement

    def update(self, ratio: float) -> None:
        """Take in idle power over the power of the configuration that ran."""
        spread = self.variance + self.process
        weight = spread / (spread + self.measurement)
        self.variance = (1 - weight) * spread
        self.ratio += weight * (ratio - self.ratio)
