"""Segment attention through torch's SDPA with a dense bool mask."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["dense_attention"]


def dense_attention(
    query_BHQD: Tensor, key_BHKD: Tensor, value_BHKD: Tensor, mask_B1QK: Tensor, *, scale: float
) -> Tensor:
    """Scaled dot-product attention under a bool mask; a query that may see nothing gives zeros."""
    blind_B1Q1 = ~mask_B1QK.any(dim=-1, keepdim=True)
    # What a kernel does with an empty row is not specified (NaN, zeros, a mean); let it see all, then zero it.
    output = F.scaled_dot_product_attention(
        query_BHQD, key_BHKD, value_BHKD, attn_mask=mask_B1QK | blind_B1Q1, scale=scale
    )
    return torch.where(blind_B1Q1, torch.zeros((), dtype=output.dtype, device=output.device), output)
