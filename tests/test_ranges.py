"""Visible ranges against the double loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segattn
from oracle import loop_mask
from segattn.ranges import bisected_ranges, visible_ranges
from strategies import batches, padded_batches


def as_mask(ranges):
    key = torch.arange(ranges.keys)
    return ((key >= ranges.start[..., None]) & (key < ranges.stop[..., None]))[:, None]


def test_the_drawing_in_the_module():
    ranges = visible_ranges(torch.tensor([0, 0, 0, -1, -1]))
    assert ranges.start.tolist() == [[0, 0, 0, 0, 0]]
    assert ranges.stop.tolist() == [[3, 3, 3, 4, 5]]
    assert ranges.pairs() == 18


@settings(deadline=None, max_examples=150)
@given(padded_batches(), st.one_of(st.none(), st.integers(1, 6)), st.data())
def test_equal_the_loop_with_padding_and_windows(batch, window, data):
    rows, reals = batch
    queries = data.draw(st.integers(1, len(rows[0])))
    ranges = visible_ranges(torch.tensor(rows), torch.tensor(reals), query_length=queries, sliding_window=window)
    assert torch.equal(as_mask(ranges), loop_mask(rows, reals=reals, window=window, queries=queries))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.one_of(st.none(), st.integers(1, 4)), st.data())
def test_equal_the_loop_with_packed_documents(lengths, window, data):
    documents = [number for number, length in enumerate(lengths, 1) for _ in range(length)]
    row = []
    for document in set(documents):
        size = documents.count(document)
        cut = data.draw(st.integers(0, size))
        row += [2 * document] * cut + [data.draw(st.sampled_from([-1, 2 * document + 1]))] * (size - cut)
    ranges = visible_ranges(torch.tensor([row]), torch.tensor([documents]), sliding_window=window)
    assert torch.equal(as_mask(ranges), loop_mask([row], documents=[documents], window=window))


@pytest.mark.parametrize(
    ("row", "mask"),
    [
        ([0, 0, -1, -1, -1], [1, 1, 0, 1, 1]),  # padding between keys that the last query sees
        ([-1, -1, -1], [1, 2, 1]),  # a document in two places
        ([-1, -1, -1, -1], [1, 1, 0, 1]),
    ],
)
def test_gaps_are_said_to_be_there(row, mask):
    assert visible_ranges(torch.tensor([row]), torch.tensor([mask])) is None


def test_padding_between_documents_is_no_gap_for_their_queries():
    # Queries of the padding itself see both documents, with a gap: no ranges for the whole row.
    row, documents = [-1, 0, 0, -1, -1], [1, 1, 1, 0, 2]
    assert visible_ranges(torch.tensor([row]), torch.tensor([documents])) is not None


def test_a_cache_that_has_let_go_of_its_oldest_keys():
    ids = torch.tensor([[-1] * 6 + [0, 0]])

    def window_of_three(batch, head, query, key):
        return (key <= query) & (query - key < 3)

    ranges = bisected_ranges(
        window_of_three, 1, queries=(6, 8), keys=(4, 8), real_BK=None, device=ids.device
    )  # keys 4 to 7
    assert ranges.start.tolist() == [[0, 1]]
    assert ranges.stop.tolist() == [[3, 4]]


@settings(deadline=None, max_examples=30)
@given(batches())
def test_pairs_are_those_of_the_cost(rows):
    ids = torch.tensor(rows)
    assert visible_ranges(ids).pairs() == segattn.attention_cost(ids)["segments"]
