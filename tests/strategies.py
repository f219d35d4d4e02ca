"""Hypothesis strategies for segmentations."""

from hypothesis import strategies as st


@st.composite
def segmentations(draw, min_length=1, max_length=14):
    """One row of valid segment ids: contiguous runs, unique ids in any order, causal gaps, as a list."""
    length = draw(st.integers(min_length, max_length))
    return fill(draw, length)


def fill(draw, length):
    row, unused = [], draw(st.permutations(range(length)))
    while len(row) < length:
        run = draw(st.integers(1, length - len(row)))
        row += [draw(st.sampled_from([-1, unused[len(row)]]))] * run
    return row


@st.composite
def batches(draw, max_rows=3, max_length=12):
    """Several rows of one length."""
    length = draw(st.integers(1, max_length))
    return [fill(draw, length) for _ in range(draw(st.integers(1, max_rows)))]


@st.composite
def padded_batches(draw, max_rows=3, max_length=12):
    """Rows of one length with padding on either side: (segment ids, real) as lists of lists."""
    length = draw(st.integers(2, max_length))
    rows, reals = [], []
    for _ in range(draw(st.integers(1, max_rows))):
        left = draw(st.integers(0, length - 1))
        right = draw(st.integers(0, length - 1 - left))
        real = length - left - right
        rows.append([-1] * left + fill(draw, real) + [-1] * right)
        reals.append([0] * left + [1] * real + [0] * right)
    return rows, reals
