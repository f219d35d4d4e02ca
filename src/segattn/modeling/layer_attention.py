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
from segattn.modeling.slice_masks import plan_of

__all__ = ["SLICED_IMPLEMENTATIONS"]

SLICED_IMPLEMENTATIONS = ("sdpa", "eager")
"""Attention implementations in whose place slices may be computed."""

Attention = tuple[Tensor, Tensor | None]


def _sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> Attention:
    """In the place of transformers' SDPA: the same for any mask, and slices where the mask stands for them."""
    plan = plan_of(attention_mask)
    if plan is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    # What slices do not know (biases by position, paged caches, an error for soft-caps) the stock function does.
    if any(options.get(name) is not None for name in ("position_bias", "cache", "softcap")):
        return sdpa_attention_forward(module, query, key, value, plan.to_mask(query.device), **options)
    return _sliced(query, key, value, plan, options)


def _eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> Attention:
    """In the place of a family's own eager attention; families whose sinks and soft-caps were compared get plans."""
    plan = plan_of(attention_mask)
    if plan is None:
        stock: Callable[..., Attention] = sys.modules[type(module).__module__].eager_attention_forward
        return stock(module, query, key, value, attention_mask, **options)
    return _sliced(query, key, value, plan, options)


def _sliced(query: Tensor, key: Tensor, value: Tensor, plan: SlicePlan, options: dict[str, Any]) -> Attention:
    under_way = current()
    if under_way is not None:  # none in the second forward of gradient checkpointing
        under_way.slices_were_read = True
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
