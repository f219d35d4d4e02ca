import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segattn.serving.attention_rows import rows_of, with_rows
from segattn.serving.chunks import pieces
from segattn.serving.errors import ServingError
from serving.fake_metadata import metadata_of, seen
from serving.layouts import chunk_length, rows, visible


@given(st.lists(rows(), min_size=1, max_size=4), st.integers(0, 2), st.data())
def test_every_token_of_a_step_sees_what_the_rule_says(layouts, padding, data):
    chunks, step = [], []
    for length, spans in layouts:
        start = data.draw(st.integers(0, length - 1))
        wanted = data.draw(st.integers(1, length - start))
        tokens = chunk_length(spans, start, wanted, 9) or length - start
        chunks.append(pieces(spans, start, start + tokens))
        step.append((start, tokens))
    padded = len(layouts) + padding
    split = with_rows(metadata_of(step, padded), rows_of(chunks, padded))
    expected = [
        (index, visible(spans, position, length))
        for index, ((length, spans), (start, tokens)) in enumerate(zip(layouts, step, strict=True))
        for position in range(start, start + tokens)
    ]
    assert seen(split) == expected
    assert split.seq_lens_cpu_upper_bound.tolist() == split.seq_lens.tolist()


def test_the_metadata_of_rows_by_hand():
    chunks = [pieces(((0, 3), (3, 7)), 0, 9), pieces((), 4, 5)]
    split = with_rows(metadata_of([(0, 9), (4, 1)], padded=3), rows_of(chunks, 3))
    assert split.query_start_loc.tolist() == [0, 3, 7, 9, 10, 10]
    assert split.seq_lens.tolist() == [3, 7, 9, 5, 0]
    assert split.causal.tolist() == [0, 0, 1, 1, 1]
    assert split.causal.dtype == split.query_start_loc.dtype == split.seq_lens.dtype == torch.int32
    assert split.is_prefilling.tolist() == [True, True, True, False, True]
    assert (split.num_reqs, split.max_query_len, split.num_actual_tokens) == (5, 4, 10)
    assert split._num_computed_tokens_cache is None


def test_rows_of_another_step_are_refused():
    with pytest.raises(ServingError, match="step of 8 tokens was split into rows of 9"):
        with_rows(metadata_of([(0, 8)]), rows_of([pieces(((0, 9),), 0, 9)], 1))


@pytest.mark.parametrize("name", ["rswa_prefix_lens", "req_idx", "mm_req_doc_ranges"])
def test_what_cannot_be_split_is_refused(name):
    metadata = metadata_of([(0, 9)]).replace(**{name: [1]})
    with pytest.raises(ServingError, match=name):
        with_rows(metadata, rows_of([pieces(((0, 9),), 0, 9)], 1))
