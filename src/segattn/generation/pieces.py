"""A row of tokens as pieces: a segment, which is reused whole or not at all, or a causal run, reused up to any token.

Two rows with the same pieces have the same keys and values there: a token of a segment has seen the tokens before it
and all of its segment, a causal token only those before it. What number a segment has does not matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from segattn.errors import SegmentError

__all__ = ["Piece", "Row", "pieces_of", "rows_of"]


@dataclass(frozen=True)
class Piece:
    """One segment, or one causal run, with its token ids."""

    tokens: tuple[int, ...]
    is_segment: bool


@dataclass(frozen=True)
class Row:
    """One row of a batch without its padding, and how many padding tokens stand before it."""

    padding: int
    tokens: list[int]
    segment_ids: list[int]

    @property
    def length(self) -> int:
        """How many tokens it has."""
        return len(self.tokens)

    @cached_property
    def pieces(self) -> list[Piece]:
        """Its pieces, in order."""
        return pieces_of(self.tokens, self.segment_ids)

    def cut_at_most(self, count: int) -> int:
        """Return the largest number of tokens, up to `count`, that ends inside of no segment."""
        ids = self.segment_ids
        while 0 < count < len(ids) and ids[count - 1] == ids[count] >= 0:
            count -= 1
        return count


def pieces_of(tokens: Sequence[int], segment_ids: Sequence[int]) -> list[Piece]:
    """Split a row without padding into its pieces.

    Args:
        tokens: token ids.
        segment_ids: as many; -1 causal, else the segment's number.
    """
    pieces = []
    for segment, run in groupby(zip(tokens, segment_ids, strict=True), key=lambda pair: pair[1]):
        pieces.append(Piece(tuple(token for token, _ in run), segment >= 0))
    return pieces


def rows_of(input_ids: Tensor, segment_ids: Tensor, attention_mask: Tensor | None) -> list[Row] | None:
    """Read the rows of a left-padded batch; returns None where padding stands elsewhere, which no prefix is kept for.

    Args:
        input_ids: int64 (batch, length).
        segment_ids: int64 (batch, length).
        attention_mask: (batch, length), 0 marks padding; None means no padding.

    Raises:
        SegmentError: a row of padding alone.
    """
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if bool((real[:, :-1] & ~real[:, 1:]).any()):
        return None
    rows: list[Row] = []
    paddings = (~real).sum(1).tolist()
    for padding, tokens, segments in zip(paddings, input_ids.tolist(), segment_ids.tolist(), strict=True):
        if padding == len(tokens):
            raise SegmentError(f"row {len(rows)} is all padding; expected at least one token")
        rows.append(Row(padding, tokens[padding:], segments[padding:]))
    return rows
