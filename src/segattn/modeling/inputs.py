"""Checks of one call: whether the segment ids fit its tokens, padding, cache, packing and labels."""

from typing import Any

import torch
from torch import Tensor

from segattn.errors import SegmentError
from segattn.segments import CAUSAL, as_rows, check_labels, check_segment_ids, pad_segment_ids

__all__ = ["check_inputs", "checked_ids", "padding_of"]


def padding_of(attention_mask: Any) -> Tensor | None:
    """Return the mask if it is the 2D padding mask, None otherwise."""
    return attention_mask if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2 else None


def check_inputs(segment_ids: Any, tokens: Tensor) -> None:
    """Check the segment ids' type, device and number of rows against the tokens or embeddings of a call.

    Raises:
        SegmentError: they do not fit.
    """
    ids = as_rows(segment_ids)
    if ids.device != tokens.device:
        raise SegmentError(
            f"segment_ids is on {ids.device} and the inputs on {tokens.device}; expected one device "
            "(batch.to(model.device) moves all of them)"
        )
    if ids.shape[0] != tokens.shape[0]:
        raise SegmentError(f"segment_ids has {ids.shape[0]} rows for a batch of {tokens.shape[0]}; expected as many")


def checked_ids(segment_ids: Tensor, arguments: dict[str, Any], past: int, use_cache: bool) -> Tensor:
    """Check the segmentation of a call and pad it with causal ids to (batch, past + new tokens).

    Args:
        segment_ids: integer, (batch, up to past + new tokens) or, for one row, (length,).
        arguments: of `forward`, by name.
        past: how many tokens the cache holds.
        use_cache: whether the call will use a cache.

    Raises:
        SegmentError: malformed ids (see `segattn.segments.check_segment_ids`), a cache that ends inside a segment,
            packed documents that a segment or transformers would mix.
        LabelLeakError: a label that its predecessor can see.
    """
    tokens = arguments["inputs_embeds"] if arguments.get("input_ids") is None else arguments["input_ids"]
    ids, total = as_rows(segment_ids), past + tokens.shape[1]
    if ids.numel() == 0:
        check_segment_ids(ids)
    ids = pad_segment_ids(ids, total)
    padding, position_ids = padding_of(arguments.get("attention_mask")), arguments.get("position_ids")
    if past or not isinstance(position_ids, Tensor) or position_ids.ndim != 2:
        position_ids = None
    labels = arguments.get("labels") if past == 0 else None
    check = _check_values if torch.compiler.is_compiling() else _checked_values
    return check(ids, padding, position_ids, labels, past, use_cache)


def _checked_values(
    ids: Tensor,
    padding: Tensor | None,
    position_ids: Tensor | None,
    labels: Tensor | None,
    past: int,
    use_cache: bool,
) -> Tensor:
    """The part of the checks that looks at values."""
    fits = padding is not None and padding.shape == ids.shape
    check_segment_ids(ids, padding.to(ids.device) if padding is not None and fits else None)
    _refuse_open_segment(ids, past)
    if position_ids is not None:
        _check_packing(ids, position_ids, padding, use_cache)
    if labels is not None:
        check_labels(ids, labels)
    return ids


# Inside a compiled graph the values are looked at by an operator that the compiler does not look into: wrong ids raise
# there too, and another segmentation of the same shape compiles nothing anew.
@torch.library.custom_op("segattn::check_segment_ids", mutates_args=())
def _check_values(
    ids: Tensor,
    padding: Tensor | None,
    position_ids: Tensor | None,
    labels: Tensor | None,
    past: int,
    use_cache: bool,
) -> Tensor:
    return _checked_values(ids, padding, position_ids, labels, past, use_cache).clone()


@_check_values.register_fake
def _(
    ids: Tensor,
    padding: Tensor | None,  # noqa: ARG001
    position_ids: Tensor | None,  # noqa: ARG001
    labels: Tensor | None,  # noqa: ARG001
    past: int,  # noqa: ARG001
    use_cache: bool,  # noqa: ARG001
) -> Tensor:
    return torch.empty_like(ids)


def _refuse_open_segment(ids: Tensor, past: int) -> None:
    """A cached token has not seen the rest of its segment; going on would give wrong keys in silence."""
    if not past:
        return
    cut = (ids[:, past - 1] == ids[:, past]) & (ids[:, past] > CAUSAL)
    if cut.any():
        row = int(cut.nonzero()[0])
        raise SegmentError(
            f"row {row}: segment {int(ids[row, past])} lies on both sides of position {past}, where the cache ends; "
            "the cached tokens did not see the new ones. Expected a cache that ends where a segment ends"
        )


def _check_packing(ids: Tensor, position_ids: Tensor, padding: Tensor | None, use_cache: bool) -> None:
    """Refuse packed rows in which transformers or a segment would mix two documents."""
    positions = position_ids.expand(ids.shape[0], -1)
    restarts = torch.zeros_like(ids, dtype=torch.bool)
    restarts[:, 1:] = positions[:, 1:] < positions[:, :-1]
    if padding is not None and padding.shape == ids.shape:
        restarts[:, 1:] &= padding[:, 1:].bool() & padding[:, :-1].bool()
    if not restarts.any():
        return
    # transformers looks for packed documents only where it has neither a mask nor a cache (masking_utils.py,
    # _preprocess_mask_arguments); otherwise the documents of a row would see each other.
    if padding is not None or use_cache:
        given = "an attention_mask is given" if padding is not None else "use_cache is on"
        raise SegmentError(
            f"position_ids restart inside a row (packed documents), but {given}, which makes transformers ignore the "
            "packing; call the model with use_cache=False and without attention_mask"
        )
    crossing = restarts[:, 1:] & (ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] > CAUSAL)
    if crossing.any():
        row, before = crossing.nonzero()[0].tolist()
        raise SegmentError(
            f"row {row}, position {before + 1}: segment {int(ids[row, before + 1])} runs across the border of two "
            "packed documents; expected every segment inside one document"
        )
