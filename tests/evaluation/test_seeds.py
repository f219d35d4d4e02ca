"""Intervals over seeds and items: hand-computed values, scipy, and how often they cover the truth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from segattn import SegmentAttentionError
from segattn.evaluation import compare, wilson_interval
from segattn.evaluation.seeds import (
    accuracy_over_seeds,
    compare_over_seeds,
    compare_values_over_seeds,
    mean_over_seeds,
)


def drawn(generator, seeds, items, means, item, own_item, seed):
    """Right and wrong answers of arms, and their true accuracies.

    A latent normal number for each answer: what the arm knows (`means`), how hard the item is for every arm (spread
    `item`) and for this one (`own_item`), how well the seed came out (`seed`), and a rest of spread 1.
    """
    common = generator.normal(0, item, items)
    tables = [
        mean
        + common
        + generator.normal(0, own_item, items)
        + generator.normal(0, seed, (seeds, 1))
        + generator.normal(size=(seeds, items))
        > 0
        for mean in means
    ]
    total = math.sqrt(1 + item**2 + own_item**2 + seed**2)
    return tables, [float(stats.norm.cdf(mean / total)) for mean in means]


# (seeds, items, means of both arms, spreads: item, own_item, seed)
SITUATIONS = [
    (2, 60, (0.5, 0.3), (1.0, 0.3, 0.1)),
    (2, 200, (0.5, 0.3), (0.3, 1.0, 0.3)),
    (2, 1000, (0.5, 0.3), (1.0, 0.3, 0.3)),
    (3, 60, (0.5, 0.3), (1.0, 0.3, 0.0)),
    (3, 60, (0.5, 0.3), (0.3, 1.0, 0.1)),
    (3, 60, (2.4, 2.2), (1.0, 0.3, 0.1)),
    (3, 200, (0.5, 0.3), (1.0, 0.3, 0.1)),
    (3, 200, (0.0, 0.0), (0.3, 1.0, 0.3)),
    (3, 200, (2.4, 2.2), (1.0, 1.0, 0.3)),
    (3, 1000, (0.5, 0.3), (1.0, 0.3, 0.1)),
    (3, 1000, (0.5, 0.3), (0.3, 1.0, 0.1)),
    (3, 1000, (0.5, 0.3), (0.3, 0.3, 1.0)),
    (5, 60, (0.5, 0.3), (0.3, 1.0, 0.1)),
    (5, 1000, (0.5, 0.3), (1.0, 0.3, 0.3)),
]


def coverage(rounds, seeds, items, means, spreads):
    """How often the intervals of the difference and of the first accuracy hold the truth."""
    generator = np.random.default_rng(20)
    differences = accuracies = 0
    for _ in range(rounds):
        (first, second), truths = drawn(generator, seeds, items, means, *spreads)
        found = compare_over_seeds(first.astype(float), second.astype(float)).difference
        differences += found.low <= truths[0] - truths[1] <= found.high
        accuracy = accuracy_over_seeds(first.astype(float))
        accuracies += accuracy.low <= truths[0] <= accuracy.high
    return differences / rounds, accuracies / rounds


# Nominal 95 %. Found with 2,000 rounds: .941 to .998 (differences), .940 to .993 (accuracies).
@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "items", "means", "spreads"), SITUATIONS)
def test_intervals_cover_the_truth_as_often_as_they_say(seeds, items, means, spreads):
    assert min(coverage(2000, seeds, items, means, spreads)) >= 0.93


def test_intervals_over_three_seeds_cover_the_truth():
    assert min(coverage(400, 3, 200, (0.5, 0.3), (1.0, 0.3, 0.3))) >= 0.93


def test_no_effect_is_rarely_shown():
    generator = np.random.default_rng(1)
    rounds = 400
    wrong = 0
    for _ in range(rounds):
        (first, second), _ = drawn(generator, 3, 120, (0.4, 0.4), 1.0, 0.3, 0.2)
        wrong += compare_over_seeds(first.astype(float), second.astype(float)).p_value < 0.05
    assert wrong / rounds <= 0.07


def test_the_interval_over_seeds_and_items_is_the_one_computed_by_hand():
    """Seeds that agree, items that differ: the variance over seeds is 0, so the items decide."""
    first = [[2.0, 4.0, 6.0, 8.0], [2.0, 4.0, 6.0, 8.0]]
    second = [[0.0] * 4] * 2
    found = compare_values_over_seeds(first, second)
    # Mean 5, variance over items 20/3, standard error sqrt(20/12) = 1.29099, 3 degrees of freedom: t = 3.18245.
    assert found.difference.value == 5
    assert found.difference.low == pytest.approx(5 - 3.18245 * 1.29099, abs=1e-4)
    assert found.difference.high == pytest.approx(5 + 3.18245 * 1.29099, abs=1e-4)
    assert found.p_value == pytest.approx(2 * stats.t.sf(5 / 1.29099, 3), rel=1e-4)
    assert (found.seeds, found.items, found.of_each_seed) == (2, 4, (5.0, 5.0))


def test_both_variances_add_up_with_the_degrees_of_satterthwaite():
    table = np.asarray([[0.0, 1.0, 5.0], [1.0, 2.0, 6.0], [0.5, 1.5, 5.5]])
    # Means of seeds 2, 3, 2.5 (variance .25); of items .5, 1.5, 5.5 (variance 7).
    of_seeds, of_items = 0.25 / 3, 7 / 3
    degrees = (of_seeds + of_items) ** 2 / (of_seeds**2 / 2 + of_items**2 / 2)
    found = mean_over_seeds(table)
    reach = stats.t.ppf(0.975, degrees) * math.sqrt(of_seeds + of_items)
    assert (found.low, found.high) == pytest.approx((2.5 - reach, 2.5 + reach))


def test_where_seeds_differ_most_the_interval_is_students_over_seeds():
    """Items that agree in every seed: what is left is a t test over the seeds, as scipy has it."""
    of_each = [0.3, -0.1, 0.5]
    first = [[value] * 10 for value in of_each]
    found = compare_values_over_seeds(first, [[0.0] * 10] * 3)
    expected = stats.ttest_1samp(of_each, 0)
    assert found.p_value == pytest.approx(expected.pvalue)
    bounds = expected.confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((bounds.low, bounds.high))


def test_two_items_are_added_for_right_and_wrong_answers():
    """Arms that agree on all of 48 items in both seeds: of 50 items, one is discordant, half of it for each arm."""
    found = compare_over_seeds([[1.0] * 48] * 2, [[1.0] * 48] * 2)
    reach = stats.t.ppf(0.975, 47) * math.sqrt(1 / 50 / 50)
    assert (found.difference.value, found.p_value) == (0, 1)
    assert (found.difference.low, found.difference.high) == pytest.approx((-reach, reach))


def test_one_seed_is_the_paired_comparison_of_items():
    first, second = [True] * 30 + [False] * 30, [True] * 15 + [False] * 45
    found, expected = compare_over_seeds([first], [second]), compare(first, second)
    assert (found.difference, found.p_value, found.seeds) == (expected.difference, expected.p_value, 1)
    assert accuracy_over_seeds([first]) == wilson_interval(30, 60)
    assert compare_values_over_seeds([[0.1, 0.3]], [[0.2, 0.2]]).p_value is None


tables = st.integers(2, 4).flatmap(
    lambda seeds: st.integers(2, 12).flatmap(
        lambda items: st.lists(
            st.lists(st.integers(0, 1), min_size=items, max_size=items), min_size=2 * seeds, max_size=2 * seeds
        )
    )
)


@settings(deadline=None, max_examples=60)
@given(tables)
def test_what_holds_for_any_answers(rows):
    first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    found, mirrored = compare_over_seeds(first, second), compare_over_seeds(second, first)
    assert -1 <= found.difference.low <= found.difference.value <= found.difference.high <= 1
    assert mirrored.difference.value == pytest.approx(-found.difference.value)
    assert mirrored.p_value == pytest.approx(found.p_value)
    # The test and the interval say the same.
    if found.p_value < 0.0499:
        assert found.difference.low > 0 or found.difference.high < 0
    if found.p_value > 0.0501:
        assert found.difference.low <= 0 <= found.difference.high
    # No order of seeds or items matters.
    turned = compare_over_seeds([row[::-1] for row in first[::-1]], [row[::-1] for row in second[::-1]])
    assert turned.difference.high == pytest.approx(found.difference.high)
    accuracy = accuracy_over_seeds(first)
    assert 0 <= accuracy.low <= accuracy.value <= accuracy.high <= 1
    hits = sum(map(sum, first))
    if hits % len(first) == 0:
        single = wilson_interval(hits // len(first), len(first[0]))
        assert accuracy.low <= single.low + 1e-9
        assert accuracy.high >= single.high - 1e-9


def test_bad_tables_are_refused():
    with pytest.raises(SegmentAttentionError, match="same seeds and items"):
        compare_over_seeds([[1, 0]], [[1, 0], [1, 1]])
    with pytest.raises(SegmentAttentionError, match="each with the same items"):
        compare_over_seeds([[1, 0], [1]], [[1, 0], [1]])
    with pytest.raises(SegmentAttentionError, match="0 seeds"):
        mean_over_seeds([])
    with pytest.raises(SegmentAttentionError, match="expected 0 and 1"):
        compare_over_seeds([[0.5]], [[1.0]])
