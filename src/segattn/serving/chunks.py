"""Where a chunk of a chunked prefill may end, and how its tokens attend.

A segment is one chunk: its tokens see everything cached before it and each other, which is attention without a causal
mask. What lies between segments is cut anywhere and attends causally. A chunk may begin inside a segment (the part
before it comes from the prefix cache, where it is kept under the whole segment's key), but never end inside one.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from segattn.serving.errors import CutSegmentError
from segattn.serving.spans import Spans

__all__ = ["chunk_length", "is_causal", "step_is_causal"]


def chunk_length(spans: Spans, start: int, wanted: int) -> int:
    """Return how many tokens of a request the next step computes, 0 to wait for a step with more room.

    Args:
        spans: the request's segments.
        start: tokens that are computed already.
        wanted: tokens that the step has room for.
    """
    segment = _at_or_after(spans, start)
    if segment is None:
        return wanted
    begin, end = segment
    if start < begin:
        return min(wanted, begin - start)
    return end - start if wanted >= end - start else 0


def is_causal(spans: Spans, start: int, end: int) -> bool:
    """Return whether the chunk of tokens `start` to `end` (exclusive) attends causally, False for a segment.

    Raises:
        CutSegmentError: the chunk ends inside a segment, or holds a segment and more.
    """
    segment = _at_or_after(spans, start)
    if segment is None or end <= segment[0]:
        return True
    if start < segment[0] or end != segment[1]:
        raise CutSegmentError(
            f"a step would compute tokens {start} to {end} of a request whose next segment is {segment}; expected a "
            "chunk that ends where the segment ends, or before it begins. The scheduler in use is not segattn's, or "
            "vLLM changed under it: run segattn's tests for this version of vLLM"
        )
    return False


def step_is_causal(chunks: Iterable[tuple[bool, int]]) -> bool:
    """Return the one flag of a step whose kernels take no flag per request.

    Args:
        chunks: (attends causally, tokens) of every request in the step. For one token both are the same.

    Raises:
        CutSegmentError: the step holds segments and longer causal chunks.
    """
    kinds = {causal for causal, tokens in chunks if tokens > 1}
    if len(kinds) > 1:
        raise CutSegmentError(
            "a step holds segments and causal chunks of several tokens, which this attention backend cannot tell "
            "apart; expected steps of one kind. The scheduler in use is not segattn's"
        )
    return kinds != {False}


def _at_or_after(spans: Sequence[tuple[int, int]], position: int) -> tuple[int, int] | None:
    """The segment that holds a position, or else the next one."""
    index = bisect_right(spans, position, key=lambda span: span[1])
    return spans[index] if index < len(spans) else None
