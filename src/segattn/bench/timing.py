"""Contestants that take turns in one process, so that a slow minute of the machine hits all of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["QUICK", "Effort", "Run", "Spread", "alternate", "seconds_of", "spread", "synchronize"]

Run = Callable[[], Any]


@dataclass(frozen=True)
class Spread:
    """A median with the middle half of what was measured around it."""

    median: float
    low: float
    high: float
    rounds: int

    def to_dict(self) -> dict[str, float]:
        """Return the fields, for JSON."""
        return {"median": self.median, "low": self.low, "high": self.high, "rounds": self.rounds}


@dataclass(frozen=True)
class Effort:
    """How long one cell is measured.

    Attributes:
        seconds: after this no new round begins, unless there are fewer than `least`.
        least: rounds at least.
        most: rounds at most.
        warm_up: run a round that does not count first.
    """

    seconds: float = 5.0
    least: int = 3
    most: int = 30
    warm_up: bool = True


QUICK = Effort(seconds=0.0, least=2, most=2, warm_up=False)
"""Enough to see that something runs; the figures mean nothing."""


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles; the quartiles never lie outside of what was measured."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high, len(values))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(contestants: Mapping[str, Run], effort: Effort, device: torch.device) -> dict[str, list[float]]:
    """Run the contestants round by round; return the seconds of each, one figure per round.

    Each round begins with the next contestant, so that none always runs after the same other one.
    """
    names = list(contestants)
    times: dict[str, list[float]] = {name: [] for name in names}
    if effort.warm_up:
        for run in contestants.values():
            run()
    began = time.perf_counter()
    for done in range(effort.most):
        if done >= effort.least and time.perf_counter() - began > effort.seconds:
            break
        first = done % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds_of(contestants[name], device))
    return times


def seconds_of(run: Run, device: torch.device) -> float:
    """Return the wall-clock seconds of one call, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start
