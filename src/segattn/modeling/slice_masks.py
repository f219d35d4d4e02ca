"""Slices in the place of an attention mask: which keys each query of a stock mask function sees, as runs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

from segattn.attention.backends import slices_pay
from segattn.attention.slices import SlicePlan, plan_slices
from segattn.masks import MaskFunction
from segattn.ranges import VisibleRanges, bisected_ranges

__all__ = ["mask_plan", "mask_ranges"]


def mask_ranges(arguments: dict[str, Any], rule: MaskFunction) -> VisibleRanges | None:
    """Return which keys each query sees in a mask that transformers asks for, None where ranges cannot say it.

    Args:
        arguments: of a mask function of transformers, with the stock `mask_function`.
        rule: the stock mask function with the segments opened.
    """
    if not _shows_runs(arguments["mask_function"]):
        return None
    first_query, first_key = int(arguments.get("q_offset", 0)), int(arguments.get("kv_offset", 0))
    queries = (first_query, first_query + arguments["q_length"])
    keys = (first_key, first_key + arguments["kv_length"])
    if not keys[0] <= queries[0] < queries[1] <= keys[1]:
        return None
    padding = masking_utils.prepare_padding_mask(arguments.get("attention_mask"), arguments["kv_length"], first_key)
    real = None if padding is None else padding[:, keys[0] : keys[1]].bool()
    device = torch.device(arguments.get("device", "cpu"))
    if real is not None and bool(real.all()):
        real = None
    return bisected_ranges(rule, arguments["batch_size"], queries=queries, keys=keys, real_BK=real, device=device)


def mask_plan(arguments: dict[str, Any], rule: MaskFunction, *, heads: int, forced: bool) -> SlicePlan | None:
    """Return the slices of a mask that transformers asks for, None where a mask is needed or faster.

    Args:
        arguments: see `mask_ranges`.
        rule: see `mask_ranges`.
        heads: number of query heads.
        forced: take slices also where a mask is expected to be faster.
    """
    ranges = mask_ranges(arguments, rule)
    plan = None if ranges is None else plan_slices(ranges)
    if plan is None or not (forced or slices_pay(plan, heads, torch.device(arguments.get("device", "cpu")).type)):
        return None
    return plan


# Mask functions of transformers (masking_utils.py) that let a query see one run of keys that ends with itself.
_RUNS = frozenset(
    {
        "causal_mask_function",
        "sliding_window_overlay.<locals>.inner_mask",
        "chunked_overlay.<locals>.inner_mask",
        "packed_sequence_mask_function.<locals>.inner_mask",
    }
)
# Ones that combine others without breaking such a run.
_COMBINE = frozenset({"and_masks.<locals>.and_mask", "remap_positions_for_packed_sequence.<locals>.inner_mask"})


def _shows_runs(function: Callable[..., Any]) -> bool:
    """Whether a mask function is put together only of ones known to show unbroken runs of keys."""
    if getattr(function, "__module__", None) != masking_utils.__name__:
        return False
    if function.__qualname__ in _RUNS:
        return True
    if function.__qualname__ not in _COMBINE:
        return False
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    inner = [part for item in held for part in (item if isinstance(item, tuple) else (item,))]
    return all(_shows_runs(part) for part in inner if callable(part) and not isinstance(part, Tensor))
