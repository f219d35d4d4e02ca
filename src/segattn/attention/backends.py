"""One entry, `segment_attention`, and the one place where a backend is chosen."""

from torch import Tensor

from segattn.attention.dense import dense_attention
from segattn.attention.flex import flex_attention
from segattn.attention.reference import reference_attention
from segattn.errors import SegmentError, UnsupportedModelError
from segattn.masks import block_mask, segment_mask
from segattn.segments import as_rows

__all__ = ["BACKENDS", "choose_backend", "segment_attention"]

BACKENDS = ("auto", "reference", "dense", "flex")


def choose_backend(backend: str, *, softcap: float | None) -> str:
    """Resolve "auto" and refuse what a backend cannot do.

    Raises:
        SegmentError: an unknown backend; the message lists the known ones.
        UnsupportedModelError: the backend cannot compute a soft-capped score.
    """
    if backend not in BACKENDS:
        raise SegmentError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
    if backend == "auto":
        # SDPA has no soft-cap; everything else it does at least as fast as the written-out form.
        return "dense" if softcap is None else "reference"
    if backend == "dense" and softcap is not None:
        raise UnsupportedModelError(
            "backend='dense' runs torch's SDPA, which has no softcap; use backend='reference' or 'flex'"
        )
    return backend


def segment_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    sliding_window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Attend under the segment rule.

    Args:
        query: floating, shape (B, H, Q, D). The queries are the last Q of the K positions.
        key: shape (B, Hkv, K, D); Hkv divides H (grouped-query attention).
        value: shape (B, Hkv, K, Dv).
        segment_ids: integer, shape (B, K) or, for one row, (K,).
        attention_mask: shape (B, K), 0 = padding; a packed row numbers its documents 1, 2, ...
        sliding_window: cut the rule to |i - j| < sliding_window.
        scale: factor on the scores, D ** -0.5 by default.
        softcap: scores s become softcap * tanh(s / softcap) (Gemma 2).
        backend: "auto", "reference" (the specification), "dense" (SDPA with a mask) or "flex".

    Returns:
        shape (B, H, Q, Dv), the dtype of `query`. Rows of queries that may see nothing are zero.

    Raises:
        SegmentError: shapes, types or segment ids that do not fit; names what was given.
        UnsupportedModelError: the backend cannot do what is asked.
    """
    ids = as_rows(segment_ids)
    _check_shapes(query, key, value, ids)
    chosen = choose_backend(backend, softcap=softcap)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    queries = query.shape[2]
    if chosen == "flex":
        blocks = block_mask(ids, attention_mask, query_length=queries, sliding_window=sliding_window)
        return flex_attention(query, key, value, blocks, scale=scale, softcap=softcap)
    mask = segment_mask(ids, attention_mask, query_length=queries, sliding_window=sliding_window)
    if chosen == "dense":
        return dense_attention(query, key, value, mask, scale=scale)
    return reference_attention(query, key, value, mask, scale=scale, softcap=softcap)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor, ids: Tensor) -> None:
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if not query.ndim == key.ndim == value.ndim == 4:
        raise SegmentError(f"{shapes}; expected four axes each: (batch, heads, tokens, head size)")
    if key.shape[:3] != value.shape[:3] or query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise SegmentError(f"{shapes}; expected (B, H, Q, D), (B, Hkv, K, D) and (B, Hkv, K, Dv)")
    if query.shape[1] % key.shape[1]:
        raise SegmentError(f"{shapes}; expected the {query.shape[1]} query heads to be a multiple of the key heads")
    if query.shape[2] > key.shape[2]:
        raise SegmentError(f"{shapes}; expected at most as many queries as keys")
    if ids.shape != (key.shape[0], key.shape[2]):
        raise SegmentError(
            f"segment_ids has shape {tuple(ids.shape)} for {shapes}; expected {(key.shape[0], key.shape[2])}, "
            "one id per key"
        )
    if ids.device != query.device:
        raise SegmentError(f"segment_ids is on {ids.device} and query on {query.device}; expected one device")
