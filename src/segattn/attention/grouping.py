r"""Join what short slices have in common: the keys that all of them see become one large slice.

Kernels are slower with few queries at a time. The turns of a chat are short, and each looks back at all before it:

    user 2    # # # # # # # # a a a . . . .
    answer 2  # # # # # # # # b b b \ . . .
    user 3    # # # # # # # # c c c c c c c

The block of # is one call for three turns, and what remains of each (a, b, c) is small.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from segattn.attention.slice import Slice

__all__ = ["GROUP_QUERIES", "grouped"]

GROUP_QUERIES = 1024
"""How many queries a group may hold; longer slices are computed as they are (docs/attention.md)."""


def grouped(slices: Sequence[Slice]) -> Iterator[Slice]:
    """Yield slices that compute the same pairs, those of neighbouring short slices with their common keys first."""
    group: list[Slice] = []
    for piece in slices:
        if group and not _fits(group, piece):
            yield from _joined(group)
            group = []
        group.append(piece)
    yield from _joined(group)


def _fits(group: list[Slice], piece: Slice) -> bool:
    first, last = group[0], group[-1]
    return (
        piece.rows == first.rows
        and piece.queries[0] == last.queries[1]
        and piece.queries[1] - first.queries[0] <= GROUP_QUERIES
        and piece.keys[0] == first.keys[0]
        and "edge" not in (piece.kind, first.kind)
    )


def _joined(group: list[Slice]) -> Iterator[Slice]:
    if not group:
        return
    start, common = group[0].keys[0], min(_seen_by_all(piece) for piece in group)
    if len(group) < 2 or common - start < GROUP_QUERIES // 4:  # few keys in common are not worth a call
        yield from group
        return
    yield Slice(group[0].rows, (group[0].queries[0], group[-1].queries[1]), (start, common), "full")
    for piece in group:
        if piece.keys[1] > common:
            yield replace(piece, keys=(common, piece.keys[1]))


def _seen_by_all(piece: Slice) -> int:
    """The first key that not every query of a slice sees; of a causal one, that of its square."""
    queries = piece.queries[1] - piece.queries[0]
    return piece.keys[1] - queries if piece.kind == "causal" else piece.keys[1]
