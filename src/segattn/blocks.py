"""The rule as a FlexAttention block mask, built from the ranges: which blocks of keys a block of queries must look at.

The five tokens of masks.py in blocks of two (`segment_ids = [0, 0, 0, -1, -1]`, block_size=2):

         01 23 4    keys            block of queries   start   stop    partial    full
    01   ## #. .                    01                 0 0     3 3     1          0
    23   ## #. .                    23                 0 0     3 4     1          0
         ## ## .
    4    ## ## #                    4                  0       5       0, 1, 2    none: the block is cut short
    queries

A full block is computed without asking the mask; in a partial block the mask is asked for every pair; the others are
skipped. Only the two ends of each query's range are looked at, so the work is the number of tokens plus the number of
pairs of blocks.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from segattn.errors import SegmentError
from segattn.masks import MaskFunction, checked_arguments, mask_function
from segattn.ranges import VisibleRanges, visible_ranges

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["BLOCK_SIZE", "block_mask", "block_mask_of", "extended", "length_class"]

BLOCK_SIZE = 128
"""Tokens in a block by default: FlexAttention's own choice, and what its kernels are tuned for."""


def length_class(length: int) -> int:
    """Round a length up so that few lengths are left: 128, 256, 384, 512, 768, 1024, 1536, and so on; 1 stays 1.

    Two steps to each doubling: what is compiled once per length is then compiled some twenty times up to 10^5 tokens.
    """
    if length == 1:
        return 1  # decoding, for which there are kernels of their own
    doubled = max(BLOCK_SIZE, 1 << (length - 1).bit_length())
    between = 3 * doubled // 4
    return between if between % BLOCK_SIZE == 0 and length <= between else doubled


def block_mask(
    segment_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    query_length: int | None = None,
    sliding_window: int | None = None,
    block_size: int = BLOCK_SIZE,
) -> "BlockMask":
    """Build the same rule as a FlexAttention `BlockMask` (torch.nn.attention.flex_attention).

    No query-key matrix is made, except where a query sees keys with a gap between them (padding in the middle of a
    row, a packed document in two places).

    Args:
        segment_ids: as in `segment_mask`, like the three arguments after it.
        attention_mask: shape (B, K), 0 = padding.
        query_length: the last Q positions are the queries.
        sliding_window: cut the rule to |i - j| < sliding_window.
        block_size: tokens in a block, of queries and of keys.

    Returns:
        A mask of B rows for Q queries and K keys, the same for all heads.

    Raises:
        SegmentError: malformed segment ids or arguments; names row and position.
    """
    _check_block_size(block_size)
    ranges = visible_ranges(segment_ids, attention_mask, query_length=query_length, sliding_window=sliding_window)
    if ranges is not None:
        return block_mask_of(ranges, block_size=block_size)
    ids, documents, queries = checked_arguments(segment_ids, attention_mask, query_length, sliding_window)
    return _evaluated(ids, documents, queries, sliding_window, block_size)


def block_mask_of(ranges: VisibleRanges, *, block_size: int = BLOCK_SIZE) -> "BlockMask":
    """Build the `BlockMask` of ranges that are known already.

    Args:
        ranges: of B rows and Q queries. Queries are counted from the first query, as FlexAttention counts them, not
            from the first key of a cache.
        block_size: tokens in a block, of queries and of keys.

    Returns:
        A mask for exactly B rows: it does not broadcast over the batch.

    Raises:
        SegmentError: a block size below 1.
    """
    from torch.nn.attention.flex_attention import BlockMask

    _check_block_size(block_size)
    seen, full = _seen_and_full(ranges, block_size)
    partial_count, partial_blocks = _listed(seen & ~full)
    full_count, full_blocks = _listed(full)
    return BlockMask.from_kv_blocks(
        partial_count,
        partial_blocks,
        full_count,
        full_blocks,
        BLOCK_SIZE=block_size,
        mask_mod=_within(ranges),
        seq_lengths=(ranges.start.shape[1], ranges.keys),
    )


def extended(mask: "BlockMask", queries: int, keys: int) -> "BlockMask":
    """Return the same mask for tensors that were filled up behind the end, to their length class at most.

    No query sees a key that was added. What added queries see is not laid down.

    Args:
        mask: from `block_mask` or `block_mask_of`, for Q queries and K keys.
        queries: Q to `length_class(Q)`.
        keys: K to `length_class(K)`.
    """
    from torch.nn.attention.flex_attention import BlockMask

    if mask.seq_lengths == (queries, keys):
        return mask
    rows = -(-queries // mask.BLOCK_SIZE[0]) - mask.kv_indices.shape[-2]
    columns = -(-keys // mask.BLOCK_SIZE[1]) - mask.kv_indices.shape[-1]

    def longer(count: Tensor | None, blocks: Tensor | None) -> tuple[Tensor, Tensor]:
        # Both masks are made with full blocks; a list is read only as far as its count says.
        assert count is not None
        assert blocks is not None
        return pad(count, (0, rows)), pad(blocks, (0, columns, 0, rows))

    return BlockMask.from_kv_blocks(
        *longer(mask.kv_num_blocks, mask.kv_indices),
        *longer(mask.full_kv_num_blocks, mask.full_kv_indices),
        BLOCK_SIZE=mask.BLOCK_SIZE,
        mask_mod=mask.mask_mod,
        seq_lengths=(queries, keys),
    )


def _within(ranges: VisibleRanges) -> MaskFunction:
    # One function for every mask: masks differ in the captured tensors alone, which are inputs to the compiler, so that
    # a kernel compiled for one segmentation serves the next. Captured tensors have the shape of the length class for
    # the same reason. The kernels read them once per pair; 32 bits are enough.
    fill = (0, length_class(ranges.start.shape[1]) - ranges.start.shape[1])
    start, stop = (pad(ends.to(torch.int32), fill) for ends in (ranges.start, ranges.stop))

    def within(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        return (key >= start[batch, query]) & (key < stop[batch, query])

    return within


def _seen_and_full(ranges: VisibleRanges, size: int) -> tuple[Tensor, Tensor]:
    """Which blocks of keys some query of a block sees any of, and which all its queries see whole: bool (B, q, k)."""
    batch, queries = ranges.start.shape
    # Queries that fill up the last block see nothing, so that no block of keys is full for it: FlexAttention's kernels
    # do not ask the mask in a full block, not even whether the query or the key exists.
    fill = -queries % size
    start = pad(ranges.start, (0, fill)).view(batch, -1, size)
    stop = pad(ranges.stop, (0, fill)).view(batch, -1, size)
    columns = -(-ranges.keys // size)

    # +1 where a query's run of blocks begins and -1 behind its end: a running sum counts the queries that see a block.
    # The blocks that a block of queries sees need not be neighbours, as padding may lie between two documents.
    sees = (stop > start).to(torch.int32)
    change = torch.zeros(*start.shape[:2], columns + 1, dtype=torch.int32, device=start.device)
    change.scatter_add_(2, start // size * sees, sees)
    change.scatter_add_(2, (stop + size - 1) // size * sees, -sees)
    seen = change.cumsum(2, dtype=torch.int32)[..., :columns] > 0

    first_key = torch.arange(columns, device=start.device) * size
    full = (start.amax(2, keepdim=True) <= first_key) & (first_key + size <= stop.amin(2, keepdim=True))
    return seen, full


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of a row are chosen, and which, chosen ones first: int32 (B, 1, q) and (B, 1, q, k)."""
    blocks = chosen.to(torch.int8).argsort(dim=2, descending=True, stable=True)
    return chosen.sum(2, dtype=torch.int32)[:, None], blocks.to(torch.int32)[:, None]


def _evaluated(
    ids: Tensor, documents: Tensor | None, queries: int, sliding_window: int | None, block_size: int
) -> "BlockMask":
    """The block mask of the whole rule, by asking it for every pair."""
    from torch.nn.attention.flex_attention import create_block_mask

    batch, keys = ids.shape
    # The number of cached keys is captured as a tensor, and the others in the shape of their class, as in `_within`.
    past = torch.tensor(keys - queries, device=ids.device)
    fill = (0, length_class(max(keys, keys - queries + length_class(queries))) - keys)
    rule = mask_function(pad(ids, fill, value=-1), None if documents is None else pad(documents, fill), sliding_window)

    def from_first_query(b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return rule(b, head, query + past, key)

    return create_block_mask(
        from_first_query, B=batch, H=None, Q_LEN=queries, KV_LEN=keys, device=str(ids.device), BLOCK_SIZE=block_size
    )


def _check_block_size(block_size: int) -> None:
    if block_size < 1:
        raise SegmentError(f"block_size is {block_size}; expected a number of tokens >= 1")
