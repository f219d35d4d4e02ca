"""Attention alone: the ways to compute it, checked against each other's rule in float64, then timed in turns.

Shapes: query (1, H, n, D), key and value (1, Hkv, n, D).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segattn.attention import segment_attention
from segattn.attention.reference import reference_attention
from segattn.attention.sliced import sliced_attention
from segattn.attention.slices import plan_slices
from segattn.bench.checking import check_error, largest_error
from segattn.bench.layouts import layout_ids
from segattn.bench.results import Row
from segattn.bench.timing import Effort, alternate
from segattn.masks import mask_function, segment_mask
from segattn.ranges import visible_ranges
from segattn.segments import CAUSAL, attention_cost

__all__ = ["CONTESTANTS", "AttentionCell", "measure_attention"]

CONTESTANTS = {
    "causal": "torch's SDPA with is_causal=True",
    "full": "torch's SDPA without a mask, every token sees every other",
    "dense": "torch's SDPA with a dense bool mask that is there already",
    "transformers": "create_causal_mask(block_sequence_ids=...) of transformers, then SDPA with that mask; its time "
    "includes making the mask",
    "flex": "FlexAttention with segattn.block_mask; its time includes making the block mask, not compiling",
    "sliced": "segment_attention(backend='sliced'); its time includes planning the slices",
    "planned": "the same slices with a plan that is there already, as in all layers of a model but the first",
}
"""Name -> what it is. "bound" is added to them: the time of "full" times the share of scores that segments allow."""

# Queries whose results are compared with the reference.
_SAMPLED = 64

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AttentionCell:
    """One cell: what is attended to, and by whom.

    Attributes:
        length: tokens, 20 or more.
        layout: a name of `LAYOUTS`.
        backward: forward and backward pass, or forward only.
        heads: of the query.
        kv_heads: of key and value; divides `heads`.
        head_size: numbers per head.
    """

    length: int
    layout: str = "25/70/5"
    backward: bool = False
    heads: int = 8
    kv_heads: int = 2
    head_size: int = 64

    def to_dict(self) -> dict[str, Any]:
        """Return what tells the cell's row apart, for a file."""
        return {
            "length": self.length,
            "layout": self.layout,
            "pass": "forward and backward" if self.backward else "forward",
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_size": self.head_size,
        }


def measure_attention(
    cell: AttentionCell,
    contestants: Sequence[str],
    effort: Effort,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Row:
    """Check the contestants, then time them in turns, on the same random tensors.

    Raises:
        BenchError: a contestant's output or gradient is not what its rule says.
    """
    device = device or torch.device("cpu")
    ids = layout_ids(cell.layout, cell.length, device)
    query, key, value, gradient = _tensors(cell, dtype, device)
    chosen = {name: _attend(name, ids) for name in contestants}
    errors = _errors(chosen, ids, (query, key, value, gradient), backward=cell.backward)
    for name, error in errors.items():
        check_error(name, error, dtype)
    runs = {name: partial(_run, attend, query, key, value, gradient, cell.backward) for name, attend in chosen.items()}
    times = alternate(runs, effort, device)
    cost = attention_cost(ids)
    if "full" in times:
        times["bound"] = [seconds * cost["segments"] / cost["dense"] for seconds in times["full"]]
    facts = {"scores": cost, "share": cost["segments"] / cost["dense"]}
    return Row(cell.to_dict(), times, ("causal", "dense", "bound"), errors, facts)


def _tensors(cell: AttentionCell, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(heads: int) -> Tensor:
        numbers = torch.randn(1, heads, cell.length, cell.head_size, generator=generator)
        return numbers.to(device, dtype)

    tensors = [draw(heads) for heads in (cell.heads, cell.kv_heads, cell.kv_heads, cell.heads)]
    for tensor in tensors[:3]:
        tensor.requires_grad_(cell.backward)
    return tensors


def _attend(name: str, ids: Tensor) -> Attend:
    """Return a contestant; what it makes once for many layers, outside of its time, is made here."""
    if name == "causal":
        return partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True)
    if name == "full":
        return partial(F.scaled_dot_product_attention, enable_gqa=True)
    if name == "dense":
        return partial(F.scaled_dot_product_attention, attn_mask=segment_mask(ids), enable_gqa=True)
    if name == "transformers":
        return _attend_with_transformers_mask(ids)
    if name == "planned":
        return _attend_as_planned(ids)

    def by_backend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return segment_attention(query, key, value, ids, backend=name)

    return by_backend


def _attend_with_transformers_mask(ids: Tensor) -> Attend:
    from transformers import LlamaConfig
    from transformers.masking_utils import create_causal_mask

    config = LlamaConfig(attn_implementation="sdpa")

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        embeddings = query.new_empty(*ids.shape, 0)  # its shape, dtype and device are all that is read
        mask = create_causal_mask(config, embeddings, None, None, block_sequence_ids=ids)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)

    return attend


def _attend_as_planned(ids: Tensor) -> Attend:
    ranges = visible_ranges(ids)
    assert ranges is not None  # without padding, what a query sees has no gaps
    plan = plan_slices(ranges)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return sliced_attention(query, key, value, plan, scale=query.shape[-1] ** -0.5)

    return attend


def _run(
    attend: Attend, query: Tensor, key: Tensor, value: Tensor, gradient: Tensor, backward: bool
) -> tuple[Tensor, ...]:
    """One call: the output, or with a backward pass the output and the gradients of query, key and value."""
    output = attend(query, key, value)
    if not backward:
        return (output,)
    return (output.detach(), *torch.autograd.grad(output, (query, key, value), gradient))


def _errors(
    contestants: dict[str, Attend], ids: Tensor, tensors: Sequence[Tensor], *, backward: bool
) -> dict[str, float]:
    """Return each contestant's largest error on a sample of queries, against the formula in float64.

    The gradient that comes in is zero but for the sampled queries, so the gradients of all keys are known exactly too.
    """
    length = ids.shape[1]
    generator = torch.Generator().manual_seed(1)
    sampled = torch.randperm(length, generator=generator)[:_SAMPLED].sort().values.to(ids.device)
    query, key, value, gradient = tensors
    sparse = torch.zeros_like(gradient)
    sparse[:, :, sampled] = gradient[:, :, sampled]
    references: dict[str, list[Tensor]] = {}
    errors = {}
    for name, attend in contestants.items():
        rule = name if name in ("causal", "full") else "segments"
        if rule not in references:
            references[rule] = _reference(_allowed(rule, ids, sampled), tensors, sampled, backward=backward)
        output, *gradients = _run(attend, query, key, value, sparse, backward)
        found = [output[:, :, sampled], *gradients]
        errors[name] = max(map(largest_error, found, references[rule]))
    return errors


def _allowed(rule: str, ids: Tensor, sampled: Tensor) -> Tensor:
    """Which keys the sampled queries may see, bool (1, 1, sampled, n)."""
    if rule == "full":
        return torch.ones(1, 1, len(sampled), ids.shape[1], dtype=torch.bool, device=ids.device)
    keys, zero = torch.arange(ids.shape[1], device=ids.device), ids.new_zeros(())
    see = mask_function(ids if rule == "segments" else torch.full_like(ids, CAUSAL))
    return see(zero, zero, sampled[:, None], keys[None, :])[None, None]


def _reference(allowed: Tensor, tensors: Sequence[Tensor], sampled: Tensor, *, backward: bool) -> list[Tensor]:
    query, key, value, gradient = (tensor.detach().double().requires_grad_(backward) for tensor in tensors)
    groups = query.shape[1] // key.shape[1]
    output = reference_attention(
        query[:, :, sampled],
        key.repeat_interleave(groups, dim=1),
        value.repeat_interleave(groups, dim=1),
        allowed,
        scale=query.shape[-1] ** -0.5,
        softcap=None,
    )
    if not backward:
        return [output]
    return [output.detach(), *torch.autograd.grad(output, (query, key, value), gradient.detach()[:, :, sampled])]
