"""The segments of rows: placed on the harness's tokens, cut on the left, found again by their tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import segattn
from cli.tiny_chat import make_tokenizer
from segattn.errors import SegmentError
from segattn.harness.rows import PromptSegments, RowTable, ScoredRow, scored_row, tables
from segattn.segments import check_segment_ids

TOKENIZER = make_tokenizer()
SEGMENTER = segattn.Segmenter.from_tokenizer(TOKENIZER)

lengths = st.lists(st.tuples(st.booleans(), st.integers(1, 6)), min_size=1, max_size=6)
ids = st.lists(st.integers(0, 9), min_size=1, max_size=8)


def numbered(runs):
    """Segment ids of runs (whether a segment, length), and the segment that each token stands for."""
    found = []
    for number, (inside, length) in enumerate(runs):
        found += [number if inside else -1] * length
    return found


@given(lengths, ids, st.integers(0, 4), st.integers(1, 60))
def test_a_cut_row_keeps_its_last_tokens_and_their_segments(runs, continuation, moved, most):
    segments = numbered(runs)
    prompt = list(range(100, 100 + len(segments)))
    moved = min(moved, len(prompt) - 1)
    context, continuation = prompt[: len(prompt) - moved], prompt[len(prompt) - moved :] + continuation
    row = scored_row(prompt, segments, context, continuation, most)
    # The harness's own cut, as its source has it.
    assert list(row.tokens) == (context + continuation)[-(most + 1) :][:-1]
    assert row.scored == len(continuation)
    of_token = dict(zip(context, segments, strict=False))
    assert list(row.segments) == [of_token.get(token, -1) for token in row.tokens]
    check_segment_ids(torch.tensor([row.segments])) if row.segments else None


contents = st.text(st.sampled_from("ab \n!<|>"), max_size=12)


@given(st.lists(contents, min_size=1, max_size=4), contents, st.integers(1, 80))
def test_a_cut_chat_keeps_valid_segments(messages, answer, most):
    text = "".join(f"<|im_start|>user\n{content}<|im_end|>\n" for content in messages) + "<|im_start|>assistant\n"
    prompt = TOKENIZER(text, add_special_tokens=False).input_ids
    context = TOKENIZER(text.rstrip(), add_special_tokens=False).input_ids
    continuation = TOKENIZER("\n" + answer, add_special_tokens=False).input_ids
    row = scored_row(prompt, PromptSegments(SEGMENTER)(prompt, text), context, continuation, most)
    assert len(row.tokens) == len(row.segments) == min(most, len(context) + len(continuation) - 1)
    if row.segments:
        check_segment_ids(torch.tensor([row.segments]))
    # Whatever was cut: the header of the answer and the answer are causal, and what is left of a message is not.
    tail = len("assistant") + len(continuation)
    assert set(row.segments[-tail:]) == {-1}
    before = row.segments[: max(0, len(row.segments) - tail)]
    assert all(segment >= 0 for segment in before)
    sizes = [sum(segment == number for segment in before) for number in dict.fromkeys(before)]
    whole = [len(f"user\n{content}\n") + 2 for content in messages]
    assert sizes[1:] == whole[len(whole) - len(sizes) + 1 :]


@given(lengths, st.integers(1, 5))
def test_whitespace_that_had_merged_takes_the_segment_of_where_it_stood(runs, replaced):
    """The context's last tokens are others than the prompt's: "x" and not "x\\n"."""
    segments = numbered([*runs, (False, 5)])
    prompt = list(range(100, 100 + len(segments)))
    context = [*prompt[:-5], *range(replaced)]
    row = scored_row(prompt, segments, context, [7], 1000)
    assert list(row.segments) == segments[:-5] + [-1] * replaced


def test_tokens_that_cannot_be_placed_are_refused():
    with pytest.raises(SegmentError, match="other tokens from position 1 on"):
        scored_row([5, 6, 7], [0, 0, -1], [5, 9], [7], 10)


rows = st.builds(
    lambda tokens, marks, scored: ScoredRow(tuple(tokens), tuple(0 if m else -1 for m in marks[: len(tokens)]), scored),
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.integers(1, 2),
)


@given(st.lists(rows, max_size=12), st.integers(0, 3))
def test_every_row_is_found_again_by_its_tokens(given_rows, padding):
    shared = tables(given_rows)
    assert sorted(place for _, places in shared for place in places) == list(range(len(given_rows)))
    for table, places in shared:
        length = max(len(given_rows[place].tokens) for place in places) + padding
        batch = torch.tensor([[*given_rows[p].tokens, *[0] * (length - len(given_rows[p].tokens))] for p in places])
        found = table.segment_ids(batch).tolist()
        for place, row in zip(places, found, strict=True):
            want = given_rows[place].segments
            assert row == [*want, *[-1] * (length - len(want))]
        # The harness runs rows of the same tokens once, and slices what it scores for the first of them.
        scored = {(given_rows[place].tokens, given_rows[place].scored) for place in places}
        assert len(scored) == len({tokens for tokens, _ in scored})


def test_one_table_is_enough_for_the_choices_of_a_task():
    choices = [ScoredRow((1, 2, 3, *more), (0, 0, -1, *[-1] * len(more)), len(more) + 1) for more in ((), (4,), (4, 5))]
    assert len(tables(choices * 3)) == 1


def test_a_row_that_is_no_request_is_refused():
    table = RowTable()
    table.take(ScoredRow((1, 2), (0, -1), 1))
    with pytest.raises(SegmentError, match="none of its requests"):
        table.segment_ids(torch.tensor([[1, 2, 3]]))


def test_a_plain_prompt():
    plain = TOKENIZER("is it so?").input_ids
    with pytest.raises(
        SegmentError, match=r"'is it so\?' holds no marker.*--apply_chat_template.*plain_context=segment"
    ):
        PromptSegments(SEGMENTER)(plain, "is it so?")
    assert PromptSegments(SEGMENTER, "segment")(plain, "") == [0] * 9
    assert PromptSegments(SEGMENTER, "segment", bos=plain[0])(plain, "") == [-1, *[0] * 8]
    assert PromptSegments(SEGMENTER, "causal")(plain, "") == [-1] * 9
    assert PromptSegments(None, "segment")(plain, "") == [0] * 9
    with pytest.raises(SegmentError, match="holds no marker") as raised:
        PromptSegments(SEGMENTER)(TOKENIZER("x" * 5000).input_ids, "x" * 5000)
    assert len(str(raised.value)) < 600


def test_a_template_whose_messages_are_all_causal_is_no_plain_prompt():
    text = "<|im_start|>user\nis it so?<|im_end|>\n<|im_start|>assistant\n"
    prompt = TOKENIZER(text).input_ids
    assert PromptSegments(SEGMENTER.with_policy("causal"))(prompt, text) == [-1] * len(prompt)
