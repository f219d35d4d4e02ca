"""The walk over markers: hand-made ids, hand-made spans."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segattn import SegmentError, TemplateError
from segattn.templates.markers import Marker, MarkerTable, check_distinct

USER = Marker("segment", "user", (10, 11), "<user>")
SYSTEM = Marker("segment", "system", (10, 12), "<system>")
ASSISTANT = Marker("causal", "assistant", (10, 13), "<assistant>")
END = Marker("close", "user", (20, 21), "[/INST]")
BOS = Marker("bos", "bos", (1,), "<s>")
TOOLS = Marker("segment", "tool", (30,), "<tools>")
TOOL = Marker("segment", "tool", (31,), "<tool>")

CHATML = MarkerTable((USER, SYSTEM, ASSISTANT, BOS))


@pytest.mark.parametrize(
    ("ids", "turns", "prefix"),
    [
        ([], [], []),
        ([5, 6, 7], [], []),
        ([1, 10, 11, 5, 6], [(1, 5)], [(1, 5)]),
        ([1, 10, 12, 5, 10, 11, 6, 10, 13, 7], [(1, 4), (4, 7)], [(1, 7)]),
        ([10, 11, 5, 10, 13, 6, 10, 11, 7, 10, 11, 8], [(0, 3), (6, 9), (9, 12)], [(0, 3), (6, 12)]),
        # A marker cut short is none; a BOS amid a row closes what is open and is causal.
        ([10, 10, 11, 5, 10], [(1, 5)], [(1, 5)]),
        ([10, 11, 5, 1, 6, 10, 11], [(0, 3), (5, 7)], [(0, 3), (5, 7)]),
    ],
)
def test_spans_of_a_template_with_headers(ids, turns, prefix):
    assert CHATML.spans(ids, "turns") == turns
    assert CHATML.spans(ids, "prefix") == prefix
    assert CHATML.spans(ids, "causal") == []


def test_a_closing_marker_is_the_last_piece_of_its_segment():
    table = MarkerTable((USER, END, BOS))
    assert table.spans([1, 10, 11, 5, 20, 21, 6, 7, 10, 11, 8, 20, 21], "turns") == [(1, 6), (8, 13)]
    assert table.spans([20, 21, 5], "turns") == []
    # Two prompts with nothing between them are one under "prefix".
    assert table.spans([10, 11, 20, 21, 10, 11, 20, 21], "prefix") == [(0, 8)]


def test_text_without_a_header_is_a_segment_once_a_marker_follows():
    table = MarkerTable((USER, ASSISTANT, BOS), leading_segment=True)
    assert table.spans([1, 5, 6, 10, 11, 7], "turns") == [(1, 3), (3, 6)]
    assert table.spans([1, 5, 6, 10, 11, 7], "prefix") == [(1, 6)]
    assert table.spans([5, 10, 13, 7], "turns") == [(0, 1)]
    assert table.spans([1, 5, 6], "turns") == []
    assert table.spans([1, 10, 11, 5], "turns") == [(1, 4)]
    # The same for a second document of a packed row.
    assert table.spans([1, 10, 11, 10, 13, 7, 1, 5, 10, 11], "turns") == [(1, 3), (7, 8), (8, 10)]


def test_two_pieces_of_one_header_open_one_segment():
    table = MarkerTable((TOOLS, TOOL, ASSISTANT))
    assert table.spans([30, 31, 5, 31, 6], "turns") == [(0, 3), (3, 5)]
    assert table.spans([31, 31], "turns") == [(0, 1), (1, 2)]


def test_the_longest_marker_wins():
    longer = Marker("causal", "assistant", (10, 11, 12), "<user-like>")
    table = MarkerTable((USER, longer))
    assert table.spans([10, 11, 5, 10, 11, 12, 6], "turns") == [(0, 3)]


@given(st.lists(st.sampled_from([1, 5, 10, 11, 12, 13, 20, 21, 30, 31]), max_size=40), st.booleans())
def test_spans_are_ascending_disjoint_and_hold_every_prompt_marker(ids, leading):
    table = MarkerTable((USER, SYSTEM, ASSISTANT, END, BOS, TOOLS, TOOL), leading)
    for policy in ("turns", "prefix"):
        spans = table.spans(ids, policy)
        assert all(0 <= start < end <= len(ids) for start, end in spans)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
        covered = {position for start, end in spans for position in range(start, end)}
        for position in range(len(ids) - 1):
            if ids[position : position + 2] == [10, 11]:
                assert position in covered
            if ids[position : position + 2] == [10, 13]:
                assert not covered & {position, position + 1}
        assert all(ids[position] != 1 for position in covered)


@given(st.lists(st.sampled_from([1, 5, 10, 11, 12, 13]), max_size=30), st.integers(0, 30))
def test_a_row_cut_before_an_answer_keeps_its_spans(ids, cut):
    """What follows a prompt changes nothing about it: the prompt's spans are a prefix of the whole row's."""
    prompt = [*ids[:cut], 10, 13]
    whole = [*prompt, *ids[cut:]]
    expected = [span for span in CHATML.spans(whole, "turns") if span[1] <= len(prompt)]
    assert CHATML.spans(prompt, "turns") == expected


def test_dict_and_back():
    table = MarkerTable((USER, ASSISTANT, BOS), leading_segment=True)
    assert MarkerTable.from_dict(table.to_dict()) == table


@pytest.mark.parametrize(
    "damage",
    [
        {"markers": [{"kind": "segment"}], "leading_segment": False},
        {"markers": [{"kind": "open", "role": "user", "ids": [1], "text": "x"}], "leading_segment": False},
        {"markers": [{"kind": "segment", "role": "user", "ids": [], "text": "x"}], "leading_segment": False},
        {"markers": []},
    ],
)
def test_damaged_dicts_are_refused(damage):
    with pytest.raises(SegmentError, match="Derive the segmenter again"):
        MarkerTable.from_dict(damage)


def test_markers_that_ids_cannot_tell_apart_are_refused():
    with pytest.raises(TemplateError, match=r"<user>.*same token ids \[10, 11\]"):
        check_distinct([USER, Marker("causal", "assistant", (10, 11), "<user>")])
