import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import segattn
from oracle import may_see
from segattn.segments import check_segment_ids, pad_segment_ids
from strategies import batches, segmentations


def test_spans_become_numbered_runs():
    ids = segattn.spans_to_segment_ids([(1, 3), (3, 4)], 6)
    assert ids.tolist() == [-1, 0, 0, 1, -1, -1]
    assert ids.dtype == torch.int64


def test_a_list_of_span_lists_becomes_a_batch():
    ids = segattn.spans_to_segment_ids([[(0, 2)], []], 3)
    assert ids.tolist() == [[0, 0, -1], [-1, -1, -1]]


def test_no_spans_is_one_causal_row():
    assert segattn.spans_to_segment_ids([], 3).tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("spans", "length", "message"),
    [
        ([(0, 4)], 3, r"span 0 is \(0, 4\) in a row of 3 tokens"),
        ([(2, 2)], 3, r"span 0 is \(2, 2\)"),
        ([(-1, 2)], 3, "span 0"),
        ([(0, 2), (1, 3)], 3, "span 1 starts at 1, but the span before it ends at 2"),
        ([(2, 3), (0, 1)], 3, "ascending"),
        ([[(0, 1)], [(0, 9)]], 3, "row 1, span 0"),
        (["ab"], 3, "expected a pair"),
        ([(0, 1)], -1, "length is -1"),
        ([(0, 1)], 2.0, "length is 2.0"),
    ],
)
def test_bad_spans_say_which_and_why(spans, length, message):
    with pytest.raises(segattn.SegmentError, match=message):
        segattn.spans_to_segment_ids(spans, length)


@given(segmentations())
def test_spans_and_ids_describe_the_same_partition(row):
    spans, start = [], 0
    for end in range(1, len(row) + 1):
        if end == len(row) or row[end] != row[start]:
            if row[start] >= 0:
                spans.append((start, end))
            start = end
    ids = segattn.spans_to_segment_ids(spans, len(row)).tolist()
    for a in range(len(row)):
        for b in range(len(row)):
            assert (ids[a] == ids[b] >= 0) == (row[a] == row[b] >= 0)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0, 1]], "list"),
        (torch.tensor([[0.0, 1.0]]), "float32"),
        (torch.tensor([[True]]), "bool"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), r"shape \(1, 2, 3\)"),
        (torch.tensor(3), r"shape \(\)"),
        (torch.zeros(0, 4, dtype=torch.int64), "at least one row"),
        (torch.zeros(2, 0, dtype=torch.int64), "at least one row"),
        (torch.tensor([[0, 0], [0, -2]]), r"segment_ids\[1, 1\] is -2"),
        (torch.tensor([[-1, -1, -1], [0, 1, 0]]), r"segment_ids\[1, 2\] opens segment 0 again.*position 0"),
        (torch.tensor([[0, -1, 0]]), r"segment_ids\[0, 2\] opens segment 0 again"),
    ],
)
def test_bad_ids_name_row_position_and_cause(ids, message):
    with pytest.raises(segattn.SegmentError, match=message):
        check_segment_ids(ids)


def test_a_segment_over_padding_is_refused():
    with pytest.raises(segattn.SegmentError, match=r"segment_ids\[0, 1\] is 0 on a padding token"):
        check_segment_ids(torch.tensor([[0, 0, 0]]), torch.tensor([[1, 0, 1]]))
    with pytest.raises(segattn.SegmentError, match=r"\(1, 2\) and segment_ids \(1, 3\)"):
        check_segment_ids(torch.tensor([[0, 0, 0]]), torch.tensor([[1, 1]]))


@given(batches())
def test_every_valid_segmentation_passes_unchanged(rows):
    assert check_segment_ids(torch.tensor(rows)).tolist() == rows


@given(segmentations(min_length=3), st.data())
def test_any_reused_id_is_found(row, data):
    cut = data.draw(st.integers(1, len(row) - 2))
    first, again = 50, data.draw(st.integers(cut + 1, len(row) - 1))
    row[cut - 1], row[again] = first, first
    if row[cut] == first:
        row[cut] = -1
    with pytest.raises(segattn.SegmentError, match="again"):
        check_segment_ids(torch.tensor([row]))


def test_int32_is_taken_and_becomes_int64():
    assert check_segment_ids(torch.tensor([[0, -1]], dtype=torch.int32)).dtype == torch.int64


def test_padding_extends_with_causal_tokens_and_never_cuts():
    assert pad_segment_ids(torch.tensor([[0, 0]]), 4).tolist() == [[0, 0, -1, -1]]
    with pytest.raises(segattn.SegmentError, match="covers 2 tokens, but there are only 1"):
        pad_segment_ids(torch.tensor([[0, 0]]), 1)


@given(batches())
def test_cost_counts_the_pairs_of_the_rule(rows):
    length = len(rows[0])
    pairs = sum(may_see(row, query, key) for row in rows for query in range(length) for key in range(length))
    cost = segattn.attention_cost(torch.tensor(rows))
    assert cost == {
        "segments": pairs,
        "causal": len(rows) * sum(range(1, length + 1)),
        "dense": len(rows) * length**2,
    }


def test_cost_of_the_paper_like_layout_is_the_known_share():
    # 25 % system, 70 % user, 5 % causal: 0.777 n^2 in the limit.
    ids = segattn.spans_to_segment_ids([(0, 1024), (1024, 3891)], 4096)
    cost = segattn.attention_cost(ids)
    assert cost["segments"] / cost["dense"] == pytest.approx(0.777, abs=2e-3)


@given(batches(), st.data())
def test_labels_leak_exactly_where_the_token_before_sees_them(rows, data):
    length = len(rows[0])
    labelled = data.draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=len(rows),
                                  max_size=len(rows)))  # fmt: skip
    labels = torch.tensor([[7 if on else -100 for on in row] for row in labelled])
    leaks = [
        (b, i) for b, row in enumerate(rows) for i in range(1, length) if labelled[b][i] and may_see(row, i - 1, i)
    ]
    if not leaks:
        segattn.check_labels(torch.tensor(rows), labels)
        return
    with pytest.raises(segattn.LabelLeakError, match=rf"row {leaks[0][0]}, position {leaks[0][1]}:"):
        segattn.check_labels(torch.tensor(rows), labels)


def test_labels_of_another_shape_are_refused():
    with pytest.raises(segattn.SegmentError, match="expected the same"):
        segattn.check_labels(torch.tensor([[0, 0]]), torch.tensor([[1, 2, 3]]))
