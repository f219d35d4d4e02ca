"""Detectable differences against counting and simulation; Holm's correction against published steps."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from segattn import SegmentAttentionError
from segattn.evaluation.power import detectable_by_mcnemar, detectable_by_t, holm
from segattn.evaluation.statistics import mcnemar


def test_the_detectable_difference_of_seven_items_is_counted():
    """All discordant items on one side: p < .05 from 6 on (2/2^6), so 6 of 7 must be discordant."""
    size = detectable_by_mcnemar(0.0, 7)
    assert size**7 + 7 * size**6 * (1 - size) == pytest.approx(0.8, abs=1e-4)
    assert detectable_by_mcnemar(0.0, 5) is None


@pytest.mark.parametrize(("discordant", "items"), [(0.1, 300), (0.4, 80)])
def test_mcnemar_shows_the_detectable_difference_four_times_of_five(discordant, items):
    size = detectable_by_mcnemar(discordant, items)
    generator = np.random.default_rng(0)
    shares = [(discordant + size) / 2, (discordant - size) / 2, 1 - discordant]
    shown = 0
    for only_first, only_second, _ in generator.multinomial(items, shares, size=1500):
        first = [True] * only_first + [False] * only_second
        shown += mcnemar(first, [not right for right in first]) < 0.05
    assert shown / 1500 == pytest.approx(0.8, abs=0.035)
    # The usual approximation (Connor, Biometrics 43 (1987) 207-211) is near.
    approximate = (1.96 * math.sqrt(discordant) + 0.8416 * math.sqrt(discordant - size**2)) / math.sqrt(items)
    assert size == pytest.approx(approximate, rel=0.15)


def test_a_t_test_shows_the_detectable_difference_four_times_of_five():
    generator = np.random.default_rng(0)
    size = detectable_by_t(1 / math.sqrt(3), 2)
    samples = generator.normal(size, 1, (4000, 3))
    assert (stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.025)
    # With many degrees of freedom it is the normal one: 1.96 + 0.84 standard errors.
    assert detectable_by_t(1.0, 10**6) == pytest.approx(1.95996 + 0.84162, abs=1e-3)
    assert detectable_by_t(1.0, 2, most=1.0) is None


def test_what_cannot_be_computed_is_refused():
    with pytest.raises(SegmentAttentionError, match="of 10 items"):
        detectable_by_mcnemar(1.5, 10)
    with pytest.raises(SegmentAttentionError, match="error 0"):
        detectable_by_t(0, 2)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closure_of_bonferroni(p_values):
    """The corrected p is the largest Bonferroni p of all sets of hypotheses that the one is in."""
    places = range(len(p_values))
    for place, corrected in zip(places, holm(p_values), strict=True):
        sets = (one for size in places for one in itertools.combinations(places, size + 1) if place in one)
        expected = max(min(1.0, len(one) * min(p_values[other] for other in one)) for one in sets)
        assert corrected == pytest.approx(expected)
