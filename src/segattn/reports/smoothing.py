"""Where a noisy curve tends."""

import math

__all__ = ["Smoothed"]


class Smoothed:
    """A mean that forgets: each new value counts half. What is not finite is passed on, and forgotten at once."""

    def __init__(self, weight: float = 0.5) -> None:
        self.weight = weight
        self._mean: float | None = None

    def add(self, value: float) -> float:
        """Return the mean with this value."""
        if not math.isfinite(value):
            self._mean = None
            return value
        self._mean = value if self._mean is None else self._mean + self.weight * (value - self._mean)
        return self._mean
