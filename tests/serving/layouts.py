"""Random segmentations for property tests, and what a token can see, written as plain loops."""

from hypothesis import strategies as st

from segattn.serving.chunks import next_chunk


@st.composite
def rows(draw, longest=12):
    """(length, spans): pieces of random lengths, each a segment or causal text."""
    pieces = draw(st.lists(st.tuples(st.booleans(), st.integers(1, longest)), min_size=1, max_size=6))
    spans, at = [], 0
    for is_segment, size in pieces:
        if is_segment:
            spans.append((at, at + size))
        at += size
    return at, tuple(spans)


def visible(spans, query, length):
    """The positions that a token attends to, itself included."""
    together = {key for start, end in spans if start <= query < end for key in range(start, end)}
    return {key for key in range(length) if key <= query or key in together}


def chunk_length(spans, start, wanted, most_pieces):
    """How many tokens the next step computes."""
    chunk = next_chunk(spans, start, wanted, most_pieces)
    return chunk[-1].end - start if chunk else 0
