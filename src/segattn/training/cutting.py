"""Samples longer than max_length, cut so that segments stay valid and answers stay whole.

Only the prompt is cut. What remains of a message keeps the template's header and end marker; a row whose markers would
read otherwise after the cut is not used.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from segattn.data import EncodedSample, Encoder, Sample
from segattn.segments import CAUSAL, IGNORED_LABEL

__all__ = ["TooLong", "cut_chat", "cut_text", "left_gaps", "middle_gaps", "without"]

TooLong = Literal["error", "drop", "cut_left", "cut_longest_segment"]

Span = tuple[int, int]
Gaps = Callable[[Sequence[Span], int], list[Span] | None]

# Where two cut ends happen to make a marker's tokens, a few tokens more or less settle it.
_ATTEMPTS = 8


def cut_chat(
    encoder: Encoder, sample: Sample, row: EncodedSample, max_length: int, how: TooLong
) -> EncodedSample | None:
    """Cut a chat to at most `max_length` tokens.

    Args:
        encoder: encodes what remains.
        sample: the chat.
        row: its tokens, more than `max_length`.
        max_length: the most tokens.
        how: "cut_left" leaves out the oldest messages, whole exchanges at a time, and then tokens from the left of what
            the remaining messages say. "cut_longest_segment" takes tokens out of the middle of the longest message,
            then of the next longest.

    Returns:
        The row, or None where the answer leaves no room.
    """
    if how == "cut_left":
        sample = _latest_messages(encoder, sample, max_length)
        row = encoder.encode(sample)
        if len(row.input_ids) <= max_length:
            return row
    gaps = left_gaps if how == "cut_left" else middle_gaps
    contents = encoder.content_spans(sample)
    excess, markers = len(row.input_ids) - max_length, encoder.markers(row.input_ids)
    for more in range(_ATTEMPTS):
        taken = gaps(contents, excess + more)
        if taken is None:
            return None
        cut = without(row, taken)
        if encoder.markers(cut.input_ids) == markers and encoder.segment_ids(cut.input_ids) == cut.segment_ids:
            return cut
    return None


def _latest_messages(encoder: Encoder, sample: Sample, max_length: int) -> Sample:
    """The sample from the first user message on with which it fits; from the last one on where none does."""
    starts = [number for number, message in enumerate(sample.messages) if message["role"] == "user" and number > 0]
    if not starts:
        return sample
    shorter = [replace(sample, messages=sample.messages[start:]) for start in starts]
    # Fewer messages are fewer tokens: look for the border by halves.
    low, high = 0, len(shorter) - 1
    while low < high:
        middle = (low + high) // 2
        if len(encoder.token_ids(shorter[middle])) <= max_length:
            high = middle
        else:
            low = middle + 1
    return shorter[low]


def cut_text(row: EncodedSample, max_length: int, how: TooLong) -> EncodedSample | None:
    """Cut a plain text with spans to at most `max_length` tokens.

    Args:
        row: its tokens, more than `max_length`.
        max_length: the most tokens.
        how: "cut_left" takes tokens away before the first label, those on the left first; "cut_longest_segment" takes
            them out of the middle of the longest segment, then of the next longest. The first token stays.

    Returns:
        The row, or None where the labels leave no room.
    """
    excess = len(row.input_ids) - max_length
    if how == "cut_left":
        labelled = (place for place, label in enumerate(row.labels) if label != IGNORED_LABEL)
        taken = left_gaps([(1, next(labelled, len(row.labels)))], excess)
    else:
        taken = middle_gaps(_unlabelled_runs(row), excess)
    return None if taken is None else without(row, taken)


def _unlabelled_runs(row: EncodedSample) -> list[Span]:
    """The segments of a row, without their first token, which may carry a label."""
    runs: list[Span] = []
    for place, number in enumerate(row.segment_ids):
        if number != CAUSAL and place and row.segment_ids[place - 1] == number:
            start = runs.pop()[0] if runs and runs[-1][1] == place else place
            runs.append((start, place + 1))
    return runs


def left_gaps(contents: Sequence[Span], excess: int) -> list[Span] | None:
    """Return the spans of `excess` tokens from the left of the contents, of each all but the last token at most.

    Args:
        contents: (start, end) pairs, ascending and disjoint.
        excess: how many tokens to take.

    Returns:
        (start, end) pairs, ascending; None where the contents hold too few tokens.
    """
    gaps = []
    for start, end in contents:
        taken = min(excess, end - start - 1)
        if taken > 0:
            gaps.append((start, start + taken))
            excess -= taken
    return gaps if excess <= 0 else None


def middle_gaps(contents: Sequence[Span], excess: int) -> list[Span] | None:
    """Return the spans of `excess` tokens in the middle of the longest content, then the next longest.

    Two tokens of each content stay. Arguments and result as for `left_gaps`.
    """
    gaps = []
    for start, end in sorted(contents, key=lambda span: span[0] - span[1]):
        kept = max(2, end - start - excess)
        if end - start > kept:
            gaps.append((start + (kept + 1) // 2, end - kept // 2))
            excess -= end - start - kept
    return sorted(gaps) if excess <= 0 else None


def without(row: EncodedSample, gaps: Sequence[Span]) -> EncodedSample:
    """Return a row without the tokens of some spans; the segments are numbered from 0 again."""
    gone = {place for start, end in gaps for place in range(start, end)}
    kept = [place for place in range(len(row.input_ids)) if place not in gone]
    numbers: dict[int, int] = {CAUSAL: CAUSAL}
    for place in kept:
        numbers.setdefault(row.segment_ids[place], len(numbers) - 1)
    return EncodedSample(
        [row.input_ids[place] for place in kept],
        [row.labels[place] for place in kept],
        [numbers[row.segment_ids[place]] for place in kept],
    )
