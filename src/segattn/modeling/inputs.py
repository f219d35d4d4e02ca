"""Checks of one call: whether the segment ids fit its tokens, padding, cache, packing and labels."""

from typing import Any

import torch
from torch import Tensor

from segattn.errors import SegmentError, UnsupportedModelError
from segattn.segments import CAUSAL, IGNORED_LABEL, as_rows, check_labels, check_segment_ids, pad_segment_ids

__all__ = [
    "cached_length",
    "check_inputs",
    "checked_ids",
    "cut_segment",
    "document_borders",
    "padding_of",
    "refuse",
    "refuse_mixed_documents",
]


def padding_of(attention_mask: Any) -> Tensor | None:
    """Return the mask if it is the 2D padding mask, None otherwise."""
    return attention_mask if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2 else None


def cached_length(arguments: dict[str, Any]) -> int:
    """Return how many tokens the cache of a call holds.

    Raises:
        SegmentError: `past_key_values` is no transformers cache.
    """
    cache = arguments.get("past_key_values")
    if cache is None:
        return 0
    if not hasattr(cache, "get_seq_length"):
        raise SegmentError(
            f"past_key_values is a {type(cache).__name__}; expected a transformers Cache, e.g. DynamicCache"
        )
    return int(cache.get_seq_length())


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
    ids, new = as_rows(segment_ids), tokens.shape[1]
    if ids.numel() == 0:
        check_segment_ids(ids)
    ids = pad_segment_ids(ids, past + new)
    padding = _fitting_padding(arguments.get("attention_mask"), ids)
    # A mask that generation has prepared hides the padding; prepare_inputs_for_generation has checked the positions.
    prepared = padding is None and arguments.get("attention_mask") is not None
    position_ids = None if prepared else _fitting_positions(arguments.get("position_ids"), tokens, past)
    labels, shift_labels = (_fitting_labels(arguments.get(name), name) for name in ("labels", "shift_labels"))
    check = _check_values if torch.compiler.is_compiling() else _checked_values
    return check(ids, padding, position_ids, labels, shift_labels, past, use_cache)


def _fitting_padding(attention_mask: Any, ids: Tensor) -> Tensor | None:
    """The 2D padding mask over cached and new tokens; what a static cache will hold later is cut off."""
    padding = padding_of(attention_mask)
    if padding is None:
        return None
    if padding.shape[0] != ids.shape[0] or padding.shape[1] < ids.shape[1]:
        raise SegmentError(
            f"attention_mask has shape {tuple(padding.shape)}; expected {tuple(ids.shape)}, one entry for each cached "
            "and new token"
        )
    return padding[:, : ids.shape[1]].to(ids.device)


def _fitting_positions(position_ids: Any, tokens: Tensor, past: int) -> Tensor | None:
    """The positions in which packed documents may show; None where there can be none."""
    if position_ids is None:
        return None
    if not isinstance(position_ids, Tensor):
        raise SegmentError(f"position_ids is a {type(position_ids).__name__}; expected an int64 tensor")
    if position_ids.ndim != 2:
        return None  # positions in several dimensions (images) pack nothing
    rows, length = position_ids.shape
    if length != tokens.shape[1] or rows not in (1, tokens.shape[0]):
        raise SegmentError(
            f"position_ids has shape {tuple(position_ids.shape)}; expected {tuple(tokens.shape[:2])}, one position for "
            "each new token"
        )
    return None if past else position_ids


def _fitting_labels(labels: Any, name: str) -> Tensor | None:
    if labels is not None and not isinstance(labels, Tensor):
        raise SegmentError(f"{name} is a {type(labels).__name__}; expected an int64 tensor (batch, new tokens)")
    return labels


def _checked_values(
    ids: Tensor,
    padding: Tensor | None,
    position_ids: Tensor | None,
    labels: Tensor | None,
    shift_labels: Tensor | None,
    past: int,
    use_cache: bool,
) -> Tensor:
    """The part of the checks that looks at values."""
    check_segment_ids(ids, padding)
    if padding is not None and bool((padding > 1).any()):
        raise SegmentError(
            f"attention_mask holds {int(padding.max())}; expected 1 for real tokens and 0 for padding. Numbered "
            "documents would see each other here: pack them with position_ids that begin at 0 in each, and no mask"
        )
    _refuse_open_segment(ids, past)
    if position_ids is not None:
        _check_packing(ids, position_ids, padding, use_cache)
    if labels is not None:
        check_labels(ids[:, past:], labels)
    if shift_labels is not None:
        # The label of token i + 1 stands at i. The last one belongs to a token that is not there.
        first = torch.full_like(shift_labels[..., :1], IGNORED_LABEL)
        check_labels(ids[:, past:], torch.cat([first, shift_labels[..., :-1]], dim=-1))
    return ids


# Inside a compiled graph the values are looked at by an operator that the compiler does not look into: wrong ids raise
# there too, and another segmentation of the same shape compiles nothing anew.
@torch.library.custom_op("segattn::check_segment_ids", mutates_args=())
def _check_values(
    ids: Tensor,
    padding: Tensor | None,
    position_ids: Tensor | None,
    labels: Tensor | None,
    shift_labels: Tensor | None,
    past: int,
    use_cache: bool,
) -> Tensor:
    return _checked_values(ids, padding, position_ids, labels, shift_labels, past, use_cache).clone()


@_check_values.register_fake
def _(ids: Tensor, *others: Any) -> Tensor:  # noqa: ARG001
    return torch.empty_like(ids)


@torch.library.custom_op("segattn::refuse_mixed_documents", mutates_args=())
def refuse_mixed_documents(mixed: Tensor, ids: Tensor) -> Tensor:
    """Refuse masks in which a packed document sees the one before it, as those of some families do.

    Args:
        mixed: bool; True where the first token of a document sees the last one of the document before.
        ids: the segment ids, int64 (batch, length).

    Returns:
        a copy of `ids`, so that a compiled graph cannot leave the check out.

    Raises:
        UnsupportedModelError: any is True.
    """
    if mixed.any():
        raise UnsupportedModelError(
            "position_ids restart inside a row (packed documents), but the masks of this model class do not keep the "
            "documents apart; run each document as a row of its own"
        )
    return ids.clone()


@refuse_mixed_documents.register_fake
def _(mixed: Tensor, ids: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(ids)


@torch.library.custom_op("segattn::refuse", mutates_args=())
def refuse(tokens: Tensor, message: str) -> Tensor:  # noqa: ARG001
    """Raise a SegmentError when a compiled graph runs.

    Returns:
        to the compiler: segment ids (batch, length) of `tokens`.
    """
    raise SegmentError(message)


@refuse.register_fake
def _(tokens: Tensor, message: str) -> Tensor:  # noqa: ARG001
    return tokens.new_empty(tokens.shape[:2], dtype=torch.int64)


def _refuse_open_segment(ids: Tensor, past: int) -> None:
    """A cached token has not seen the rest of its segment; going on would give wrong keys in silence."""
    cut = cut_segment(ids, past) if past else None
    if cut is not None:
        raise SegmentError(
            f"{cut} lies on both sides of position {past}, where the cache ends; the cached tokens did not see the new "
            "ones. Expected a cache that ends where a segment ends"
        )


def cut_segment(ids: Tensor, position: int) -> str | None:
    """Return "row R: segment S" for the first segment that lies on both sides of a position, None if there is none."""
    cut = (ids[:, position - 1] == ids[:, position]) & (ids[:, position] > CAUSAL)
    if not cut.any():
        return None
    row = int(cut.nonzero()[0])
    return f"row {row}: segment {int(ids[row, position])}"


def document_borders(position_ids: Tensor) -> Tensor:
    """Return where transformers sees a packed document begin: at any step of the positions but 1.

    Args:
        position_ids: int64 (batch, length).

    Returns:
        bool (batch, length).

    Source: masking_utils.py, find_packed_sequence_indices.
    """
    borders = torch.zeros_like(position_ids, dtype=torch.bool)
    borders[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    return borders


def _check_packing(ids: Tensor, position_ids: Tensor, padding: Tensor | None, use_cache: bool) -> None:
    """Refuse packed rows in which transformers or a segment would mix two documents."""
    positions = position_ids.expand(ids.shape[0], -1)
    borders = document_borders(positions)
    # transformers looks for packed documents only where it has neither a mask nor a cache (masking_utils.py,
    # _preprocess_mask_arguments); otherwise the documents of a row would see each other.
    if padding is not None or use_cache:
        # Positions may jump ahead for other reasons; only where they do not grow does another document begin.
        restarts = borders[:, 1:] & (positions[:, 1:] <= positions[:, :-1])
        if padding is not None:
            restarts = restarts & padding[:, 1:].bool() & padding[:, :-1].bool()
        if not restarts.any():
            return
        given = "an attention_mask is given" if padding is not None else "use_cache is on"
        raise SegmentError(
            f"position_ids restart inside a row (packed documents), but {given}, which makes transformers ignore the "
            "packing; call the model with use_cache=False and without attention_mask"
        )
    crossing = borders[:, 1:] & (ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] > CAUSAL)
    if crossing.any():
        row, before = crossing.nonzero()[0].tolist()
        raise SegmentError(
            f"row {row}, position {before + 1}: segment {int(ids[row, before + 1])} runs across the border of two "
            "packed documents (position_ids do not go on by 1 there); expected every segment inside one document"
        )
