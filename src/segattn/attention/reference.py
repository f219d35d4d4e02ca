"""The specification: segment attention written out, slow and exact."""

import torch
from torch import Tensor

__all__ = ["reference_attention"]


def reference_attention(
    query_BHQD: Tensor,
    key_BHKD: Tensor,
    value_BHKD: Tensor,
    mask_B1QK: Tensor,
    *,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Softmax attention under a bool mask, in float32 or better; a query that may see nothing gives zeros."""
    precise = torch.promote_types(query_BHQD.dtype, torch.float32)
    scores = torch.einsum("bhqd,bhkd->bhqk", query_BHQD.to(precise), key_BHKD.to(precise)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    # The most negative number, not -inf: a row of -inf makes softmax and its gradient NaN.
    scores = scores.masked_fill(~mask_B1QK, torch.finfo(precise).min)
    weights = scores.softmax(dim=-1).masked_fill(~mask_B1QK, 0.0)
    return torch.einsum("bhqk,bhkd->bhqd", weights, value_BHKD.to(precise)).to(query_BHQD.dtype)
