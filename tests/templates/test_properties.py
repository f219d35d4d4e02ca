"""Properties of every template over random conversations, against segments read from the rendered text."""

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from segattn import Segmenter
from segattn.segments import check_segment_ids
from templates.oracle_segments import segments_of

QUICK = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Lower-case letters only: a message that holds marker text is another test's subject.
TEXT = st.text(st.sampled_from("aeq é中🙂\n\t 019.,:;()-#*/'\""), min_size=0, max_size=30)
CONTENT = st.builds(lambda head, body: head + body, st.sampled_from(["so", "na", "1"]), TEXT)


@st.composite
def conversations(draw, roles=("system", "user")):
    """A chat that begins with a system message or not, then alternates, and ends with a question or an answer."""
    system = ["system"] if "system" in roles and draw(st.booleans()) else []
    turns = draw(st.integers(1, 5))
    spoken = [*system, *(["user", "assistant"] * 3)[:turns]]
    return [{"role": role, "content": draw(CONTENT)} for role in spoken]


def encoded(case, messages, **options):
    batch = case.segmenter.apply_chat_template(messages, **options)
    return batch["input_ids"], batch["segment_ids"]


def ends_with_question(messages):
    return messages[-1]["role"] != "assistant"


@QUICK
@given(messages=conversations())
def test_segments_are_those_that_a_reader_finds_in_the_text(case, messages):
    options = {"add_generation_prompt": ends_with_question(messages)}
    ids, segments = encoded(case, messages, **options)
    expected_ids, expected = segments_of(case.tokenizer, case.coverage, messages, **options)
    if case.coverage.text_markers and ids != expected_ids:
        # A message whose edge merges with a plain-text marker: tokens differ, the text does not.
        assert decoded(case, ids) == decoded(case, expected_ids)
        assert max(segments) == max(expected)
        return
    assert ids == expected_ids
    assert segments == expected


@QUICK
@given(messages=conversations())
def test_segment_ids_come_from_token_ids_alone(case, messages):
    batch = case.segmenter.apply_chat_template(messages, return_tensors="pt")
    again = case.segmenter.segment_ids(batch["input_ids"], batch["attention_mask"])
    assert again.tolist() == batch["segment_ids"].tolist()
    check_segment_ids(again, batch["attention_mask"])
    restored = Segmenter.from_dict(case.segmenter.to_dict(), tokenizer=case.tokenizer)
    assert restored.segment_ids(batch["input_ids"][0].tolist()).tolist() == batch["segment_ids"][0].tolist()


@QUICK
@given(messages=conversations(), last=st.integers(1, 5))
def test_a_cut_conversation_has_the_same_segments(case, messages, last):
    cut = messages[:last]
    assume(len(cut) < len(messages) and cut[-1]["role"] != "system")
    whole_ids, whole = encoded(case, messages, add_generation_prompt=ends_with_question(messages))
    ids, segments = encoded(case, cut, add_generation_prompt=ends_with_question(cut))
    shared = next((n for n, pair in enumerate(zip(ids, whole_ids, strict=False)) if pair[0] != pair[1]), len(ids))
    if case.coverage.stable:
        # The white space that ends a generation prompt may be tokenized with the answer's first letter.
        assert shared >= len(ids) - 1
    elif shared < len(ids):
        # The last shared token may begin two different headers.
        shared -= 1
    assert segments[:shared] == whole[:shared]


@QUICK
@given(chats=st.lists(conversations(), min_size=1, max_size=3), side=st.sampled_from(["left", "right"]))
def test_a_padded_batch_holds_the_single_rows(case, chats, side):
    before = case.tokenizer.padding_side
    case.tokenizer.padding_side = side
    try:
        batch = case.segmenter.apply_chat_template(chats, padding=True, return_tensors="pt")
    finally:
        case.tokenizer.padding_side = before
    for row, chat in enumerate(chats):
        ids, segments = encoded(case, chat)
        missing = batch["input_ids"].shape[1] - len(ids)
        fill = [-1] * missing
        zeros, ones = [0] * missing, [1] * len(ids)
        assert batch["segment_ids"][row].tolist() == (fill + segments if side == "left" else segments + fill)
        assert batch["attention_mask"][row].tolist() == (zeros + ones if side == "left" else ones + zeros)
        assert batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist() == ids
    assert case.segmenter.segment_ids(batch["input_ids"], batch["attention_mask"]).equal(batch["segment_ids"])


def decoded(case, ids):
    return case.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("policy", ["turns", "prefix", "causal"])
def test_policies_join_what_the_text_shows_as_neighbors(case, policy):
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    turns = segments_of(case.tokenizer, case.coverage, messages, add_generation_prompt=True)[1]
    joined, number = [], -1
    for position, segment in enumerate(turns):
        opens = segment >= 0 and (position == 0 or turns[position - 1] < 0)
        number += opens
        joined.append(number if segment >= 0 else -1)
    expected = {"turns": turns, "prefix": joined, "causal": [-1] * len(turns)}[policy]
    batch = case.segmenter.with_policy(policy).apply_chat_template(messages, add_generation_prompt=True)
    assert batch["segment_ids"] == expected
