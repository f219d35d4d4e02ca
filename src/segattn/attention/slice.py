"""One slice: a block of queries and keys that a kernel computes in one call, with no mask."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Kind", "Slice", "square_slices"]

Kind = Literal["full", "causal", "edge"]


@dataclass(frozen=True)
class Slice:
    """A block of rows, queries and keys (each start, stop), and which of its pairs are computed.

    `kind` is "full" (every query sees every key), "causal" (the last query sees every key, the one before all but the
    last, and so on: aligned at the bottom right) or "edge" (square; query i sees the keys from i on).
    """

    rows: tuple[int, int]
    queries: tuple[int, int]
    keys: tuple[int, int]
    kind: Kind

    def pairs(self) -> int:
        """Return how many query-key pairs are computed."""
        rows = self.rows[1] - self.rows[0]
        queries, keys = self.queries[1] - self.queries[0], self.keys[1] - self.keys[0]
        unseen = 0 if self.kind == "full" else queries * (queries - 1) // 2
        return rows * (queries * keys - unseen)


def square_slices(piece: Slice) -> tuple[Slice, ...]:
    """Split a causal slice into a full one and a square one, for kernels that align at the top left."""
    (a, b), (start, stop) = piece.queries, piece.keys
    corner = stop - (b - a)
    if piece.kind != "causal" or corner == start:
        return (piece,)
    return (
        Slice(piece.rows, piece.queries, (start, corner), "full"),
        Slice(piece.rows, piece.queries, (corner, stop), "causal"),
    )
