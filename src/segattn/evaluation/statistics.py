"""What a number of samples allows to say: intervals for one result, tests for the difference of two."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segattn.errors import SegmentAttentionError

__all__ = ["Comparison", "Interval", "compare", "compare_means", "mcnemar", "mean_interval", "wilson_interval"]

CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Comparison:
    """The difference of two results on the same samples.

    Attributes:
        difference: mean of the first minus mean of the second, with its 95 % paired bootstrap interval.
        p_value: exact McNemar test for right and wrong answers; None for other numbers.
        samples: how many pairs.
        shown: whether a difference is shown: the interval leaves out 0 and, where there is one, p < 0.05.
    """

    difference: Interval
    p_value: float | None
    samples: int
    shown: bool

    @property
    def verdict(self) -> str:
        """One phrase for a table."""
        if not self.shown:
            return "no difference shown"
        return "the first is higher" if self.difference.value > 0 else "the second is higher"


def wilson_interval(successes: int, total: int) -> Interval:
    """Return a proportion with its Wilson score interval.

    Raises:
        SegmentAttentionError: no samples, or more successes than samples.
    """
    from scipy.stats import binomtest

    if total <= 0 or not 0 <= successes <= total:
        raise SegmentAttentionError(
            f"got {successes} successes of {total}; expected 0 <= successes <= total, total > 0"
        )
    bounds = binomtest(successes, total).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / total, float(bounds.low), float(bounds.high))


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Return a mean with its percentile bootstrap interval.

    Raises:
        SegmentAttentionError: no values.
    """
    if not values:
        raise SegmentAttentionError("got no values; expected at least one")
    return _bootstrap(np.asarray(values, dtype=np.float64), seed)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Return the two-sided p-value of the exact McNemar test on paired right and wrong answers.

    Raises:
        SegmentAttentionError: the lengths differ.
    """
    from scipy.stats import binomtest

    _check_paired(first, second)
    only_first = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    only_second = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    discordant = only_first + only_second
    return 1.0 if discordant == 0 else float(binomtest(only_first, discordant).pvalue)


def compare(first: Sequence[bool], second: Sequence[bool], seed: int = 0) -> Comparison:
    """Compare the right and wrong answers of two models (or masks) to the same samples, in the same order.

    Raises:
        SegmentAttentionError: the lengths differ, or there are no samples.
    """
    p_value = mcnemar(first, second)
    numbers = [[float(value) for value in values] for values in (first, second)]
    found = compare_means(numbers[0], numbers[1], seed)
    return Comparison(found.difference, p_value, found.samples, found.shown and p_value < 1 - CONFIDENCE)


def compare_means(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Comparison:
    """Compare paired numbers, e.g. the answer losses of two models on the same samples.

    Raises:
        SegmentAttentionError: the lengths differ, or there are no samples.
    """
    _check_paired(first, second)
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    interval = _bootstrap(difference, seed)
    return Comparison(interval, None, len(first), shown=interval.low > 0 or interval.high < 0)


def _check_paired(first: Sequence[float], second: Sequence[float]) -> None:
    if len(first) != len(second) or not first:
        raise SegmentAttentionError(
            f"got {len(first)} and {len(second)} results; expected the same samples, at least one, in the same order"
        )


def _bootstrap(values: "np.ndarray[tuple[int], np.dtype[np.float64]]", seed: int) -> Interval:
    """Percentile bootstrap of the mean. Resamples in blocks: one big index table would take gigabytes."""
    generator = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    block = max(1, 2_000_000 // len(values))
    for start in range(0, RESAMPLES, block):
        count = min(block, RESAMPLES - start)
        means[start : start + count] = values[generator.integers(len(values), size=(count, len(values)))].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    mean = float(values.mean())
    # Rounding in the resampled means must not put the interval beside its own mean.
    low, high = (mean if math.isclose(bound, mean, abs_tol=1e-12) else float(bound) for bound in (low, high))
    return Interval(mean, low, high)
