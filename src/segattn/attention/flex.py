"""Segment attention through torch's FlexAttention and a block mask."""

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segattn.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["flex_attention"]


@cache
def _compiled() -> Any:
    """Compile FlexAttention on first use: uncompiled, it would build the n x n scores."""
    from torch.nn.attention.flex_attention import flex_attention as stock

    return torch.compile(stock)


def flex_attention(
    query_BHQD: Tensor,
    key_BHKD: Tensor,
    value_BHKD: Tensor,
    mask: "BlockMask",
    *,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """FlexAttention under a block mask; a query that may see nothing gives zeros.

    Raises:
        UnsupportedModelError: gradients are asked for on CPU, where torch has only the forward kernel.
    """
    needs_gradient = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (query_BHQD, key_BHKD, value_BHKD)
    )
    if needs_gradient and query_BHQD.device.type == "cpu":
        raise UnsupportedModelError(
            "FlexAttention has no backward pass on CPU (torch raises NotImplementedError); "
            "use backend='dense', or run under torch.no_grad()"
        )

    def capped(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
        return score if softcap is None else softcap * torch.tanh(score / softcap)

    output: Tensor = _compiled()(
        query_BHQD,
        key_BHKD,
        value_BHKD,
        score_mod=None if softcap is None else capped,
        block_mask=mask,
        scale=scale,
    )
    return output
