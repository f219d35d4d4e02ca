"""One entry, `segment_attention`, and the one place where a backend is chosen."""

import torch
from torch import Tensor

from segattn.attention.dense import dense_attention
from segattn.attention.flex import flex_attention
from segattn.attention.reference import reference_attention
from segattn.attention.sliced import sliced_attention
from segattn.attention.slices import SlicePlan, plan_slices
from segattn.blocks import block_mask
from segattn.errors import SegmentError, UnsupportedModelError
from segattn.masks import segment_mask
from segattn.ranges import visible_ranges
from segattn.segments import as_rows

__all__ = ["BACKENDS", "segment_attention", "slices_pay"]

BACKENDS = ("auto", "reference", "dense", "sliced", "flex")

# What one more kernel call costs, as the number of scores that could be computed in that time; and how much longer a
# score takes under a mask. Measured on two CPU cores (docs/benchmarks.md, "thresholds"); for GPUs an estimate from a
# launch of 20 us beside 10^12 scores per second.
_SCORES_PER_CALL = {"cpu": 130_000, "cuda": 20_000_000}
_MASK_FACTOR = 1.1


def slices_pay(plan: SlicePlan, heads: int, device_type: str) -> bool:
    """Tell whether slices are expected to be faster than one call with a dense mask."""
    batch, queries, keys = plan.shape
    per_call = _SCORES_PER_CALL.get(device_type, _SCORES_PER_CALL["cuda"])
    sliced = heads * plan.pairs() + per_call * len(plan.slices)
    return sliced < _MASK_FACTOR * heads * batch * queries * keys


def _check_backend(backend: str, softcap: float | None) -> None:
    if backend not in BACKENDS:
        raise SegmentError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
    if backend == "dense" and softcap is not None:
        raise UnsupportedModelError(
            "backend='dense' runs torch's SDPA, which has no softcap; use backend='sliced', 'reference' or 'flex'"
        )


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
        backend: "reference" (the specification), "dense" (SDPA with a mask), "sliced" (no mask, memory that grows with
            n), "flex", or "auto": slices where they are faster than a mask.

    Returns:
        shape (B, H, Q, Dv), the dtype of `query`. Rows of queries that may see nothing are zero.

    Raises:
        SegmentError: shapes, types or segment ids that do not fit; names what was given.
        UnsupportedModelError: the backend cannot do what is asked.
    """
    ids = as_rows(segment_ids)
    _check_backend(backend, softcap)
    _check_shapes(query, key, value, ids)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    queries = query.shape[2]
    # A plan reads the ids, which a compiled graph cannot.
    if backend == "sliced" or (backend == "auto" and not torch.compiler.is_compiling()):
        ranges = visible_ranges(ids, attention_mask, query_length=queries, sliding_window=sliding_window)
        plan = None if ranges is None else plan_slices(ranges)
        if plan is not None and (backend == "sliced" or slices_pay(plan, query.shape[1], query.device.type)):
            return sliced_attention(query, key, value, plan, scale=scale, softcap=softcap)
        if backend == "sliced":
            raise UnsupportedModelError(
                "backend='sliced' needs keys without gaps, but some query sees keys on both sides of padding or of "
                "another document; pad at the ends of rows, or use backend='dense'"
            )
    if backend == "flex":
        blocks = block_mask(ids, attention_mask, query_length=queries, sliding_window=sliding_window)
        return flex_attention(query, key, value, blocks, scale=scale, softcap=softcap)
    mask = segment_mask(ids, attention_mask, query_length=queries, sliding_window=sliding_window)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if backend == "reference" or softcap is not None:
        return reference_attention(query, key, value, mask, scale=scale, softcap=softcap)
    return dense_attention(query, key, value, mask, scale=scale)


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
