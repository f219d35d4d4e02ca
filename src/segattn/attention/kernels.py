"""Kernels that attend over one slice and say by how much: output and log-sum-exp, forward and backward.

With the log-sum-exp, the outputs of two slices over different keys of the same queries can be merged exactly. Given the
merged output and log-sum-exp, the backward pass of each slice is exact on its own: FlashAttention's backward uses
nothing else (Dao 2023, arXiv 2307.08691, section 3.1).

Shapes: query (b, H, q, D), key and value (b, Hkv, k, D), output (b, H, q, D), log-sum-exp float32 or better (b, H, q).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["CpuFlash", "CudaFlash", "Kernel", "WrittenOut", "choose_kernel"]

Gradients = tuple[Tensor, Tensor, Tensor]


class Kernel(Protocol):
    """What `sliced_attention` needs of a kernel.

    Attributes:
        bottom_right: whether `causal` with more keys than queries aligns at the bottom right; otherwise the kernel gets
            squares only.
    """

    bottom_right: bool

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, seed: int) -> tuple[Tensor, Tensor]:
        """Return output and log-sum-exp. `seed` is that of the slice's dropout."""
        ...

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        logsumexp: Tensor,
        *,
        causal: bool,
        seed: int,
    ) -> Gradients:
        """Return the gradients of query, key and value; `output` and `logsumexp` are those after merging."""
        ...


def choose_kernel(query: Tensor, *, scale: float, softcap: float | None, dropout: float) -> Kernel:
    """Return the fastest kernel there is for these tensors and options."""
    plain = softcap is None and dropout == 0.0
    if plain and query.device.type == "cpu" and query.dtype.is_floating_point:
        return CpuFlash(scale)
    if plain and query.device.type == "cuda" and _cuda_flash_takes(query):
        return CudaFlash(scale)
    return WrittenOut(scale, softcap, dropout)


def _cuda_flash_takes(query: Tensor) -> bool:
    half = query.dtype in (torch.float16, torch.bfloat16)
    return half and query.shape[-1] <= 256 and torch.backends.cuda.is_flash_attention_available()


@dataclass(frozen=True)
class CpuFlash:
    """The kernel behind torch's SDPA on CPU, which takes grouped-query heads as they are."""

    scale: float
    bottom_right = False

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, seed: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """See `Kernel`."""
        output, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, scale=self.scale
        )
        return output, logsumexp

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        logsumexp: Tensor,
        *,
        causal: bool,
        seed: int,  # noqa: ARG002
    ) -> Gradients:
        """See `Kernel`."""
        gradients: Gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, query, key, value, output, logsumexp, 0.0, causal, scale=self.scale
        )
        return gradients


@dataclass(frozen=True)
class CudaFlash:
    """FlashAttention 2 as torch ships it: half precision; its causal mask is aligned at the bottom right."""

    scale: float
    bottom_right = True

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, seed: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """See `Kernel`."""
        result = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, scale=self.scale)
        return result[0], result[1]

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        logsumexp: Tensor,
        *,
        causal: bool,
        seed: int,  # noqa: ARG002
    ) -> Gradients:
        """See `Kernel`."""
        # Without dropout the kernel does not read the random state, and without nested tensors not the cumulated
        # lengths; both must be there.
        nothing = torch.empty(0, dtype=torch.int64, device=query.device)
        gradients: Gradients = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            gradient,
            query,
            key,
            value,
            output,
            logsumexp,
            nothing,
            nothing,
            query.shape[2],
            key.shape[2],
            0.0,
            causal,
            nothing,
            nothing,
            scale=self.scale,
        )
        return gradients


@dataclass(frozen=True)
class WrittenOut:
    """The formula in blocks of queries: any device, dtype and soft-cap, with dropout; never n x n memory.

    Dropout masks are drawn again in the backward pass, from the slice's seed.
    """

    scale: float
    softcap: float | None = None
    dropout: float = 0.0
    bottom_right = True
    block_scores = 1 << 22
    """How many scores a block may hold (all rows and heads), 16 MiB in float32."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool, seed: int) -> tuple[Tensor, Tensor]:
        """See `Kernel`."""
        precise = torch.promote_types(query.dtype, torch.float32)
        key, value = (_per_query_head(tensor, query).to(precise) for tensor in (key, value))
        generator = self._generator(query.device, seed)
        outputs, sums = [], []
        for rows in self._blocks(query, key):
            scores = self._scores(query[:, :, rows].to(precise), key, rows, query.shape[2], causal)
            logsumexp = scores.logsumexp(dim=-1)
            weights = (scores - logsumexp[..., None]).exp()
            outputs.append(self._drop(weights, generator) @ value)
            sums.append(logsumexp)
        return torch.cat(outputs, dim=2).to(query.dtype), torch.cat(sums, dim=2)

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        logsumexp: Tensor,
        *,
        causal: bool,
        seed: int,
    ) -> Gradients:
        """See `Kernel`."""
        precise = torch.promote_types(query.dtype, torch.float32)
        heads = key.shape[1]
        key, value = (_per_query_head(tensor, query).to(precise) for tensor in (key, value))
        generator = self._generator(query.device, seed)
        query_gradient = torch.empty_like(query, dtype=precise)
        key_gradient, value_gradient = torch.zeros_like(key), torch.zeros_like(value)
        for rows in self._blocks(query, key):
            block, given = query[:, :, rows].to(precise), gradient[:, :, rows].to(precise)
            scores = self._scores(block, key, rows, query.shape[2], causal)
            weights = (scores - logsumexp[:, :, rows, None]).exp()
            dropped = self._drop(weights, generator)
            value_gradient += dropped.transpose(-1, -2) @ given
            weight_gradient = self._drop_again(given @ value.transpose(-1, -2), dropped)
            mean = (given * output[:, :, rows].to(precise)).sum(dim=-1, keepdim=True)
            score_gradient = weights * (weight_gradient - mean)
            if self.softcap is not None:
                score_gradient = score_gradient * (1 - (scores / self.softcap).clamp(min=-1.0).square())
            query_gradient[:, :, rows] = score_gradient @ key * self.scale
            key_gradient += score_gradient.transpose(-1, -2) @ block * self.scale
        return (
            query_gradient.to(query.dtype),
            _per_key_head(key_gradient, heads).to(query.dtype),
            _per_key_head(value_gradient, heads).to(query.dtype),
        )

    def _blocks(self, query: Tensor, key: Tensor) -> list[slice]:
        per_query = query.shape[0] * query.shape[1] * key.shape[2]
        size = max(16, self.block_scores // max(per_query, 1))
        return [slice(first, min(first + size, query.shape[2])) for first in range(0, query.shape[2], size)]

    def _scores(self, query: Tensor, key: Tensor, rows: slice, queries: int, causal: bool) -> Tensor:
        scores = query @ key.transpose(-1, -2) * self.scale
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        if causal:
            last = torch.arange(rows.start, rows.stop, device=query.device)[:, None] + key.shape[2] - queries
            hidden = torch.arange(key.shape[2], device=query.device)[None] > last
            scores = scores.masked_fill(hidden, float("-inf"))
        return scores

    def _generator(self, device: torch.device, seed: int) -> torch.Generator | None:
        return torch.Generator(device).manual_seed(seed) if self.dropout else None

    def _drop(self, weights: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is None:
            return weights
        kept = torch.rand(weights.shape, generator=generator, device=weights.device) >= self.dropout
        return weights * kept / (1 - self.dropout)

    def _drop_again(self, gradient: Tensor, dropped: Tensor) -> Tensor:
        """Apply the mask of `_drop` to a gradient; where a weight is 0 the gradient does not matter."""
        return gradient if not self.dropout else torch.where(dropped != 0, gradient / (1 - self.dropout), 0.0)


def _per_query_head(tensor: Tensor, query: Tensor) -> Tensor:
    groups = query.shape[1] // tensor.shape[1]
    return tensor if groups == 1 else tensor.repeat_interleave(groups, dim=1)


def _per_key_head(gradient: Tensor, heads: int) -> Tensor:
    return gradient if gradient.shape[1] == heads else _grouped(gradient, heads).sum(dim=2)


def _grouped(tensor: Tensor, heads: int) -> Tensor:
    batch, query_heads, length, size = tensor.shape
    return tensor.reshape(batch, heads, query_heads // heads, length, size)
