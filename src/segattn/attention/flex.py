"""Segment attention through torch's FlexAttention and a block mask.

FlexAttention must be compiled, which takes seconds, and a compiled kernel fits the shapes it was compiled for. So
lengths are rounded up to classes (`segattn.blocks.length_class`): tensors are filled up with zeros, no query sees the
added keys, and the added queries are cut off again. Blocks that nobody sees are skipped, so filling up costs a copy and
no scores. One compilation then serves every segmentation, window and length of a class; another batch size, number of
heads, head size, dtype, scale or softcap is another compilation.

Shapes left open to the compiler (`dynamic=True`, or a second shape with torch's default) would need fewer, but then
torch 2.13 writes C++ for the CPU that does not compile when a mask captures tensors.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from segattn.blocks import extended, length_class
from segattn.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["flex_attention"]

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Twenty length classes for queries and for keys, in a few combinations and a few models; torch's own limit is 8.
_COMPILATIONS = 128


@cache
def _compiled() -> Any:
    """Compile FlexAttention on first use: uncompiled, it would build the n x n scores.

    The whole graph or nothing: past its limit torch would otherwise go on uncompiled, in silence.
    """
    from torch.nn.attention.flex_attention import flex_attention as stock

    compile_: Any = torch.compile  # its overloads leave out the last two arguments
    return compile_(stock, dynamic=False, fullgraph=True, isolate_recompiles=True, recompile_limit=_COMPILATIONS)


def flex_attention(
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    mask: "BlockMask",
    *,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """FlexAttention under a block mask; a query that may see nothing gives zeros.

    Args:
        query_BHQD: float32, float16 or bfloat16.
        key_BGKD: G heads; G divides H (grouped-query attention).
        value_BGKD: as `key_BGKD`, maybe with another head size.
        mask: of `segattn.block_mask`, for B rows, Q queries and K keys.
        scale: factor on the scores.
        softcap: scores s become softcap * tanh(s / softcap).

    Raises:
        UnsupportedModelError: a dtype or head size without a kernel; gradients on CPU, where torch has only the forward
            kernel.
    """
    _check_kernel(query_BHQD, key_BGKD, value_BGKD)
    queries, keys = query_BHQD.shape[2], key_BGKD.shape[2]
    score_mod = None if softcap is None else _capped(softcap)
    output: Tensor = _compiled()(
        _filled(query_BHQD, length_class(queries)),
        _filled(key_BGKD, length_class(keys)),
        _filled(value_BGKD, length_class(keys)),
        score_mod=score_mod,
        block_mask=extended(mask, length_class(queries), length_class(keys)),
        scale=scale,
        enable_gqa=query_BHQD.shape[1] != key_BGKD.shape[1],
    )
    return output[:, :, :queries]


def _filled(tensor_BHND: Tensor, length: int) -> Tensor:
    # Contiguous in any case: strides are part of what a kernel is compiled for.
    return pad(tensor_BHND, (0, 0, 0, length - tensor_BHND.shape[2])).contiguous()


def _capped(softcap: float) -> Any:
    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        return softcap * torch.tanh(score / softcap)

    return capped


def _check_kernel(query: Tensor, key: Tensor, value: Tensor) -> None:
    on_cpu = query.device.type == "cpu"
    if query.dtype not in _DTYPES:
        raise UnsupportedModelError(
            f"FlexAttention has no kernel for {query.dtype}; use backend='dense', or one of "
            f"{', '.join(str(dtype) for dtype in _DTYPES)}"
        )
    if not on_cpu and min(query.shape[3], value.shape[3]) < 16:
        raise UnsupportedModelError(
            f"FlexAttention needs heads of 16 numbers or more on {query.device.type}, and these have "
            f"{query.shape[3]} (values {value.shape[3]}); use backend='dense'"
        )
    if on_cpu and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)):
        raise UnsupportedModelError(
            "FlexAttention has no backward pass on CPU (torch raises NotImplementedError); "
            "use backend='dense', or run under torch.no_grad()"
        )
