"""Results of several seeds on the same items: what may be said beyond these seeds and beyond these items.

Values lie in a table, a row for each seed and a column for each item. Two things vary at random: another seed would
have given another model, and another sample other items. An interval that resamples only the items is too narrow, and
with two or three seeds so is every bootstrap over seeds: it can draw nothing but the two or three values that it has.

The interval here is the wider of two, both from Student's t:

- over seeds: the means of the seeds are the sample, with (seeds - 1) degrees of freedom;
- over seeds and items at once: the variances of the mean over seeds and over items are added, with the degrees of
  freedom of Satterthwaite. It is the interval of Clark's min F' for two crossed random factors; what seeds and items
  share is counted twice, which errs on the wide side.

The first alone is too narrow where the items differ more than the seeds (coverage down to 82 % with 5 seeds of 60
items), the second alone where few seeds differ much (87 % with 2 seeds); the wider one covered at least 94 % in every
situation that tests/evaluation/test_seeds.py simulates, 2, 3 and 5 seeds of 60 to 1,000 items.

Sources: Clark, "The language-as-fixed-effect fallacy", J. Verbal Learning and Verbal Behavior 12 (1973) 335-359;
Satterthwaite, Biometrics Bulletin 2 (1946) 110-114; Agresti and Min, Statistics in Medicine 24 (2005) 729-740.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from segattn.errors import SegmentAttentionError
from segattn.evaluation.power import detectable_by_mcnemar, detectable_by_t
from segattn.evaluation.statistics import CONFIDENCE, Interval, compare, compare_means, mean_interval, wilson_interval

__all__ = [
    "SeedComparison",
    "accuracy_over_seeds",
    "compare_over_seeds",
    "compare_values_over_seeds",
    "mean_over_seeds",
]

Table: TypeAlias = Sequence[Sequence[float]]
_Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SeedComparison:
    """The difference of two arms, over the same seeds and the same items.

    Attributes:
        difference: mean of the first minus mean of the second, with its 95 % interval.
        p_value: two-sided, of the test that belongs to the interval; for one seed of right and wrong answers the exact
            McNemar test; None for one seed of other numbers.
        seeds: how many; with one, the interval speaks of other items only.
        items: how many.
        of_each_seed: the difference of each seed.
        detectable: the smallest true difference that such a comparison shows with 80 % power (`power`); None where that
            is not known.
    """

    difference: Interval
    p_value: float | None
    seeds: int
    items: int
    of_each_seed: tuple[float, ...]
    detectable: float | None


@dataclass(frozen=True)
class _Spread:
    """How uncertain a mean is: standard error and degrees of freedom of the wider of the two intervals."""

    error: float
    degrees: float

    @property
    def reach(self) -> float:
        from scipy.stats import t

        return float(t.ppf(0.5 + CONFIDENCE / 2, self.degrees)) * self.error if self.error > 0 else 0.0


def compare_over_seeds(first: Table, second: Table) -> SeedComparison:
    """Compare the right and wrong answers of two arms.

    Two items are added to the variance over items, half of one in favor of each arm (Agresti and Min), so that arms
    that agree on every item are not taken for proven equal.

    Args:
        first: a row for each seed, a column for each item; 1 or True is right.
        second: the same seeds and items, in the same order.

    Raises:
        SegmentAttentionError: the tables differ in shape, are empty, or hold something else than 0 and 1.
    """
    one, two = _pair(first, second)
    if not np.isin(np.stack([one, two]), (0, 1)).all():
        raise SegmentAttentionError(
            "expected 0 and 1 (right and wrong); compare other numbers with `compare_values_over_seeds`"
        )
    if len(one) == 1:
        found = compare(list(map(bool, one[0])), list(map(bool, two[0])))
        discordant = float(np.mean(one != two))
        return _of_one_seed(found.difference, found.p_value, one, detectable_by_mcnemar(discordant, one.shape[1]))
    return _of_seeds(one - two, bound=1.0, extra=1.0)


def compare_values_over_seeds(first: Table, second: Table) -> SeedComparison:
    """Compare other numbers of two arms, e.g. losses. Arguments and errors as for `compare_over_seeds`."""
    one, two = _pair(first, second)
    if len(one) == 1:
        return _of_one_seed(compare_means(list(one[0]), list(two[0])).difference, None, one, None)
    return _of_seeds(one - two)


def accuracy_over_seeds(correct: Table) -> Interval:
    """Return the accuracy of one arm over seeds and items, with its 95 % interval.

    One seed has Wilson's interval. Over several, Wilson's formula takes the uncertainty of the mean over seeds and
    items in the place of that of independent answers (an effective sample size, as in surveys: Franco et al., J. Survey
    Statistics and Methodology 7 (2019) 334-364), and is never narrower than for one seed with the same accuracy.

    Raises:
        SegmentAttentionError: no seed, no item, or rows of different length.
    """
    from scipy.stats import norm

    table = _table(correct)
    seeds, items = table.shape
    if seeds == 1:
        return wilson_interval(int(table.sum()), items)
    share = float(table.mean())
    ratio = float(norm.ppf(0.5 + CONFIDENCE / 2)) ** 2 / items
    if 0 < share < 1:
        ratio = max(ratio, _spread(table).reach ** 2 / (share * (1 - share)))
    middle = (share + ratio / 2) / (1 + ratio)
    half = math.sqrt(ratio * share * (1 - share) + ratio**2 / 4) / (1 + ratio)
    # Rounding must not put the interval beside its own value.
    return Interval(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)))


def mean_over_seeds(values: Table) -> Interval:
    """Return the mean of other numbers over seeds and items; one seed: bootstrap over items.

    Raises:
        SegmentAttentionError: no seed, no item, or rows of different length.
    """
    table = _table(values)
    if len(table) == 1:
        return mean_interval(list(table[0]))
    mean, reach = float(table.mean()), _spread(table).reach
    return Interval(mean, mean - reach, mean + reach)


def _of_one_seed(difference: Interval, p_value: float | None, one: _Array, detectable: float | None) -> SeedComparison:
    return SeedComparison(difference, p_value, 1, one.shape[1], (difference.value,), detectable)


def _of_seeds(differences: _Array, bound: float = math.inf, extra: float = 0.0) -> SeedComparison:
    from scipy.stats import t

    mean, spread = float(differences.mean()), _spread(differences, extra)
    reach = spread.reach
    if spread.error > 0:
        p_value = float(2 * t.sf(abs(mean) / spread.error, spread.degrees))
    else:
        p_value = 1.0 if mean == 0 else 0.0
    return SeedComparison(
        difference=Interval(mean, max(-bound, mean - reach), min(bound, mean + reach)),
        p_value=p_value,
        seeds=differences.shape[0],
        items=differences.shape[1],
        of_each_seed=tuple(float(value) for value in differences.mean(axis=1)),
        detectable=detectable_by_t(spread.error, spread.degrees, bound) if spread.error > 0 else None,
    )


def _spread(table: _Array, extra: float = 0.0) -> _Spread:
    """Standard error and degrees of freedom of the mean: those of the wider interval.

    Args:
        table: (seeds, items), at least two seeds.
        extra: two items are added whose squares sum up to this (0: none).
    """
    seeds, items = table.shape
    of_seeds = float(table.mean(axis=1).var(ddof=1)) / seeds
    means = table.mean(axis=0)
    if extra:
        count = items + 2
        of_items = (float((means**2).sum() + extra) / count - float(means.sum() / count) ** 2) / count
    else:
        of_items = float(means.var(ddof=1)) / items if items > 1 else 0.0
    both = of_seeds + of_items
    if both == 0:
        return _Spread(0.0, seeds - 1)
    squares = of_seeds**2 / (seeds - 1) + of_items**2 / max(items - 1, 1)
    crossed = _Spread(math.sqrt(both), both**2 / squares)
    return max(_Spread(math.sqrt(of_seeds), seeds - 1), crossed, key=lambda spread: spread.reach)


def _pair(first: Table, second: Table) -> tuple[_Array, _Array]:
    one, two = _table(first), _table(second)
    if one.shape != two.shape:
        raise SegmentAttentionError(
            f"got {one.shape} and {two.shape} (seeds, items); expected the same seeds and items in the same order"
        )
    return one, two


def _table(rows: Table) -> _Array:
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or 0 in lengths:
        raise SegmentAttentionError(
            f"got {len(rows)} seeds with {sorted(lengths)} items; expected at least one seed, each with the same items"
        )
    return np.asarray(rows, dtype=np.float64)
