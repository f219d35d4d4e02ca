"""The rule "which key may this query see", in its one home, and as a dense mask.

Polarity everywhere: True = may attend. Shape suffixes: B batch, Q queries, K keys, 1 a broadcast head axis.

Five tokens, segment 0 = tokens 0-2, tokens 3 and 4 causal (`segment_ids = [0, 0, 0, -1, -1]`):

        0 1 2 3 4   key
    0   # # # . .
    1   # # # . .
    2   # # # . .
    3   # # # # .
    4   # # # # #
    query
"""

from collections.abc import Callable

import torch
from torch import Tensor

from segattn.errors import SegmentError
from segattn.segments import check_segment_ids

__all__ = ["MaskFunction", "checked_arguments", "mask_function", "open_segments", "segment_mask"]

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(batch, head, query, key) index tensors that broadcast -> bool, as FlexAttention and transformers take it."""


def open_segments(stock: MaskFunction, segment_ids_BK: Tensor) -> MaskFunction:
    """Add to a causal mask function what the segment rule adds: keys ahead of the query, inside its segment.

    A key ahead is seen iff both tokens lie in one segment and `stock` allows the mirrored pair, i.e. lets the later of
    the two see the earlier one. So a layer that is local stays local, whatever its pattern (window, chunks, documents).

    Args:
        stock: causal, maybe cut to a window, to chunks or to packed documents.
        segment_ids_BK: covers every key, past ones included.
    """

    def opened(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query_segment = segment_ids_BK[batch, query]
        same = (query_segment == segment_ids_BK[batch, key]) & (query_segment >= 0)
        mirrored = stock(batch, head, torch.maximum(query, key), torch.minimum(query, key))
        return stock(batch, head, query, key) | (same & mirrored)

    return opened


def _causal(sliding_window: int | None) -> MaskFunction:
    def causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        behind = key <= query
        return behind if sliding_window is None else behind & (query - key < sliding_window)

    return causal


def mask_function(
    segment_ids_BK: Tensor,
    attention_mask_BK: Tensor | None = None,
    sliding_window: int | None = None,
    *,
    hide_padding: bool = True,
) -> MaskFunction:
    """Return the whole rule, index by index.

    Query i may attend to key j iff j is a real token of the same packed document and
    (j <= i or both lie in the same segment), cut to |i - j| < sliding_window where a layer has one.
    With `hide_padding` off, padding queries see padding keys too; the caller takes these out.
    """
    opened = open_segments(_causal(sliding_window), segment_ids_BK)

    def rule(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed = opened(batch, head, query, key)
        if attention_mask_BK is None:
            return allowed
        key_document, query_document = attention_mask_BK[batch, key], attention_mask_BK[batch, query]
        # A padding query belongs to no document; what it sees is never read, but it must not become all False
        # where the stock causal mask leaves it something: softmax over nothing is NaN in some kernels.
        same_document = (key_document == query_document) | (query_document == 0)
        allowed = allowed & same_document
        return allowed & (key_document != 0) if hide_padding else allowed

    return rule


def segment_mask(
    segment_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    query_length: int | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """Build the segment mask as a dense bool tensor; True = may attend.

    Args:
        segment_ids: integer, shape (B, K), every token, cached ones included; or (K,) for one row.
        attention_mask: shape (B, K), 0 = padding. A packed row numbers its documents 1, 2, ...
        query_length: the last Q positions are the queries (a KV cache holds the others); K by default.
        sliding_window: cut the rule to |i - j| < sliding_window, in both directions.

    Returns:
        bool, shape (B, 1, Q, K).

    Raises:
        SegmentError: malformed segment ids or arguments; names row and position.
    """
    ids, documents, queries = checked_arguments(segment_ids, attention_mask, query_length, sliding_window)
    batch, keys = ids.shape
    position = torch.arange(keys, device=ids.device)
    rule = mask_function(ids, documents, sliding_window)
    return rule(
        torch.arange(batch, device=ids.device).view(-1, 1, 1, 1),
        torch.zeros((), dtype=torch.int64, device=ids.device),
        position[keys - queries :].view(1, 1, -1, 1),
        position.view(1, 1, 1, -1),
    )


def checked_arguments(
    segment_ids: Tensor, attention_mask: Tensor | None, query_length: int | None, sliding_window: int | None
) -> tuple[Tensor, Tensor | None, int]:
    """Check the arguments of a mask; return ids (B, K), documents (B, K) or None, and the query length."""
    if attention_mask is not None:
        if not isinstance(attention_mask, Tensor) or attention_mask.is_floating_point():
            raise SegmentError(
                "attention_mask must be a bool or integer tensor of shape (batch, length), 0 = padding; "
                f"got {attention_mask.dtype if isinstance(attention_mask, Tensor) else type(attention_mask).__name__}"
            )
        attention_mask = attention_mask[None] if attention_mask.ndim == 1 else attention_mask
        attention_mask = attention_mask.to(torch.int64)
    ids = check_segment_ids(segment_ids, attention_mask)
    keys = ids.shape[1]
    queries = keys if query_length is None else query_length
    if not 1 <= queries <= keys:
        raise SegmentError(f"query_length is {queries}; expected 1 to {keys}, the number of segment ids in a row")
    if sliding_window is not None and sliding_window < 1:
        raise SegmentError(f"sliding_window is {sliding_window}; expected None or a number of tokens >= 1")
    if attention_mask is not None:
        _check_documents(ids, attention_mask)
    return ids, attention_mask, queries


def _check_documents(ids: Tensor, documents: Tensor) -> None:
    crossing = (ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] >= 0) & (documents[:, 1:] != documents[:, :-1])
    if crossing.any():
        row, before = crossing.nonzero()[0].tolist()
        raise SegmentError(
            f"row {row}, position {before + 1}: segment {int(ids[row, before + 1])} runs across the border of two "
            "packed documents; expected every segment inside one document"
        )
