"""The attention function that the layers of an enabled model run, where they may run slices."""

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from segattn.attention.sliced import sliced_attention
from segattn.attention.slices import SlicePlan
from segattn.modeling.forward_pass import current
from segattn.modeling.layer_masks import LayerMasks
from segattn.modeling.mask_tokens import content_of

__all__ = ["SLICED_IMPLEMENTATIONS"]

SLICED_IMPLEMENTATIONS = ("sdpa", "eager")
"""Attention implementations in whose place slices may be computed."""

Attention = tuple[Tensor, Tensor | None]


def _sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> Attention:
    """In the place of transformers' SDPA: the same for any mask, and slices where the mask stands for them."""
    mask = _mask_of_layer(module, attention_mask)
    if not isinstance(mask, SlicePlan):
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    # What slices do not know (biases by position, paged caches, an error for soft-caps) the stock function does.
    if any(options.get(name) is not None for name in ("position_bias", "cache", "softcap")):
        return sdpa_attention_forward(module, query, key, value, mask.to_mask(query.device), **options)
    return _sliced(query, key, value, mask, options)


def _eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> Attention:
    """In the place of a family's own eager attention; families whose sinks and soft-caps were compared get plans."""
    mask = _mask_of_layer(module, attention_mask)
    if not isinstance(mask, SlicePlan):
        stock: Callable[..., Attention] = sys.modules[type(module).__module__].eager_attention_forward
        return stock(module, query, key, value, mask, **options)
    return _sliced(query, key, value, mask, options)


def _mask_of_layer(module: nn.Module, attention_mask: Any) -> Any:
    """The mask, or the plan of slices, that a layer computes under."""
    content = content_of(attention_mask)
    if content is None:
        return attention_mask
    under_way = current()
    if under_way is not None:  # none in the second forward of gradient checkpointing
        under_way.token_was_read = True
    return content.of_layer(module) if isinstance(content, LayerMasks) else content


def _sliced(query: Tensor, key: Tensor, value: Tensor, plan: SlicePlan, options: dict[str, Any]) -> Attention:
    scaling = options.get("scaling")
    output = sliced_attention(
        query,
        key,
        value,
        plan,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=options.get("softcap"),
        dropout=options.get("dropout") or 0.0,
        sinks_H=options.get("s_aux"),
    )
    return output.transpose(1, 2).contiguous(), None


for _base, _function in zip(SLICED_IMPLEMENTATIONS, (_sdpa, _eager), strict=True):
    AttentionInterface.register(f"segattn_{_base}", _function)
