"""Intervals and tests against closed forms and published numbers."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segattn import SegmentAttentionError
from segattn.evaluation import compare, compare_means, mean_interval, wilson_interval
from segattn.evaluation.statistics import mcnemar

Z = 1.959963984540054


@settings(deadline=None)
@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_the_closed_form(counts):
    hits, total = counts
    share = hits / total
    middle = (share + Z * Z / (2 * total)) / (1 + Z * Z / total)
    half = Z / (1 + Z * Z / total) * math.sqrt(share * (1 - share) / total + Z * Z / (4 * total * total))
    got = wilson_interval(hits, total)
    assert got.value == share
    assert got.low == pytest.approx(max(middle - half, 0), abs=1e-9)
    assert got.high == pytest.approx(min(middle + half, 1), abs=1e-9)


@settings(deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 5))
def test_mcnemar_is_a_two_sided_coin_test_on_the_discordant_pairs(only_first, only_second, both):
    first = [True] * only_first + [False] * only_second + [True] * both
    second = [False] * only_first + [True] * only_second + [True] * both
    if not first:
        return
    n, k = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))


def test_a_clear_difference_is_shown_and_its_direction():
    better, worse = [True] * 90 + [False] * 10, [True] * 60 + [False] * 40
    found = compare(better, worse)
    assert found.difference.value == pytest.approx(0.3)
    # Differences are 1 for 30 and 0 for 70 samples: the normal interval of such a mean is 0.3 +- 1.96 * 0.0458.
    assert found.difference.low == pytest.approx(0.3 - Z * math.sqrt(0.21 / 100), abs=0.02)
    assert found.difference.high == pytest.approx(0.3 + Z * math.sqrt(0.21 / 100), abs=0.02)
    assert found.p_value == pytest.approx(2 / 2**30)
    assert (found.shown, found.verdict) == (True, "the first is higher")
    assert compare(worse, better).verdict == "the second is higher"


def test_chance_differences_are_not_shown():
    first, second = [True, False] * 20, [False, True] * 20
    found = compare(first, second)
    assert found.difference.value == 0
    assert (found.shown, found.verdict, found.p_value) == (False, "no difference shown", 1.0)
    # Five against none is p = 1/16: not shown, although no bootstrap resample of it lies below zero.
    few = compare([True] * 5 + [False] * 5, [False] * 10)
    assert few.difference.low > 0
    assert few.p_value == pytest.approx(1 / 16)
    assert few.verdict == "no difference shown"


def test_equal_results_show_no_difference():
    found = compare_means([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    assert (found.difference.low, found.difference.high, found.shown) == (0, 0, False)
    assert found.p_value is None


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(100, 300), st.floats(-5, 5), st.floats(0.1, 5))
def test_the_bootstrap_interval_of_normal_values_is_the_normal_one(seed, count, centre, spread):
    generator = random.Random(seed)
    values = [generator.gauss(centre, spread) for _ in range(count)]
    mean = sum(values) / count
    error = math.sqrt(sum((value - mean) ** 2 for value in values)) / count
    got = mean_interval(values)
    assert got.value == pytest.approx(mean)
    assert got.low == pytest.approx(mean - Z * error, abs=0.25 * error)
    assert got.high == pytest.approx(mean + Z * error, abs=0.25 * error)


def test_the_bootstrap_of_skewed_values_is_their_own_distribution():
    """One of 30 values is 1: a resample holds it k times with binomial probability, never less than none."""
    got = mean_interval([0.0] * 29 + [1.0])
    below = [sum(math.comb(30, i) * 29 ** (30 - i) / 30**30 for i in range(k + 1)) for k in range(30)]
    assert got.low == 0
    assert got.high == pytest.approx(next(k for k, share in enumerate(below) if share >= 0.975) / 30)


def test_a_seed_gives_the_same_interval_again():
    values = [math.sqrt(value) for value in range(20)]
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_bad_input_is_refused():
    with pytest.raises(SegmentAttentionError, match="3 successes of 2"):
        wilson_interval(3, 2)
    with pytest.raises(SegmentAttentionError, match="0 successes of 0"):
        wilson_interval(0, 0)
    with pytest.raises(SegmentAttentionError, match="no values"):
        mean_interval([])
    with pytest.raises(SegmentAttentionError, match="1 and 2 results"):
        compare([True], [True, False])
    with pytest.raises(SegmentAttentionError, match="0 and 0 results"):
        compare_means([], [])
