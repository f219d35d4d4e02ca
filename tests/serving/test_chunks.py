import pytest
from hypothesis import given
from hypothesis import strategies as st

from segattn.serving.chunks import chunk_length, is_causal, step_is_causal
from segattn.serving.errors import CutSegmentError
from serving.layouts import rows, visible


def test_by_hand():
    spans = ((2, 6), (6, 9))  # . . [2 3 4 5] [6 7 8] . .
    assert chunk_length(spans, 0, 100) == 2
    assert chunk_length(spans, 0, 1) == 1
    assert chunk_length(spans, 2, 100) == 4
    assert chunk_length(spans, 2, 3) == 0
    assert chunk_length(spans, 4, 100) == 2  # the first half came from the cache
    assert chunk_length(spans, 6, 3) == 3
    assert chunk_length(spans, 9, 7) == 7
    assert chunk_length((), 0, 7) == 7


@given(rows(), st.data())
def test_every_chunk_sees_what_the_rule_says(row, data):
    """Run a whole prefill with steps of random room: full attention over cache and chunk, or causal, is the rule."""
    length, spans = row
    longest = max((end - start for start, end in spans), default=1)
    at = data.draw(st.integers(0, length - 1), label="cached")
    waits = 0
    while at < length:
        room = data.draw(st.integers(1, longest + 2), label="room") if waits < 3 else longest
        tokens = chunk_length(spans, at, min(room, length - at))
        if tokens == 0:
            waits += 1
            assert waits < 5, "a step with room for the longest segment must take it"
            continue
        waits = 0
        end = at + tokens
        causal = is_causal(spans, at, end)
        for query in range(at, end):
            seen = set(range(query + 1)) if causal else set(range(end))
            assert seen == visible(spans, query, length)
        at = end


@given(rows(), st.data())
def test_a_chunk_that_is_wrong_either_way_raises(row, data):
    length, spans = row
    start = data.draw(st.integers(0, length - 1))
    end = data.draw(st.integers(start + 1, length))
    truth = [visible(spans, query, length) for query in range(start, end)]
    as_causal = truth == [set(range(query + 1)) for query in range(start, end)]
    as_segment = truth == [set(range(end))] * (end - start)
    if as_causal or as_segment:
        try:
            causal = is_causal(spans, start, end)
        except CutSegmentError:
            # Pieces of one token look alike: refused is allowed, wrong is not.
            return
        assert as_causal if causal else as_segment
    else:
        with pytest.raises(CutSegmentError, match=f"{start} to {end}"):
            is_causal(spans, start, end)


def test_one_flag_for_a_step():
    assert step_is_causal([(True, 5), (True, 1)])
    assert not step_is_causal([(False, 5), (True, 1), (False, 3)])
    assert step_is_causal([(True, 1), (False, 1)])
    with pytest.raises(CutSegmentError, match="steps of one kind"):
        step_is_causal([(False, 5), (True, 2)])
