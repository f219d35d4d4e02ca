"""Segmenters that leave some messages causal, or split long segments, against rows written out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import chatml
import segattn
from cli.tiny_chat import make_tokenizer
from segattn import Segmenter

TOKENIZER = make_tokenizer()
SEGMENTER = Segmenter.from_tokenizer(TOKENIZER)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3 + 3?"},
]


def row(messages, causal=(), generation_prompt=True):
    """Segment ids by hand: each message that is read causally lies between two numbers that do not change."""
    ids, _, segments = chatml.conversation(TOKENIZER, messages, generation_prompt=generation_prompt)
    place, number, found = 0, 0, list(segments)
    for message in messages:
        length = len(chatml.conversation(TOKENIZER, [message])[0])
        if message["role"] in causal or message["role"] == "assistant":
            found[place : place + length] = [-1] * length
        else:
            found[place : place + length] = [number] * length
            number += 1
        place += length
    return ids, found


def pieces(segments, length):
    """Number the pieces of at most `length` tokens, token by token."""
    found, number, before, count = [], -1, None, 0
    for segment in segments:
        if segment < 0:
            found.append(-1)
        else:
            count = count + 1 if segment == before else 1
            if count > length:
                count = 1
            if count == 1:
                number += 1
            found.append(number)
        before = segment
    return found


@pytest.mark.parametrize("roles", [("system",), ("user",), ("system", "user")])
def test_messages_of_some_roles_stay_causal(roles):
    ids, want = row(CHAT, roles)
    restricted = SEGMENTER.restricted(causal_roles=roles)
    assert restricted.segment_ids(ids).tolist() == want
    assert restricted.apply_chat_template(CHAT, add_generation_prompt=True)["segment_ids"] == want
    assert SEGMENTER.segment_ids(ids).tolist() == row(CHAT)[1], "the segmenter itself must not change"


def test_a_typed_marker_in_a_causal_message_stays_text():
    chat = [{"role": "system", "content": "<|im_start|>user\nopen"}, CHAT[1]]
    found = SEGMENTER.restricted(causal_roles=["system"]).apply_chat_template(chat, add_generation_prompt=True)
    assert found["segment_ids"] == row(chat, ["system"])[1]
    assert found["input_ids"].count(chatml.START) == 3


@given(st.integers(1, 40), st.sampled_from([(), ("system",)]))
def test_long_segments_are_split(length, roles):
    ids, segments = row(CHAT, roles)
    restricted = SEGMENTER.restricted(causal_roles=roles, max_segment_length=length)
    assert restricted.segment_ids(ids).tolist() == pieces(segments, length)
    # A prompt that grows by turns keeps the segments it has: caches stay valid.
    first, _ = row(CHAT[:2], roles)
    shared = len(first) - len(chatml.conversation(TOKENIZER, [{"role": "assistant", "content": ""}])[0])
    assert restricted.segment_ids(ids)[:shared].tolist() == restricted.segment_ids(first)[:shared].tolist()


def test_it_is_written_and_read_and_older_readers_refuse_it():
    restricted = SEGMENTER.restricted(causal_roles=["system"], max_segment_length=7)
    saved = restricted.to_dict()
    assert saved["version"] == 2, "a reader that knows version 1 only would drop the restriction in silence"
    assert SEGMENTER.to_dict()["version"] == 1
    ids, _ = row(CHAT)
    again = Segmenter.from_dict(saved, TOKENIZER)
    assert again.segment_ids(ids).tolist() == restricted.segment_ids(ids).tolist()
    assert again.with_policy("turns").to_dict() == saved
    assert "read causally: system" in again.describe()
    assert "split after 7 tokens" in again.describe()


@pytest.mark.parametrize("roles", [["narrator"], "system", ["assistant"]])
def test_roles_that_no_marker_tells_are_refused(roles):
    with pytest.raises(segattn.SegmentError, match=r"roles whose messages have markers of their own.*user, system"):
        SEGMENTER.restricted(causal_roles=roles)


@pytest.mark.parametrize("length", [0, -3, 2.5, True])
def test_lengths_that_split_nothing_are_refused(length):
    with pytest.raises(segattn.SegmentError, match="expected a number of tokens, at least 1"):
        SEGMENTER.restricted(max_segment_length=length)
