"""Blocks are shared exactly when what they hold is the same, by an account of what each token's state depends on."""

from hypothesis import given, settings
from hypothesis import strategies as st

from segattn.serving.block_keys import keys_in_block, segment_keys
from serving.layouts import rows, visible

SIZE = 4


def chain(ids, spans, with_keys=True):
    """Block hashes as vLLM chains them; Python's own tuples in place of a hash function."""
    keys = segment_keys(ids, spans) if with_keys else ()
    found, parent = [], None
    for begin in range(0, len(ids) - SIZE + 1, SIZE):
        parent = (parent, tuple(ids[begin : begin + SIZE]), keys_in_block(keys, begin, begin + SIZE))
        found.append(parent)
    return found


def state(ids, spans, position):
    """All that a token's keys and values can depend on: the tokens up to the last that it sees, and who sees whom."""
    last = max(visible(spans, position, len(ids)))
    return tuple(ids[: last + 1]), tuple(frozenset(visible(spans, p, len(ids))) for p in range(last + 1))


def shared(one, other):
    return sum(1 for a, b in zip(one, other, strict=False) if a == b)


def first_wrong(one, other, blocks):
    """The first position in shared blocks whose state differs."""
    return next((p for p in range(blocks * SIZE) if state(*one, p) != state(*other, p)), None)


@st.composite
def pairs(draw):
    """Two requests that agree in many tokens, with layouts of their own or the same."""
    length, spans = draw(rows())
    ids = draw(st.lists(st.integers(0, 1), min_size=length, max_size=length))
    other_length, other_spans = (length, spans) if draw(st.booleans()) else draw(rows())
    other = (ids * (other_length // length + 1))[:other_length]
    for _ in range(draw(st.integers(0, 2))):
        other[draw(st.integers(0, other_length - 1))] = draw(st.integers(0, 1))
    return (ids, spans), (other, other_spans)


@given(pairs())
@settings(max_examples=400)
def test_shared_blocks_hold_the_same(pair):
    one, other = pair
    assert first_wrong(one, other, shared(chain(*one), chain(*other))) is None


def test_tokens_alone_would_share_wrongly():
    """The test above can fail: with vLLM's own keys two user messages with a common beginning share it."""
    one = ([1] * 8 + [2] * 4, ((0, 12),))
    other = ([1] * 8 + [3] * 4, ((0, 12),))
    blocks = shared(chain(*one, with_keys=False), chain(*other, with_keys=False))
    assert blocks == 2
    assert first_wrong(one, other, blocks) == 0
    assert shared(chain(*one), chain(*other)) == 0


def test_finished_segments_and_earlier_turns_are_shared():
    system, answer = [1] * 8, [5] * 6
    one = (system + [2] * 8 + answer, ((0, 8), (8, 16)))
    other = (system + [3] * 8 + answer, ((0, 8), (8, 16)))
    assert shared(chain(*one), chain(*other)) == 2  # the system prompt
    longer = (one[0] + [4] * 10, ((0, 8), (8, 16), (22, 32)))
    assert shared(chain(*one), chain(*longer)) == len(chain(*one))  # the first turn and its answer


def test_a_causal_request_shares_only_causal_text():
    ids = [1] * 16
    assert shared(chain(ids, ()), chain(ids, ((4, 12),))) == 1
    assert shared(chain(ids, ()), chain(ids, ())) == 4


def test_a_segment_that_ends_inside_a_block_is_whole_in_its_key():
    ids = [1] * 5 + [2] * 7
    assert shared(chain(ids, ((0, 5),)), chain(ids, ((0, 6),))) == 0
    assert shared(chain(ids, ((0, 5),)), chain(ids[:5] + [3] * 7, ((0, 5),))) == 1
    assert [key[1:3] for key in keys_in_block(segment_keys(ids, ((0, 5), (5, 9))), 4, 8)] == [(0, 5), (5, 9)]
