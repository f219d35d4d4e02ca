"""Where a chunk of a chunked prefill may end, and the pieces that it is computed in.

A segment is one piece: its tokens see everything cached before it and each other, which is attention without a causal
mask. What lies between segments is cut anywhere and attends causally. A chunk may hold several pieces, each a row of
its own to the attention kernels (see `attention_rows`); a kernel with one causal flag per step takes one piece. A chunk
may begin inside a segment (the part before it comes from the prefix cache, where it is kept under the whole segment's
key), but never end inside one.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from segattn.serving.errors import CutSegmentError
from segattn.serving.spans import Spans

__all__ = ["Piece", "next_chunk", "pieces", "step_is_causal"]


class Piece(NamedTuple):
    """Tokens `start` to `end` (exclusive) of a request, which see each other causally or in both directions."""

    start: int
    end: int
    causal: bool


def next_chunk(spans: Spans, start: int, wanted: int, most_pieces: int) -> list[Piece]:
    """Return the pieces of a request that the next step computes, none to wait for a step with more room.

    Args:
        spans: the request's segments.
        start: tokens that are computed already.
        wanted: tokens that the step has room for.
        most_pieces: that the chunk may hold.
    """
    end = start + wanted
    cut = _at_or_after(spans, end)
    if cut is not None and cut[0] < end < cut[1]:
        end = cut[0]
    return pieces(spans, start, end)[:most_pieces]


def pieces(spans: Spans, start: int, end: int) -> list[Piece]:
    """Return the pieces of the chunk of tokens `start` to `end` (exclusive), as few as there can be.

    Raises:
        CutSegmentError: the chunk ends inside a segment.
    """
    found: list[Piece] = []
    at = start
    while at < end:
        segment = _at_or_after(spans, at)
        if segment is None or end <= segment[0]:
            piece = Piece(at, end, True)
        elif at < segment[0]:
            piece = Piece(at, segment[0], True)
        elif end < segment[1]:
            raise CutSegmentError(
                f"a step would compute tokens {start} to {end} of a request, which ends inside the segment {segment}; "
                "expected a chunk that ends where a segment ends, or between segments. The scheduler in use is not "
                "segattn's, or vLLM changed under it: run segattn's tests for this version of vLLM"
            )
        else:
            # One token sees the same either way.
            piece = Piece(at, segment[1], segment[1] - at == 1)
        if found and found[-1].causal and piece.causal:
            piece = Piece(found.pop().start, piece.end, True)
        found.append(piece)
        at = piece.end
    return found


def step_is_causal(chunks: Sequence[Sequence[Piece]]) -> bool:
    """Return the one flag of a step whose kernels take no flag per row.

    Args:
        chunks: the pieces of every request in the step. A piece of one token fits either kind.

    Raises:
        CutSegmentError: the step holds segments and longer causal chunks.
    """
    kinds = {piece.causal for chunk in chunks for piece in chunk if piece.end - piece.start > 1}
    if len(kinds) > 1 or any(len(chunk) > 1 for chunk in chunks):
        raise CutSegmentError(
            "a step holds segments and causal chunks of several tokens, or several segments of one request, which this "
            "attention backend cannot tell apart; expected steps of one kind. The scheduler in use is not segattn's"
        )
    return kinds != {False}


def _at_or_after(spans: Sequence[tuple[int, int]], position: int) -> tuple[int, int] | None:
    """The segment that holds a position, or else the next one."""
    index = bisect_right(spans, position, key=lambda span: span[1])
    return spans[index] if index < len(spans) else None
