"""Grouped slices compute the same pairs, and the common keys of short ones in one call."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segattn
from attention.test_slices import covered
from oracle import loop_attention, loop_mask
from segattn.attention import grouping
from segattn.attention.slice import Slice
from segattn.attention.slices import plan_slices
from segattn.ranges import visible_ranges
from strategies import padded_batches


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr(grouping, "GROUP_QUERIES", 7)


def plan_of(rows, **options):
    return plan_slices(visible_ranges(torch.tensor(rows), **options))


def test_turns_share_a_slice_over_what_they_all_see():
    row = [0] * 9 + [-1] * 2 + [1] * 3 + [-1] * 2
    assert plan_of([row]).slices == (
        Slice((0, 1), (0, 9), (0, 9), "full"),
        Slice((0, 1), (9, 16), (0, 9), "full"),
        Slice((0, 1), (9, 11), (9, 11), "causal"),
        Slice((0, 1), (11, 14), (9, 14), "full"),
        Slice((0, 1), (14, 16), (9, 16), "causal"),
    )


def test_a_long_slice_stays_as_it_is():
    row = [0] * 9 + [1] * 8 + [-1] * 3
    assert [piece.queries for piece in plan_of([row]).slices] == [(0, 9), (9, 17), (17, 20)]


@settings(deadline=None, max_examples=200)
@given(padded_batches(max_length=24), st.one_of(st.none(), st.integers(1, 7)))
def test_each_visible_pair_is_computed_once(batch, window):
    rows, reals = batch
    ranges = visible_ranges(torch.tensor(rows), torch.tensor(reals), sliding_window=window)
    plan = plan_slices(ranges)
    want = loop_mask(rows, reals=reals, window=window)[:, 0].long()
    assert torch.equal(covered(plan.slices, plan.shape), want)
    assert torch.equal(covered(plan.squares, plan.shape), want)


@settings(deadline=None, max_examples=40)
@given(padded_batches(max_length=24), st.integers(0, 99))
def test_attention_over_groups_equals_the_loop(batch, seed):
    rows, reals = batch
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(len(rows), 2, len(rows[0]), 8, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    got = segattn.segment_attention(query, key, value, torch.tensor(rows), torch.tensor(reals), backend="sliced")
    torch.testing.assert_close(got, loop_attention(query, key, value, loop_mask(rows, reals=reals)))
