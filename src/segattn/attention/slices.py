r"""Cut what the queries see into slices: pieces that a kernel computes in one call, with no mask.

A picture of ten tokens, a segment of four, a causal answer, a segment of three (# full, \ causal):

        0 1 2 3 4 5 6 7 8 9   key
    0   # # # # . . . . . .
    1   # # # # . . . . . .      queries 0-3: full over keys 0-3
    2   # # # # . . . . . .
    3   # # # # . . . . . .
    4   \ \ \ \ \ . . . . .
    5   \ \ \ \ \ \ . . . .      queries 4-6: causal over keys 0-6, aligned at the bottom right
    6   \ \ \ \ \ \ \ . . .
    7   # # # # # # # # # #
    8   # # # # # # # # # #      queries 7-9: full over keys 0-9
    9   # # # # # # # # # #
    query

A sliding window adds a third kind, `edge`: the triangle at which the window lets go of its oldest keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from segattn.attention.grouping import grouped
from segattn.attention.slice import Kind, Slice, square_slices
from segattn.ranges import VisibleRanges

__all__ = ["SlicePlan", "plan_slices"]


@dataclass(frozen=True)
class SlicePlan:
    """The slices of a batch; together they hold each visible query-key pair once.

    Attributes:
        slices: ordered by rows and queries.
        blind: blocks (rows, queries) of queries that see nothing.
        shape: (B, Q, K).
    """

    slices: tuple[Slice, ...]
    blind: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    shape: tuple[int, int, int]

    def pairs(self) -> int:
        """Return how many query-key pairs are computed, summed over the rows."""
        return sum(piece.pairs() for piece in self.slices)

    @cached_property
    def squares(self) -> tuple[Slice, ...]:
        """The slices for kernels that align a causal one at the top left: full ones and squares."""
        return tuple(square for piece in self.slices for square in square_slices(piece))

    def to_mask(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the same pairs as a dense mask, bool (B, 1, Q, K), True = computed."""
        batch, queries, keys = self.shape
        mask = torch.zeros(batch, queries, keys, dtype=torch.bool, device=device)
        for piece in self.slices:
            block = mask[slice(*piece.rows), slice(*piece.queries), slice(*piece.keys)]
            ones = torch.ones_like(block)
            if piece.kind == "causal":
                ones = ones.tril(block.shape[-1] - block.shape[-2])
            block |= ones.triu() if piece.kind == "edge" else ones
        return mask[:, None]


def plan_slices(ranges: VisibleRanges) -> SlicePlan:
    """Cut visible ranges into slices, as few as the runs of equal pattern allow; short ones are grouped.

    Neighbouring rows of the same pattern share their slices. The ranges are read on the CPU, once.
    """
    start_BQ, stop_BQ = ranges.start.cpu(), ranges.stop.cpu()
    batch, queries = start_BQ.shape
    slices: list[Slice] = []
    blind = []
    first = 0
    for row in range(1, batch + 1):
        if row < batch and torch.equal(start_BQ[row], start_BQ[first]) and torch.equal(stop_BQ[row], stop_BQ[first]):
            continue
        rows, row_slices = (first, row), list[Slice]()
        for run in _runs(start_BQ[first], stop_BQ[first]):
            if run.start == run.stop:
                blind.append((rows, run.queries))
            else:
                row_slices += _run_slices(rows, run)
        slices += grouped(row_slices)
        first = row
    return SlicePlan(tuple(slices), tuple(blind), (batch, queries, ranges.keys))


@dataclass(frozen=True)
class _Run:
    """Queries of which each sees the same keys as the one before, or keys whose ends have moved by one.

    `start` and `stop` are those of the first query.
    """

    queries: tuple[int, int]
    start: int
    stop: int
    start_moves: bool
    stop_moves: bool


def _run_slices(rows: tuple[int, int], run: _Run) -> Iterator[Slice]:
    (a, b), grows = run.queries, int(run.stop_moves)
    kind: Kind = "causal" if run.stop_moves else "full"
    if not run.start_moves:
        yield Slice(rows, (a, b), (run.start, run.stop + (b - a - 1) * grows), kind)
        return
    # Where both ends move, a block longer than the window would hold queries with no key in common.
    step = run.stop - run.start if run.stop_moves else b - a
    for first in range(a, b, step):
        end = min(first + step, b)
        moved, shift = first - a, end - first - 1
        start, stop = run.start + moved, run.stop + moved * grows
        yield Slice(rows, (first, end), (start + shift, stop + shift * grows), kind)
        if shift:
            yield Slice(rows, (first, end - 1), (start, start + shift), "edge")


def _runs(start_Q: Tensor, stop_Q: Tensor) -> Iterator[_Run]:
    """Cut the queries of a row into runs, as few as there are when each is made as long as it can be."""
    start_step, stop_step = start_Q.diff(), stop_Q.diff()
    regular = (start_step >= 0) & (start_step <= 1) & (stop_step >= 0) & (stop_step <= 1)
    # A query that sees nothing must not join a run of ones that do.
    empty = start_Q == stop_Q
    regular &= empty[1:] == empty[:-1]
    code_of_step = torch.where(regular, 2 * start_step + stop_step, -1)
    codes, lengths = torch.unique_consecutive(code_of_step, return_counts=True)

    def run(first: int, end: int, code: int) -> _Run:
        return _Run((first, end), int(start_Q[first]), int(stop_Q[first]), code >= 2, code > 0 and code % 2 == 1)

    free, step = 0, 0  # the first query of no run yet, and the step between queries that a code speaks of
    for code, length in zip(codes.tolist(), lengths.tolist(), strict=True):
        end = step + length  # the steps lead from query `step` to query `end`
        if code < 0:
            yield from (run(query, query + 1, 0) for query in range(free, end))
            free = max(free, end)
        elif free < end or free == step:
            yield run(free, end + 1, code)
            free = end + 1
        step = end
    if free < len(start_Q):
        yield run(free, len(start_Q), 0)
