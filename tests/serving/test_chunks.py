import pytest
from hypothesis import given
from hypothesis import strategies as st

from segattn.serving.chunks import Piece, pieces, step_is_causal
from segattn.serving.errors import CutSegmentError
from serving.layouts import chunk_length, rows, visible

SPANS = ((2, 6), (6, 9))  # . . [2 3 4 5] [6 7 8] . .


@pytest.mark.parametrize(
    ("start", "wanted", "most", "tokens"),
    [
        (0, 100, 1, 2),
        (0, 1, 1, 1),
        (2, 100, 1, 4),
        (2, 3, 1, 0),
        (4, 100, 1, 2),  # the first half came from the cache
        (6, 3, 1, 3),
        (9, 7, 1, 7),
        (0, 100, 9, 100),
        (0, 100, 4, 100),
        (0, 100, 3, 9),
        (0, 100, 2, 6),
        (0, 8, 9, 6),  # the second segment would be cut
        (0, 5, 9, 2),
        (7, 1, 9, 0),
        (7, 2, 9, 2),
    ],
)
def test_by_hand(start, wanted, most, tokens):
    assert chunk_length(SPANS, start, wanted, most) == tokens


def test_without_segments():
    assert chunk_length((), 0, 7, 1) == 7
    assert pieces((), 3, 7) == [Piece(3, 7, True)]
    assert pieces((), 3, 3) == []


def test_pieces_by_hand():
    assert pieces(SPANS, 0, 11) == [Piece(0, 2, True), Piece(2, 6, False), Piece(6, 9, False), Piece(9, 11, True)]
    assert pieces(SPANS, 4, 6) == [Piece(4, 6, False)]
    # What is left of a segment is one token: it sees what a causal one sees, and joins what follows.
    assert pieces(SPANS, 8, 11) == [Piece(8, 11, True)]
    assert pieces(((1, 2), (2, 3)), 0, 5) == [Piece(0, 5, True)]


@given(rows(), st.integers(1, 4), st.data())
def test_every_chunk_sees_what_the_rule_says(row, most, data):
    """Run a whole prefill with steps of random room: full attention over cache and piece, or causal, is the rule."""
    length, spans = row
    longest = max((end - start for start, end in spans), default=1)
    at = data.draw(st.integers(0, length - 1), label="cached")
    waits = 0
    while at < length:
        room = data.draw(st.integers(1, 2 * longest + 2), label="room") if waits < 3 else longest
        tokens = chunk_length(spans, at, min(room, length - at), most)
        if tokens == 0:
            waits += 1
            assert waits < 5, "a step with room for the longest segment must take it"
            continue
        waits = 0
        chunk = pieces(spans, at, at + tokens)
        assert len(chunk) <= most
        for start, end, causal in chunk:
            assert start == at
            for query in range(start, end):
                assert visible(spans, query, length) == set(range(query + 1 if causal else end))
            at = end


@given(rows(), st.data())
def test_a_chunk_that_ends_inside_a_segment_raises_and_no_other(row, data):
    length, spans = row
    start = data.draw(st.integers(0, length - 1))
    end = data.draw(st.integers(start + 1, length))
    if any(begin < end < stop for begin, stop in spans):
        with pytest.raises(CutSegmentError, match=f"{start} to {end}"):
            pieces(spans, start, end)
    else:
        found = pieces(spans, start, end)
        assert [position for piece in found for position in range(piece.start, piece.end)] == list(range(start, end))


@given(rows(), st.data())
def test_more_room_never_computes_less(row, data):
    length, spans = row
    start = data.draw(st.integers(0, length - 1))
    wanted = data.draw(st.integers(1, length - start))
    one, two = chunk_length(spans, start, wanted, 1), chunk_length(spans, start, wanted, 2)
    assert one <= two <= wanted
    assert chunk_length(spans, start, wanted - 1, 2) <= two


def test_one_flag_for_a_step():
    segment, causal, one = [Piece(0, 5, False)], [Piece(3, 8, True)], [Piece(9, 10, True)]
    assert step_is_causal([causal, one])
    assert not step_is_causal([segment, one, [Piece(4, 7, False)]])
    assert step_is_causal([one, [Piece(0, 1, False)]])
    with pytest.raises(CutSegmentError, match="steps of one kind"):
        step_is_causal([segment, causal])
    with pytest.raises(CutSegmentError, match="several segments of one request"):
        step_is_causal([[*segment, Piece(5, 9, False)]])
