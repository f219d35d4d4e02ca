"""Segment attention slice by slice: the best kernel, no mask, and memory that grows with n."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segattn.attention.kernels import Kernel, choose_kernel
from segattn.attention.slice import Slice
from segattn.attention.slices import SlicePlan

__all__ = ["sliced_attention"]


def sliced_attention(
    query_BHQD: Tensor,
    key_BHKD: Tensor,
    value_BHKD: Tensor,
    plan: SlicePlan,
    *,
    scale: float,
    softcap: float | None = None,
    dropout: float = 0.0,
    sinks_H: Tensor | None = None,
    kernel: Kernel | None = None,
) -> Tensor:
    """Attend over the slices of a plan; a query that may see nothing gives zeros.

    Args:
        query_BHQD: float32, float64, bfloat16 or float16.
        key_BHKD: its heads divide those of the query (grouped-query attention).
        value_BHKD: its head size may differ.
        plan: made for (B, Q, K); the same for every layer of a forward pass.
        scale: factor on the scores.
        softcap: scores s become softcap * tanh(s / softcap).
        dropout: probability with which a weight is dropped.
        sinks_H: one more score per head, of a key without a value (gpt-oss).
        kernel: None chooses by device, dtype and options.

    Returns:
        (B, H, Q, Dv), stored as (B, Q, H, Dv). Differentiable once.
    """
    chosen = kernel or choose_kernel(query_BHQD, scale=scale, softcap=softcap, dropout=dropout)
    head_size = value_BHKD.shape[-1]
    query, key, value = _of_one_head_size(query_BHQD, key_BHKD, value_BHKD)
    # One draw for all slices, so that a run repeats under torch.manual_seed and when a layer is computed again.
    seed = int(torch.randint(1 << 62, ())) if dropout else 0
    output: Tensor = _SlicedAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value, sinks_H, _Call(plan, chosen, seed)
    )
    return output[..., :head_size]


def _of_one_head_size(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pad with zeros, which change no score and no sum, to one size that every kernel takes."""
    size = max(query.shape[-1], value.shape[-1])
    if query.device.type == "cuda":
        size = -(-size // 8) * 8
    return _padded(query, size), _padded(key, size), _padded(value, size)


def _padded(tensor: Tensor, size: int) -> Tensor:
    if tensor.shape[-1] < size:
        return torch.nn.functional.pad(tensor, (0, size - tensor.shape[-1]))
    return _row_by_row(tensor)


def _row_by_row(tensor: Tensor) -> Tensor:
    """Kernels read each row of numbers at once, and do not check that it lies in one piece."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


@dataclass(frozen=True)
class _Call:
    """What one call runs with, apart from its tensors."""

    plan: SlicePlan
    kernel: Kernel
    seed: int

    def pieces(self) -> list[tuple[Slice, int]]:
        """The slices that the kernel takes, each with a seed of its own."""
        cut = self.plan.slices if self.kernel.bottom_right else self.plan.squares
        return [(piece, self.seed + number) for number, piece in enumerate(cut)]


class _SlicedAttention(torch.autograd.Function):
    """One node of the graph for all slices: gradients of keys are added up in place, nothing is saved per slice."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, call: _Call) -> Tensor:
        output, logsumexp = _run(query, key, value, call)
        if sinks is not None:
            with_sink = torch.logaddexp(logsumexp, sinks.to(logsumexp.dtype)[None, :, None])
            # A query that sees nothing stays zero, whatever the sink.
            share = torch.where(logsumexp.isinf(), 0.0, (logsumexp - with_sink).exp())
            output, logsumexp = output * share[..., None].to(output.dtype), with_sink
        ctx.save_for_backward(query, key, value, sinks, output, logsumexp)
        ctx.call = call
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, sinks, output, logsumexp = ctx.saved_tensors
        gradient = _row_by_row(gradient)
        gradients = [_accumulator(tensor) for tensor in (query, key, value)]
        for piece, seed in ctx.call.pieces():
            rows, (a, b), (start, stop) = slice(*piece.rows), piece.queries, piece.keys
            queries, keys = (rows, slice(None), slice(a, b)), (rows, slice(None), slice(start, stop))
            given = [tensor[queries] for tensor in (gradient, query, output, logsumexp)]
            parts = _backward_piece(ctx.call.kernel, piece, seed, given, key[keys], value[keys])
            for total, place, part in zip(gradients, (queries, keys, keys), parts, strict=True):
                total[place] += part
        found = [total.to(tensor.dtype) for total, tensor in zip(gradients, (query, key, value), strict=True)]
        sink_gradient = None
        if sinks is not None and ctx.needs_input_grad[3]:
            sink_gradient = _sink_gradient(gradient, output, logsumexp, sinks)
        return (*found, sink_gradient, None)


def _accumulator(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))


def _sink_gradient(gradient: Tensor, output: Tensor, logsumexp: Tensor, sinks: Tensor) -> Tensor:
    """A sink has no value, so its weight only takes from the others: -weight * <gradient, output>."""
    weight = (sinks.to(logsumexp.dtype)[None, :, None] - logsumexp).exp()
    loss = -weight * (gradient.to(weight.dtype) * output.to(weight.dtype)).sum(dim=-1)
    return loss.sum(dim=(0, 2)).to(sinks.dtype)


def _run(query: Tensor, key: Tensor, value: Tensor, call: _Call) -> tuple[Tensor, Tensor]:
    """Compute every slice, and merge those that share queries; return output (B, H, Q, D), log-sum-exp (B, H, Q)."""
    batch, heads, queries, size = query.shape
    precise = torch.promote_types(query.dtype, torch.float32)
    pieces = call.pieces()
    if len(pieces) == 1 and pieces[0][0].rows == (0, batch) and pieces[0][0].queries == (0, queries):
        return _forward_piece(call.kernel, *pieces[0], query, *_keys_of(pieces[0][0], key, value))
    merged = _overlapping([piece for piece, _ in pieces])
    # Sums of several slices are kept in float32; stored like the projections around it, (B, Q, H, D).
    dtype = precise if any(merged) else query.dtype
    output = query.new_empty((batch, queries, heads, size), dtype=dtype).transpose(1, 2)
    logsumexp = query.new_empty((batch, queries, heads), dtype=precise).transpose(1, 2)
    for blind_rows, blind_queries in call.plan.blind:
        place = (slice(*blind_rows), slice(None), slice(*blind_queries))
        output[place], logsumexp[place] = 0, float("-inf")
    for (piece, seed), merge in zip(pieces, merged, strict=True):
        place = (slice(*piece.rows), slice(None), slice(*piece.queries))
        found, its_sum = _forward_piece(call.kernel, piece, seed, query[place], *_keys_of(piece, key, value))
        if merge:
            _merge(output[place], logsumexp[place], found, its_sum)
        else:
            output[place], logsumexp[place] = found, its_sum
    return output.to(query.dtype), logsumexp


def _keys_of(piece: Slice, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    rows, keys = slice(*piece.rows), slice(*piece.keys)
    return key[rows, :, keys], value[rows, :, keys]


def _overlapping(pieces: list[Slice]) -> list[bool]:
    """Tell of each slice whether an earlier one has written to some of its queries."""
    written: dict[tuple[int, int], int] = {}
    found = []
    for piece in pieces:
        end = written.get(piece.rows, 0)
        found.append(piece.queries[0] < end)
        written[piece.rows] = max(end, piece.queries[1])
    return found


def _merge(output: Tensor, logsumexp: Tensor, found: Tensor, its_sum: Tensor) -> None:
    """Join to `output`, in place, what the same queries found in other keys."""
    share = torch.sigmoid(its_sum - logsumexp)  # exp(its_sum) / (exp(its_sum) + exp(logsumexp))
    output.lerp_(found.to(output.dtype), share[..., None].to(output.dtype))
    torch.logaddexp(logsumexp, its_sum, out=logsumexp)


def _forward_piece(
    kernel: Kernel, piece: Slice, seed: int, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    if piece.kind != "edge":
        return kernel.forward(query, key, value, causal=piece.kind == "causal", seed=seed)
    # Read backwards, the triangle at the edge of a window is a causal one.
    output, logsumexp = kernel.forward(query.flip(2), key.flip(2), value.flip(2), causal=True, seed=seed)
    return output.flip(2), logsumexp.flip(2)


def _backward_piece(
    kernel: Kernel, piece: Slice, seed: int, given: list[Tensor], key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    gradient, query, output, logsumexp = given
    if piece.kind != "edge":
        causal = piece.kind == "causal"
        return kernel.backward(gradient, query, key, value, output, logsumexp, causal=causal, seed=seed)
    gradient, query, key, value, output, logsumexp = (
        tensor.flip(2) for tensor in (gradient, query, key, value, output, logsumexp)
    )
    query_part, key_part, value_part = kernel.backward(
        gradient, query, key, value, output, logsumexp, causal=True, seed=seed
    )
    return query_part.flip(2), key_part.flip(2), value_part.flip(2)
