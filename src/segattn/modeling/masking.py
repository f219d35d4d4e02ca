"""The mask function that transformers calls for an enabled model, in place of its stock one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from segattn.attention.slices import SlicePlan
from segattn.blocks import block_mask_of
from segattn.errors import UnsupportedModelError
from segattn.masks import MaskFunction, open_segments
from segattn.modeling.forward_pass import ForwardPass, current
from segattn.modeling.inputs import refuse_mixed_documents
from segattn.modeling.layer_masks import LayerMasks, additive_mask
from segattn.modeling.mask_tokens import token_of
from segattn.modeling.slice_masks import mask_plan, mask_ranges
from segattn.modeling.state import PREPARED
from segattn.segments import pad_segment_ids

__all__ = ["ATTENTION_IMPLEMENTATIONS"]

ATTENTION_IMPLEMENTATIONS = ("sdpa", "eager", "flex_attention")
"""Attention implementations that take a mask of any pattern from transformers' mask interface."""


def _mask_function(base: str) -> Callable[..., Any]:
    """The mask function of `base`, with the segments opened while a pass with segments is under way."""

    def mask(**arguments: Any) -> Any:
        under_way = current()
        # A model built from an enabled one's config names this function too: the frozen reference of a preference
        # trainer. It may run inside of a pass, or after one that an interrupt left behind.
        if under_way is None or not under_way.state.owns(arguments.get("config")):
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
            result = _mask_of(base, arguments, rule, under_way)
            under_way.mask_was_built = True
        if result is not None and not torch.compiler.is_compiling():
            setattr(result, PREPARED, (under_way.segment_ids,))
        return result

    return mask


def _mask_of(base: str, arguments: dict[str, Any], rule: MaskFunction, under_way: ForwardPass) -> Any:
    """What the layers are handed: slices, a mask, or masks by layer.

    Args:
        base: the attention implementation.
        arguments: of its stock mask function.
        rule: the stock mask function with the segments opened.
        under_way: the pass.
    """
    bias = under_way.state.opening_bias
    # A learned bias by layer needs gradients; one number for all layers is part of a mask that all of them share.
    if under_way.layers is None and not isinstance(bias, Tensor):
        content = None if bias is not None else _without_mask(base, arguments, rule, under_way)
        if content is None:
            return _dense(base, arguments, rule) if bias is None else _opened(base, arguments, rule, bias)
        if not isinstance(content, SlicePlan):
            return content
    else:
        content = _by_layer(base, arguments, rule, under_way)
    under_way.token_was_read = False
    return token_of(content)


def _dense(base: str, arguments: dict[str, Any], rule: MaskFunction) -> Any:
    stock = ALL_MASK_ATTENTION_FUNCTIONS[base]
    return stock(**{**arguments, "allow_is_causal_skip": False, "mask_function": rule})


def _without_mask(base: str, arguments: dict[str, Any], rule: MaskFunction, under_way: ForwardPass) -> Any:
    """Slices or a block mask in the place of the dense mask; None where the dense mask is needed, or faster."""
    state = under_way.state
    if torch.compiler.is_compiling():  # a compiled graph cannot read the ids
        return None
    if base == "flex_attention":
        ranges = mask_ranges(arguments, rule)
        return None if ranges is None else block_mask_of(ranges)
    if not state.slices or state.backend == "dense" or under_way.wants_weights:
        return None
    return mask_plan(arguments, rule, heads=state.heads, forced=state.backend == "sliced")


def _by_layer(base: str, arguments: dict[str, Any], rule: MaskFunction, under_way: ForwardPass) -> LayerMasks:
    """Masks that differ from layer to layer, made when the first layer of a kind asks.

    Raises:
        UnsupportedModelError: the layers do not run our attention function, or the model is being compiled.
    """
    if torch.compiler.is_compiling() or not under_way.state.slices:
        why = (
            "a compiled graph shares one mask" if torch.compiler.is_compiling() else "the model's layers share one mask"
        )
        raise UnsupportedModelError(
            f"segments that differ from layer to layer cannot run here: {why}. Expected a class with slices "
            "(docs/families.md), attn_implementation='sdpa' or 'eager', on one device, not compiled"
        )

    def segments() -> Any:
        found = _without_mask(base, arguments, rule, under_way)
        return _dense(base, arguments, rule) if found is None else found

    return LayerMasks(
        (arguments["batch_size"], arguments["q_length"], arguments["kv_length"]),
        layers=under_way.layers,
        bias=under_way.state.opening_bias,
        causal=lambda: ALL_MASK_ATTENTION_FUNCTIONS[base](**arguments),
        segments=segments,
        opened=lambda bias: _opened(base, arguments, rule, bias),
    )


def _sees_across(causal_or_local: MaskFunction, borders: Tensor) -> Tensor:
    """Where a token at a border of packed documents sees the token before it: bool, the shape of `borders`."""
    rows, length = borders.shape
    row = torch.arange(rows, device=borders.device)[:, None]
    query = torch.arange(1, length, device=borders.device)[None]
    return borders[:, 1:] & causal_or_local(row, torch.zeros_like(row), query, query - 1)


def _opened(base: str, arguments: dict[str, Any], rule: MaskFunction, bias: "float | Tensor") -> Tensor:
    """An additive mask (B, 1 or H, Q, K): `bias` on keys that segments allow and causal forbids."""
    if base == "flex_attention":
        raise UnsupportedModelError(
            "segments open gradually through an additive mask, which flex_attention does not take; load the model with "
            "attn_implementation='sdpa'"
        )
    whole = {**arguments, "allow_is_causal_skip": False}
    allowed = sdpa_mask(**{**whole, "mask_function": rule})
    return additive_mask(sdpa_mask(**whole), allowed, bias, arguments.get("dtype", torch.float32))


# Names of our own beside the stock ones: nothing that other models use is changed.
for _base in ATTENTION_IMPLEMENTATIONS:
    AttentionMaskInterface.register(f"segattn_{_base}", _mask_function(_base))
