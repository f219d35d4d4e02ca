"""Slices cover what the queries see, each pair once, in few pieces."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracle import loop_mask
from segattn.attention.slice import Slice
from segattn.attention.slices import plan_slices
from segattn.ranges import VisibleRanges, visible_ranges
from strategies import padded_batches


def planned(rows, reals=None, **options):
    return plan_slices(visible_ranges(torch.tensor(rows), None if reals is None else torch.tensor(reals), **options))


def covered(slices, shape):
    """How often each pair is computed, from the definition of the kinds, pair by pair."""
    count = torch.zeros(shape, dtype=torch.int64)
    for piece in slices:
        (first, end), (start, stop) = piece.queries, piece.keys
        for query in range(first, end):
            for key in range(start, stop):
                behind_the_end = (end - 1) - query
                seen = {
                    "full": True,
                    "causal": key < stop - behind_the_end,
                    "edge": key - start >= query - first,
                }[piece.kind]
                count[slice(*piece.rows), query, key] += int(seen)
    return count


def test_the_drawing_in_the_module():
    plan = planned([[0, 0, 0, 0, -1, -1, -1, 1, 1, 1]])
    assert plan.slices == (
        Slice((0, 1), (0, 4), (0, 4), "full"),
        Slice((0, 1), (4, 7), (0, 7), "causal"),
        Slice((0, 1), (7, 10), (0, 10), "full"),
    )
    assert plan.pairs() == 4 * 4 + (5 + 6 + 7) + 3 * 10


def test_a_window_has_an_edge():
    plan = planned([[-1] * 6], sliding_window=3)
    assert plan.slices == (
        Slice((0, 1), (0, 3), (0, 3), "causal"),
        Slice((0, 1), (3, 6), (3, 6), "causal"),
        Slice((0, 1), (3, 5), (1, 3), "edge"),
    )


@settings(deadline=None, max_examples=200)
@given(padded_batches(max_length=14), st.one_of(st.none(), st.integers(1, 7)), st.data())
def test_each_visible_pair_is_computed_once(batch, window, data):
    rows, reals = batch
    queries = data.draw(st.integers(1, len(rows[0])))
    plan = planned(rows, reals, query_length=queries, sliding_window=window)
    want = loop_mask(rows, reals=reals, window=window, queries=queries)
    assert torch.equal(covered(plan.slices, plan.shape), want[:, 0].long())
    assert torch.equal(plan.to_mask(), want)
    assert plan.pairs() == int(want.sum())
    assert torch.equal(covered(plan.squares, plan.shape), want[:, 0].long())
    for piece in plan.squares:
        size = (piece.queries[1] - piece.queries[0], piece.keys[1] - piece.keys[0])
        assert piece.kind == "full" or size[0] == size[1]
    blind = torch.zeros(plan.shape[:2], dtype=torch.bool)
    for block_rows, block_queries in plan.blind:
        blind[slice(*block_rows), slice(*block_queries)] = True
    assert torch.equal(blind, ~want[:, 0].any(-1))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=9))
def test_any_ranges_are_covered(ends):
    start = torch.tensor([[min(pair) for pair in ends]])
    stop = torch.tensor([[max(pair) for pair in ends]])
    plan = plan_slices(VisibleRanges(start, stop, 6))
    key = torch.arange(6)
    want = (key >= start[..., None]) & (key < stop[..., None])
    assert torch.equal(covered(plan.slices, plan.shape), want.long())


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ([[-1] * 50], 1),
        ([[0] * 50], 1),
        ([[0] * 10 + [1] * 35 + [-1] * 5], 3),
        ([([2 * turn] * 6 + [-1] * 4) for turn in range(3)], 3 * 2),
        ([[0] * 10 + [-1] * 5] * 4, 2),  # equal rows share their slices
    ],
)
def test_there_are_as_few_as_runs(rows, count):
    if len(rows) == 3:
        rows = [[0] * 6 + [-1] * 4, [-1] * 4 + [0] * 6, [0] * 10]
        count = 2 + 2 + 1
    assert len(planned(rows).slices) == count
