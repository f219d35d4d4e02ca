"""How small a difference a comparison could have shown, and p-values of many comparisons at once."""

import math
from collections.abc import Sequence

import numpy as np

from segattn.errors import SegmentAttentionError
from segattn.evaluation.statistics import CONFIDENCE

__all__ = ["POWER", "detectable_by_mcnemar", "detectable_by_t", "holm"]

POWER = 0.8
_ALPHA = 1 - CONFIDENCE


def detectable_by_mcnemar(discordant: float, items: int) -> float | None:
    """Return the smallest true difference of accuracy that the exact McNemar test shows with 80 % power (alpha .05).

    Exact: the number of discordant items is binomial, and so are, among them, those in favor of one side.

    Args:
        discordant: the share of items that one of the two answers right and the other wrong, as observed; where it is
            smaller than the difference, which cannot be, it is raised to it.
        items: how many are compared.

    Returns:
        The difference, 0 to 1; None where so few items cannot show even a difference of 1.

    Raises:
        SegmentAttentionError: a share outside 0 to 1, or no items.
    """
    from scipy.optimize import brentq

    if not 0 <= discordant <= 1 or items < 1:
        raise SegmentAttentionError(f"got a share of {discordant} of {items} items; expected 0 to 1 of at least one")
    if _power(1.0, 1.0, items) < POWER:
        return None
    return float(brentq(lambda size: _power(size, max(discordant, size), items) - POWER, 1e-9, 1.0, xtol=1e-6))


def _power(size: float, discordant: float, items: int) -> float:
    """The chance that the exact McNemar test has p < .05 where the true difference is `size`."""
    from scipy.stats import binom

    counts = np.arange(items + 1)
    # The largest k with 2 P(X <= k) < alpha: p < alpha iff one side has at most k of the discordant items.
    most = binom.ppf(_ALPHA / 2, counts, 0.5)
    most = np.where(2 * binom.cdf(most, counts, 0.5) < _ALPHA, most, most - 1)
    toward = (discordant + size) / (2 * discordant)
    shown = binom.cdf(most, counts, toward) + binom.cdf(most, counts, 1 - toward)
    return float((binom.pmf(counts, items, discordant) * shown).sum())


def detectable_by_t(error: float, degrees: float, most: float = math.inf) -> float | None:
    """Return the smallest true difference that a two-sided t test shows with 80 % power (alpha .05).

    Args:
        error: the standard error of the difference.
        degrees: its degrees of freedom.
        most: the largest difference there can be.

    Returns:
        The difference in the unit of the error; None where it is larger than `most`.

    Raises:
        SegmentAttentionError: an error or degrees of freedom that are not positive.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    if not (error > 0 and degrees > 0):
        raise SegmentAttentionError(f"got error {error}, {degrees} degrees of freedom; expected positive numbers")
    critical = float(t.ppf(1 - _ALPHA / 2, degrees))
    # The far tail is left out: at 80 % power its chance is below 1e-6.
    ratio = float(brentq(lambda shift: nct.sf(critical, degrees, shift) - POWER, 0.0, 4 * critical + 4, xtol=1e-6))
    return ratio * error if ratio * error <= most else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number: one below .05 or more where nothing is has a chance of 5 % at most.

    Step down: the smallest is multiplied by n, the next by n - 1, and none gets smaller than the one before it.

    Args:
        p_values: 0 to 1, of any number of tests, which may depend on one another.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979) 65-70.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected
