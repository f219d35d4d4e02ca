import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segattn
from oracle import loop_mask
from segattn.masks import open_segments
from strategies import batches, padded_batches, segmentations


def test_the_drawing_in_the_docstring():
    mask = segattn.segment_mask(torch.tensor([[0, 0, 0, -1, -1]]))
    assert mask.dtype == torch.bool
    assert mask.int().tolist() == [[[
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]]]  # fmt: skip


def test_a_window_cuts_both_directions():
    mask = segattn.segment_mask(torch.tensor([[0, 0, 0, 0, -1]]), sliding_window=2)
    assert mask.int().tolist() == [[[
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1],
    ]]]  # fmt: skip


def test_packed_documents_do_not_see_each_other():
    mask = segattn.segment_mask(torch.tensor([[0, 0, -1, 1, 1, -1]]), torch.tensor([[1, 1, 1, 2, 2, 2]]))
    assert mask.int().tolist() == [[[
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1, 1],
    ]]]  # fmt: skip


@given(batches(), st.one_of(st.none(), st.integers(1, 6)), st.data())
def test_equals_the_double_loop_with_window_and_past(rows, window, data):
    queries = data.draw(st.integers(1, len(rows[0])))
    mask = segattn.segment_mask(torch.tensor(rows), query_length=queries, sliding_window=window)
    assert torch.equal(mask, loop_mask(rows, window=window, queries=queries))


@given(padded_batches(), st.one_of(st.none(), st.integers(1, 6)))
def test_equals_the_double_loop_with_padding_on_either_side(batch, window):
    rows, reals = batch
    for dtype in (torch.int64, torch.bool):
        mask = segattn.segment_mask(torch.tensor(rows), torch.tensor(reals).to(dtype), sliding_window=window)
        assert torch.equal(mask, loop_mask(rows, reals=reals, window=window))


@given(batches(max_rows=1), batches(max_rows=1))
def test_equals_the_double_loop_on_packed_rows(first, second):
    row = first[0] + [s + 100 if s >= 0 else -1 for s in second[0]]
    documents = [1] * len(first[0]) + [2] * len(second[0])
    mask = segattn.segment_mask(torch.tensor([row]), torch.tensor([documents]))
    assert torch.equal(mask, loop_mask([row], documents=[documents]))


def test_one_row_may_come_without_a_batch_axis():
    assert torch.equal(segattn.segment_mask(torch.tensor([0, 0, -1])), segattn.segment_mask(torch.tensor([[0, 0, -1]])))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query_length": 0}, "query_length is 0; expected 1 to 3"),
        ({"query_length": 4}, "query_length is 4; expected 1 to 3"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"attention_mask": torch.ones(1, 3)}, "attention_mask must be a bool or integer"),
        ({"attention_mask": torch.ones(1, 2, dtype=torch.int64)}, "expected the same"),
        ({"attention_mask": torch.tensor([[1, 2, 2]])}, "row 0, position 1: segment 0 runs across the border"),
        ({"attention_mask": torch.tensor([[0, 1, 1]])}, r"segment_ids\[0, 0\] is 0 on a padding token"),
    ],
)
def test_bad_arguments_say_what_was_given(arguments, message):
    with pytest.raises(segattn.SegmentError, match=message):
        segattn.segment_mask(torch.tensor([[0, 0, 0]]), **arguments)


@settings(deadline=None)
@given(segmentations(max_length=12), st.integers(1, 6))
def test_a_chunked_layer_stays_inside_its_chunks(row, chunk):
    """Llama 4's local layers: not a window, but blocks that do not see one another."""

    def chunked(batch, head, query, key):
        return (key <= query) & (query // chunk == key // chunk)

    place = torch.arange(len(row))
    got = open_segments(chunked, torch.tensor([row]))(torch.tensor(0), torch.tensor(0), place[:, None], place[None])
    for i in range(len(row)):
        for j in range(len(row)):
            together = row[i] == row[j] and row[i] >= 0
            assert got[i, j] == ((j <= i or together) and i // chunk == j // chunk)
