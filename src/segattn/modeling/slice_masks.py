"""Slices in the place of an attention mask, on their way through a model's layers.

A model builds its masks once and hands them down to every layer. Where the layers run our attention function, the mask
function returns no mask but a token for a plan of slices: a tensor of the mask's shape with a single number in memory,
which every layer passes on as it would a mask. The number names the plan, so the token survives detaching, slicing,
copying and a second forward (gradient checkpointing). Stock attention cannot take it for a mask: torch's SDPA refuses
integers.
"""

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

from segattn.attention.backends import slices_pay
from segattn.attention.slices import SlicePlan, plan_slices
from segattn.errors import UnsupportedModelError
from segattn.masks import MaskFunction
from segattn.ranges import VisibleRanges, bisected_ranges

__all__ = ["mask_ranges", "plan_of", "sliced_mask"]

_PLAN = "_segattn_plan"

_serial = itertools.count(1)
_plans: "weakref.WeakValueDictionary[int, SlicePlan]" = weakref.WeakValueDictionary()


def _token(plan: SlicePlan) -> Tensor:
    """Return the tensor that stands for a plan where a mask is expected: int64 (B, 1, Q, K), one number in memory."""
    batch, queries, keys = plan.shape
    number = next(_serial)
    token = torch.tensor(number).expand(batch, 1, queries, keys)
    _plans[number] = plan
    setattr(token, _PLAN, plan)  # the plan lives as long as its token
    return token


def plan_of(attention_mask: Any) -> SlicePlan | None:
    """Return the plan that a token stands for; None for a real mask, or none.

    Raises:
        UnsupportedModelError: the plan is gone, or the model has cut the mask to another shape.
    """
    if not isinstance(attention_mask, Tensor) or attention_mask.dtype != torch.int64 or attention_mask.ndim != 4:
        return None
    plan: SlicePlan | None = getattr(attention_mask, _PLAN, None)
    if plan is None:
        plan = _plans.get(int(attention_mask[0, 0, 0, 0]))
    batch, _, queries, keys = attention_mask.shape
    if plan is None or plan.shape != (batch, queries, keys):
        raise UnsupportedModelError(
            f"an attention layer got a mask of shape {tuple(attention_mask.shape)} whose slices are "
            f"{'gone' if plan is None else f'for {plan.shape}'}; run this model with a dense mask: "
            "segattn.disable(model), then segattn.enable(model, segmenter, backend='dense')"
        )
    return plan


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


def sliced_mask(arguments: dict[str, Any], rule: MaskFunction, *, heads: int, forced: bool) -> Tensor | None:
    """Return a token for the slices of a mask that transformers asks for, None where a mask is needed or faster.

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
    return _token(plan)


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
