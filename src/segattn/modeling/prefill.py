"""Prefill piece by piece into the KV cache, so that the prompt's activations need bounded memory.

A segment cannot be cut: its first tokens must see its last ones. So a chunk ends only where every row may be cut.
"""

import copy
import functools
from typing import Any

import torch
from torch import Tensor

from segattn.errors import UnsupportedModelError
from segattn.modeling.inputs import cached_length
from segattn.modeling.state import SegmentState
from segattn.segments import as_rows, pad_segment_ids

__all__ = ["AUTOMATIC_CHUNK", "check_chunk_size", "chunk_ends", "cuttable", "prefill_member", "why_in_one_pass"]

AUTOMATIC_CHUNK = 8192
"""Prompts with more new tokens than this are prefilled in chunks of at most this many (or of one longer segment)."""

# Model inputs that a chunk can be given its part of. Any other tensor belongs to the prompt as a whole.
_CUT = {"attention_mask", "position_ids", "segment_ids"}
_LAYERS = {"DynamicLayer", "DynamicSlidingWindowLayer", "StaticLayer", "StaticSlidingWindowLayer", "DummyLayer"}

# Found by running every family of transformers in one pass and in pieces: model type -> what its stock code does.
_OTHERWISE_IN_PIECES = {
    "moshi": "its cache drops keys outside of a window that its masks do not hide",
    "git": "behind a cache it reads the padding mask as if image tokens stood before it",
    "qwen3_omni_moe_thinker": "its positions start again in every pass",
}


def cuttable(segment_ids: Tensor) -> Tensor:
    """Tell where no row's segment is cut.

    Args:
        segment_ids: int64 (batch, length).

    Returns:
        bool (length + 1,); entry p is True where a cut before column p leaves every segment whole.
    """
    inside = ((segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] >= 0)).any(0)
    return torch.nn.functional.pad(~inside, (1, 1), value=True)


def chunk_ends(segment_ids: Tensor, start: int, size: int) -> list[int]:
    """Choose where the chunks of a prefill end, so that none cuts a row's segment.

    Args:
        segment_ids: int64 (batch, length), cached and new tokens.
        start: how many tokens are cached.
        size: the most tokens of a chunk. A segment that is longer is one chunk.

    Returns:
        ascending columns, the last one is `length`.
    """
    ends: list[int] = []
    before, length = start, segment_ids.shape[1]
    allowed = [end for end in cuttable(segment_ids).nonzero().flatten().tolist() if end > start]
    for end, following in zip(allowed, [*allowed[1:], None], strict=True):
        if following is None or following - before > size:
            ends.append(end)
            before = end
    assert not ends or ends[-1] == length
    return ends


def why_in_one_pass(config: Any) -> str | None:
    """Say why a piece of a prompt gets other keys than it has in the whole prompt; None where it gets the same."""
    text = config.get_text_config(decoder=True)
    for part in (config, text):
        if part.model_type in _OTHERWISE_IN_PIECES:
            return _OTHERWISE_IN_PIECES[part.model_type]
    parameters = getattr(text, "rope_parameters", None) or {}
    kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    names = [str(kind.get("rope_type")) for kind in kinds]
    if any("dynamic" in name or name == "longrope" for name in names):
        return "its rotary positions depend on the length of the whole pass (rope_type dynamic or longrope)"
    return None


def check_chunk_size(size: Any) -> None:
    """Refuse a `prefill_chunk_size` that is no positive number.

    Raises:
        UnsupportedModelError: it is not an int >= 1.
    """
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise UnsupportedModelError(
            f"prefill_chunk_size is {size!r}; expected the most tokens of a chunk, an int >= 1, or None"
        )


def prefill_member(cls: type[Any]) -> Any:
    """Return the `_prefill` of a class with transformers' `generate`, which chooses chunks by segments."""

    @functools.wraps(cls._prefill)
    def _prefill(
        self: Any,
        input_ids: Tensor,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        is_first_iteration: bool = True,
    ) -> Any:
        state: SegmentState = self._segattn_state
        segment_ids = model_kwargs.get("segment_ids")
        if state.is_causal or segment_ids is None:
            return cls._prefill(self, input_ids, generation_config, model_kwargs, is_first_iteration)
        whole = copy.copy(generation_config)
        whole.prefill_chunk_size = None
        size = generation_config.prefill_chunk_size
        # A draft that goes on from its own cache has a few new tokens, and takes them back.
        reason = _why_whole(self, model_kwargs, generation_config) if is_first_iteration else "a draft"
        if size is not None and reason is not None and is_first_iteration:
            raise UnsupportedModelError(
                f"prefill_chunk_size={size} cannot be kept: {reason}. Leave prefill_chunk_size out: the prompt then "
                "runs in one pass"
            )
        if reason is not None:
            return cls._prefill(self, input_ids, whole, model_kwargs, is_first_iteration)
        return _in_chunks(functools.partial(cls._prefill, self), input_ids, whole, model_kwargs, size)

    return _prefill


def _why_whole(model: Any, model_kwargs: dict[str, Any], generation_config: Any) -> str | None:
    """Say why a prompt must run in one pass; None where pieces are exact."""
    cache = model_kwargs.get("past_key_values")
    if model.config.is_encoder_decoder:
        return "the prompt of an encoder-decoder model is not the decoder's"
    if cache is None:
        return "there is no KV cache to put the chunks into"
    if model_kwargs.get("inputs_embeds") is not None:
        return "the prompt is given as inputs_embeds"
    others = [name for name, value in model_kwargs.items() if isinstance(value, Tensor) and name not in _CUT]
    encoded = (model_kwargs.get("mm_encoder_outputs") or {}).values()
    if others or any(output is not None for output in encoded):
        return f"{', '.join(others) or 'mm_encoder_outputs'} belongs to the prompt as a whole"
    kinds = {type(layer).__name__ for layer in getattr(cache, "layers", ())}
    kinds = kinds or {getattr(getattr(cache, "layer_class_to_replicate", None), "__name__", type(cache).__name__)}
    unknown = sorted(kinds - _LAYERS)
    if unknown:
        return f"a cache of {', '.join(unknown)} gives other results when it is filled in pieces"
    if generation_config.output_attentions or generation_config.output_hidden_states:
        return "output_attentions and output_hidden_states would come out for the last chunk only"
    return why_in_one_pass(model.config)


def _in_chunks(
    prefill: Any, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any], size: int | None
) -> Any:
    """Run transformers' own prefill once per chunk; returns the last chunk's output, which has the next token."""
    past, padding = cached_length(model_kwargs), model_kwargs.get("attention_mask")
    # As transformers tells whole prompts from new tokens alone.
    known = getattr(generation_config, "_mask_length", -1) if padding is None else padding.shape[1]
    tokens = input_ids[:, past:] if known == input_ids.shape[1] else input_ids
    new = tokens.shape[1]
    if new <= (size or AUTOMATIC_CHUNK):
        return prefill(input_ids, generation_config, model_kwargs)
    ids = pad_segment_ids(as_rows(model_kwargs["segment_ids"]), past + new)
    start, positions = 0, model_kwargs.get("position_ids")
    for end in (end - past for end in chunk_ends(ids, past, size or AUTOMATIC_CHUNK)):
        chunk = dict(model_kwargs)
        if padding is not None:
            chunk["attention_mask"] = padding[:, : padding.shape[1] - new + end]
        if positions is not None:
            chunk["position_ids"] = positions[..., -new:][..., start:end]
        output = prefill(tokens[:, start:end], generation_config, chunk)
        start = end
    return output
