"""A whole model's prefill: stock and causal, with segments, and with segments under a dense mask, in turns."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segattn.bench.checking import check_error, largest_error
from segattn.bench.layouts import layout_ids
from segattn.bench.models import ModelShape, random_ids, shape_of
from segattn.bench.results import Cell, Row
from segattn.bench.timing import Effort, Run, alternate
from segattn.segments import attention_cost

__all__ = ["measure_prefill", "prefill_cell"]

# Tokens whose logits are compared.
_SAMPLED = 64


def prefill_cell(model: str, length: int, layout: str) -> Cell:
    """Return what tells the row of a prefill apart."""
    return {"model": model, "length": length, "layout": layout}


def measure_prefill(
    models: Mapping[str, Any], contestants: Sequence[str], cell: Cell, effort: Effort, *, check: bool = True
) -> Row:
    """Time prefills in turns.

    The bound is the causal prefill plus the scores that segments add to it, at the speed of one full SDPA call of the
    model's shape, which takes its turn as well.

    Args:
        models: from `variants`.
        contestants: which of them run.
        cell: from `prefill_cell`.
        effort: how long.
        check: compare the logits of "segments" and "dense" at a sample of tokens first, if both run.

    Raises:
        BenchError: these logits differ.
    """
    stock = models["causal"]
    ids = random_ids(stock, cell["length"])
    segments = layout_ids(cell["layout"], cell["length"], ids.device)
    errors: dict[str, float] = {}
    with torch.inference_mode():
        runs: dict[str, Run] = {
            name: partial(_prefill, models[name], ids, None if name == "causal" else segments) for name in contestants
        }
        if check and {"segments", "dense"} <= set(contestants):
            errors["segments"] = _error(models, ids, segments)
            check_error("segments (against the dense mask)", errors["segments"], stock.dtype)
        shape, cost = shape_of(stock), attention_cost(segments)
        if bounded := not _has_windows(stock):
            runs["one full attention"] = _full_attention(shape, cell["length"], stock)
        times = alternate(runs, effort, ids.device)
    if bounded:
        times["bound"] = _bound(times, shape, cost)
    facts = {"scores": cost, "layers": shape.layers, "linear": shape.linear, "heads": shape.heads}
    facts |= {"head_size": shape.head_size, "dtype": str(stock.dtype).removeprefix("torch.")}
    return Row(cell, times, ("causal", "dense", "bound"), errors, facts)


def _prefill(model: Any, ids: Tensor, segments: Tensor | None) -> Tensor:
    given = {} if segments is None else {"segment_ids": segments}
    logits: Tensor = model(ids, logits_to_keep=1, use_cache=True, **given).logits
    return logits


def _error(models: Mapping[str, Any], ids: Tensor, segments: Tensor) -> float:
    """Compare logits inside of segments too: in a model of one layer, the last token sees what it sees causally."""
    generator = torch.Generator().manual_seed(1)
    sampled = torch.randperm(ids.shape[1], generator=generator)[:_SAMPLED].to(ids.device)
    found, reference = (
        models[name](ids, segment_ids=segments, logits_to_keep=sampled).logits for name in ("segments", "dense")
    )
    return largest_error(found, reference)


def _has_windows(model: Any) -> bool:
    config = model.config.get_text_config()
    return any(getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))


def _full_attention(shape: ModelShape, length: int, model: Any) -> Run:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, length, shape.head_size, generator=generator).to(model.device, model.dtype)
        for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
    )
    return partial(F.scaled_dot_product_attention, query, key, value, enable_gqa=True)


def _bound(times: Mapping[str, list[float]], shape: ModelShape, cost: Mapping[str, int]) -> list[float]:
    more = shape.layers * (cost["segments"] - cost["causal"]) / cost["dense"]
    pairs = zip(times["causal"], times["one full attention"], strict=True)
    return [causal + more * full for causal, full in pairs]
