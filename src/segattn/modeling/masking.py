"""The functions that transformers calls for an enabled model: its attention mask and its attention."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from segattn.errors import UnsupportedModelError
from segattn.masks import segment_overlay
from segattn.modeling.state import PREPARED, SegmentState
from segattn.segments import pad_segment_ids

__all__ = ["register", "unregister"]


def register(state: SegmentState) -> None:
    """Make `state.implementation` known to transformers; nothing that other models use is changed."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(state.implementation, _attention_function(state.base_implementation))
    AttentionMaskInterface.register(state.implementation, _mask_function(state))


def unregister(state: SegmentState) -> None:
    """Take the names of `register` back."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface._global_mapping.pop(state.implementation, None)
    AttentionMaskInterface._global_mapping.pop(state.implementation, None)


def _attention_function(base: str) -> Callable[..., Any]:
    """The stock attention of the module's own modeling file: eager is one function per family."""

    def attention(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        home = sys.modules[type(module).__module__]
        if base == "eager":
            return home.eager_attention_forward(module, *args, **kwargs)
        return home.ALL_ATTENTION_FUNCTIONS[base](module, *args, **kwargs)

    return attention


def _mask_function(state: SegmentState) -> Callable[..., Tensor | None]:
    """The stock mask function, with the segment overlay ORed in while a pass with segments is under way."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, or_masks

    def mask(**arguments: Any) -> Tensor | None:
        if state.owner is None:
            raise UnsupportedModelError(
                "an attention mask was asked for outside of the enabled model's forward or generate, where the "
                "segments are not known; call the model itself (its backbone counts)"
            )
        stock = ALL_MASK_ATTENTION_FUNCTIONS[state.base_implementation]
        if state.segment_ids is None:
            result: Tensor | None = stock(**arguments)
        else:
            keys = arguments["kv_length"] + arguments.get("kv_offset", 0)
            ids = state.segment_ids
            ids = pad_segment_ids(ids, keys) if ids.shape[1] < keys else ids
            causal_or_local = arguments["mask_function"]
            arguments["allow_is_causal_skip"] = False
            # `local_size` is the layer's window: the overlay is cut to it too, so local layers stay local.
            arguments["mask_function"] = or_masks(causal_or_local, segment_overlay(ids, arguments.get("local_size")))
            if state.opening_bias is None:
                result = stock(**arguments)
            else:
                result = _opened(arguments, causal_or_local, state.opening_bias)
            state.mask_was_built = True
        if isinstance(result, Tensor):
            setattr(result, PREPARED, True)
        return result

    return mask


def _opened(arguments: dict[str, Any], causal_or_local: Callable[..., Any], bias: float) -> Tensor:
    """An additive mask (B, 1, Q, K): `bias` on keys that segments allow and causal forbids, -inf on forbidden ones."""
    from transformers.masking_utils import sdpa_mask

    dtype = arguments.get("dtype", torch.float32)
    allowed = sdpa_mask(**arguments)
    causal = sdpa_mask(**{**arguments, "mask_function": causal_or_local})
    zero, ahead, never = (
        torch.tensor(value, dtype=dtype, device=allowed.device) for value in (0.0, bias, torch.finfo(dtype).min)
    )
    return torch.where(causal, zero, torch.where(allowed, ahead, never))
