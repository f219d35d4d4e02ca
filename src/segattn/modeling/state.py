"""The segment ids of the forward pass that is under way, and how they are settled.

Why a holder: between a model's `forward` and the place where transformers builds the attention mask lie
model-specific calls that pass on no extra argument. The outermost module of ours that is called (the language model,
or its backbone where a trainer calls that directly) captures the segment ids; the mask function reads them.
"""

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from segattn.errors import SegmentError, UnsupportedModelError
from segattn.segments import CAUSAL, as_rows, check_labels, check_segment_ids, pad_segment_ids

if TYPE_CHECKING:
    from segattn.templates import Segmenter

__all__ = ["PREPARED", "SegmentState", "call_arguments", "clear_on_exit"]

PREPARED = "_segattn_prepared"
"""Attribute that marks a 4D mask which our own mask function has built (generation prepares some ahead)."""


class SegmentState:
    """What one enabled model knows: its segmenter, its switches and the pass under way."""

    def __init__(self, base_implementation: str, implementation: str, segmenter: "Segmenter | None") -> None:
        self.base_implementation = base_implementation
        self.implementation = implementation
        self.segmenter = segmenter
        self.causal_depth = 0
        self.opening_bias: float | None = None
        # The pass under way: who captured it, its ids (None: causal), and whether a mask was made from them.
        self.owner: object | None = None
        self.segment_ids: Tensor | None = None
        self.mask_was_built = False

    def enter(self, owner: object, arguments: dict[str, Any], config: Any) -> None:
        """Capture the segment ids of a call, unless a module further out has done so."""
        if self.owner is not None and self.owner is not owner:
            return
        # Set first: should settling raise, `leave` still finds its owner and clears it.
        self.owner, self.segment_ids, self.mask_was_built = owner, None, False
        if config._attn_implementation != self.implementation:
            raise UnsupportedModelError(
                f"the attention implementation was changed to {config._attn_implementation!r} after segattn.enable(); "
                "call segattn.disable(model), set it, and enable again"
            )
        if arguments.get("use_cache") is None:
            arguments = {**arguments, "use_cache": getattr(config, "use_cache", False)}
        self.segment_ids = None if self.causal_depth else self._settle(arguments)

    def leave(self, owner: object, *, succeeded: bool) -> None:
        """End the pass of `owner`.

        Raises:
            UnsupportedModelError: the model finished a pass with segments without asking for a mask.
        """
        if self.owner is not owner:
            return
        ignored = succeeded and self.segment_ids is not None and not self.mask_was_built
        self.owner, self.segment_ids = None, None
        if ignored:
            raise UnsupportedModelError(
                "the model built no attention mask from the segment ids: it would have run causally. "
                "This model class or option cannot honour segments"
            )

    def _settle(self, arguments: dict[str, Any]) -> Tensor | None:
        """Return checked ids (batch, past + new) of a call, or None where the causal mask is exact."""
        embeds = arguments.get("inputs_embeds")
        tokens: Tensor | None = embeds if arguments.get("input_ids") is None else arguments["input_ids"]
        segment_ids = arguments.get("segment_ids")
        if tokens is None:
            return None  # the model itself says what is missing
        new = tokens.shape[1]
        if segment_ids is None and new == 1:
            return None  # the newest token sees everything before it under either rule
        past = _cached_length(arguments.get("past_key_values"))
        padding = _padding_mask(arguments.get("attention_mask"))
        if segment_ids is None:
            segment_ids = self._derive(arguments.get("input_ids"), padding, past)
        ids = _checked(segment_ids, tokens, past + new, padding)
        _refuse_open_segment(ids, past)
        if not bool((ids >= 0).any()):
            return None
        _check_packing(ids, arguments, past)
        labels = arguments.get("labels")
        if labels is not None and past == 0:
            check_labels(ids, labels)
        self._check_prepared(arguments.get("attention_mask"))
        return ids

    def _derive(self, input_ids: Tensor | None, padding: Tensor | None, past: int) -> Tensor:
        ways_out = "Pass segment_ids, or run causally on purpose with `with segattn.causal(model): ...`"
        if self.segmenter is None:
            raise SegmentError(
                "segment_ids is missing, and the model was enabled without a segmenter. "
                f"{ways_out}, or enable(model, segmenter=segattn.Segmenter.from_tokenizer(tokenizer))"
            )
        if input_ids is None:
            raise SegmentError(f"segment_ids is missing, and inputs_embeds tells no token ids. {ways_out}")
        if past:
            raise SegmentError(
                f"segment_ids is missing for {input_ids.shape[1]} new tokens after {past} cached ones, and the new "
                f"tokens alone do not tell the segmentation. {ways_out}; ids cover cached and new tokens"
            )
        return self.segmenter.segment_ids(input_ids, padding)

    def _check_prepared(self, attention_mask: Any) -> None:
        masks = list(attention_mask.values()) if isinstance(attention_mask, dict) else [attention_mask]
        for mask in masks:
            if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
                continue
            if not getattr(mask, PREPARED, False):
                shape = tuple(mask.shape) if hasattr(mask, "shape") else type(mask).__name__
                raise SegmentError(
                    f"attention_mask is a prepared mask {shape}, which would replace the segment mask; pass the 2D "
                    "padding mask (batch, length), or disable(model) to use your own"
                )
            self.mask_was_built = True


def call_arguments(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Name the positional arguments of a call; `signature` is that of the unbound `forward`."""
    names = list(signature.parameters)[1:]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _cached_length(cache: Any) -> int:
    return 0 if cache is None else int(cache.get_seq_length())


def _padding_mask(attention_mask: Any) -> Tensor | None:
    return attention_mask if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2 else None


def _checked(segment_ids: Tensor, tokens: Tensor, total: int, padding: Tensor | None) -> Tensor:
    ids = as_rows(segment_ids)
    if ids.device != tokens.device:
        raise SegmentError(
            f"segment_ids is on {ids.device} and the inputs on {tokens.device}; expected one device "
            "(batch.to(model.device) moves all of them)"
        )
    if ids.shape[0] != tokens.shape[0]:
        raise SegmentError(f"segment_ids has {ids.shape[0]} rows for a batch of {tokens.shape[0]}; expected as many")
    ids = check_segment_ids(ids)
    ids = pad_segment_ids(ids, total)
    if padding is not None and padding.shape == ids.shape:
        check_segment_ids(ids, padding.to(ids.device))
    return ids


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


def _check_packing(ids: Tensor, arguments: dict[str, Any], past: int) -> None:
    """Refuse packed rows in which transformers or a segment would mix two documents."""
    position_ids = arguments.get("position_ids")
    if past or not isinstance(position_ids, Tensor) or position_ids.ndim != 2:
        return
    positions = position_ids.expand(ids.shape[0], -1)
    restarts = torch.zeros_like(ids, dtype=torch.bool)
    restarts[:, 1:] = positions[:, 1:] < positions[:, :-1]
    padding = _padding_mask(arguments.get("attention_mask"))
    if padding is not None and padding.shape == ids.shape:
        restarts[:, 1:] &= padding[:, 1:].bool() & padding[:, :-1].bool()
    if not restarts.any():
        return
    # transformers looks for packed documents only where it has neither a mask nor a cache (masking_utils.py,
    # _preprocess_mask_arguments); otherwise the documents of a row would see each other.
    if padding is not None or arguments.get("use_cache"):
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


def clear_on_exit(state: SegmentState) -> Any:
    """Make the hook that ends a pass, whether or not the module returned."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001
        # torch passes None as the output of a call that raised.
        state.leave(module, succeeded=output is not None)

    return hook
