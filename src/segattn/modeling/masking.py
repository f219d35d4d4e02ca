"""The mask function that transformers calls for an enabled model, in place of its stock one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from segattn.blocks import block_mask_of
from segattn.errors import UnsupportedModelError
from segattn.masks import MaskFunction, open_segments
from segattn.modeling.forward_pass import ForwardPass, current
from segattn.modeling.inputs import refuse_mixed_documents
from segattn.modeling.slice_masks import mask_ranges, sliced_mask
from segattn.modeling.state import PREPARED
from segattn.segments import pad_segment_ids

__all__ = ["ATTENTION_IMPLEMENTATIONS"]

ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager", "flex_attention")
"""Attention implementations that take a mask of any pattern from transformers' mask interface."""


def _mask_function(base: str) -> Callable[..., Any]:
    """The mask function of `base`, with the segments opened while a pass with segments is under way."""

    def mask(**arguments: Any) -> Any:
        under_way = current()
        if under_way is None:
            raise UnsupportedModelError(
                "an attention mask was asked for outside of the enabled model's forward or generate, where the "
                "segments are not known; call the model itself (its backbone counts)"
            )
        if under_way.is_ahead:
            return None  # the forward makes its slices itself
        stock = ALL_MASK_ATTENTION_FUNCTIONS[base]
        # Only masks over an encoder's tokens may be skipped as bidirectional; segments are the decoder's.
        if under_way.segment_ids is None or "allow_is_bidirectional_skip" in arguments:
            result = stock(**arguments)
        else:
            keys = arguments["kv_length"] + arguments.get("kv_offset", 0)
            ids = under_way.segment_ids
            ids = pad_segment_ids(ids, keys) if ids.shape[1] < keys else ids
            causal_or_local = arguments["mask_function"]
            if under_way.borders is not None:
                ids = refuse_mixed_documents(_sees_across(causal_or_local, under_way.borders), ids)
            rule = open_segments(causal_or_local, ids)
            result = _without_mask(base, arguments, rule, under_way)
            if result is None:
                arguments["allow_is_causal_skip"] = False
                arguments["mask_function"] = rule
                bias = under_way.state.opening_bias
                result = stock(**arguments) if bias is None else _opened(base, arguments, causal_or_local, bias)
            under_way.mask_was_built = True
        if result is not None and not torch.compiler.is_compiling():
            setattr(result, PREPARED, (under_way.segment_ids,))
        return result

    return mask


def _without_mask(base: str, arguments: dict[str, Any], rule: MaskFunction, under_way: ForwardPass) -> Any:
    """Slices or a block mask in the place of the dense mask; None where the dense mask is needed, or faster."""
    state = under_way.state
    # A compiled graph cannot read the ids, and the opening bias goes on single scores.
    if torch.compiler.is_compiling() or state.opening_bias is not None:
        return None
    if base == "flex_attention":
        ranges = mask_ranges(arguments, rule)
        return None if ranges is None else block_mask_of(ranges)
    if not state.slices or under_way.wants_weights:
        return None
    token = sliced_mask(arguments, rule, heads=state.heads, forced=state.backend == "sliced")
    if token is not None:
        under_way.slices_were_read = False
    return token


def _sees_across(causal_or_local: MaskFunction, borders: Tensor) -> Tensor:
    """Where a token at a border of packed documents sees the token before it: bool, the shape of `borders`."""
    rows, length = borders.shape
    row = torch.arange(rows, device=borders.device)[:, None]
    query = torch.arange(1, length, device=borders.device)[None]
    return borders[:, 1:] & causal_or_local(row, torch.zeros_like(row), query, query - 1)


def _opened(base: str, arguments: dict[str, Any], causal_or_local: Callable[..., Any], bias: float) -> Tensor:
    """An additive mask (B, 1, Q, K): `bias` on keys that segments allow and causal forbids, -inf on forbidden ones."""
    if base == "flex_attention":
        raise UnsupportedModelError(
            "segments open gradually through an additive mask, which flex_attention does not take; load the model with "
            "attn_implementation='sdpa'"
        )
    dtype = arguments.get("dtype", torch.float32)
    allowed = sdpa_mask(**arguments)
    causal = sdpa_mask(**{**arguments, "mask_function": causal_or_local})
    zero, ahead, never = (
        torch.tensor(value, dtype=dtype, device=allowed.device) for value in (0.0, bias, torch.finfo(dtype).min)
    )
    return torch.where(causal, zero, torch.where(allowed, ahead, never))


# Names of our own beside the stock ones: nothing that other models use is changed.
for _base in ATTENTION_IMPLEMENTATIONS:
    AttentionMaskInterface.register(f"segattn_{_base}", _mask_function(_base))
