"""What one enabled model knows, and how the segment ids of a call are settled: given or derived, and checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from segattn.errors import SegmentError, UnsupportedModelError
from segattn.modeling.adapters import Recorded, active_adapters, agreed, refuse_virtual_tokens
from segattn.modeling.forward_pass import ForwardPass, causal_block, is_causal
from segattn.modeling.inputs import cached_length, check_inputs, checked_ids, document_borders, padding_of, refuse
from segattn.modeling.layer_choice import head_count
from segattn.segments import pad_segment_ids

if TYPE_CHECKING:
    from segattn.templates import Segmenter

__all__ = ["PREPARED", "Backend", "SegmentState"]

PREPARED = "_segattn_prepared"
"""Attribute of a 4D mask that our own mask function has built (generation prepares some ahead): (its segment ids,)."""

Backend = Literal["auto", "dense", "sliced"]

_WAYS_OUT = "Pass segment_ids, or run causally on purpose with `with segattn.causal(model): ...`"


class SegmentState:
    """The switches of one enabled model.

    Attributes:
        base_implementation: the attention implementation that the model was loaded with.
        backend: "auto", "dense" or "sliced", as `enable` was asked for.
        slices: whether the layers run our attention function, which computes slices and tells layers apart.
        heads: number of query heads.
        own_layers: those that follow segments, where no adapter says otherwise; None for all.
        opening_bias: see `segattn.modeling.set_opening`.
    """

    def __init__(
        self,
        model: Any,
        base_implementation: str,
        segmenter: "Segmenter | None",
        backend: Backend,
        slices: bool,
        layers: tuple[int, ...] | None = None,
    ) -> None:
        self.base_implementation = base_implementation
        self.backend = backend
        self.slices = slices
        self.heads = head_count(model)
        self.own_layers = layers
        self.opening_bias: float | Tensor | None = None
        self.adapters: dict[str, Recorded] = {}
        self._model = model
        self.segmenter = segmenter

    @property
    def segmenter(self) -> "Segmenter | None":
        """Of the active adapter if it was loaded with one, of the model otherwise.

        Raises:
            SegmentError: the active adapters were saved with different segmentations, or without one.
        """
        return self.recorded().segmenter

    @segmenter.setter
    def segmenter(self, segmenter: "Segmenter | None") -> None:
        self.own_segmenter = segmenter
        self.adapters.clear()
        # The adapters that are there now follow the segmenter that is set now.
        self._governed = set(getattr(self._model, "peft_config", None) or ())

    def recorded(self, names: "set[str] | None" = None) -> Recorded:
        """Return the segmentation that adapters were saved with, those that are active by default.

        Raises:
            SegmentError: they were saved with different segmentations, or one without.
        """
        own, configs = Recorded(True, self.own_segmenter, self.own_layers), getattr(self._model, "peft_config", None)
        if not configs:
            return own
        records = {}
        for name in sorted(active_adapters(self._model) if names is None else names):
            records[name] = self.adapters.get(name, own)
            known = name in self.adapters or name in self._governed
            if not known and getattr(configs.get(name), "inference_mode", False):
                raise SegmentError(
                    f"the adapter {name!r} was loaded around an enabled model, past everything that could read its "
                    "segmentation; call segattn.enable(model, segmenter) on the wrapped model, or load it with "
                    "segattn.from_pretrained or model.load_adapter"
                )
        return agreed(records or {"": own})

    @property
    def implementation(self) -> str:
        """The attention implementation in the model's config, which names our mask function."""
        return f"segattn_{self.base_implementation}"

    def owns(self, config: Any) -> bool:
        """Whether a config is the model's, or a module's of it: a mask for any other one is not this model's mask."""
        if config is None or torch.compiler.is_compiling() or config is self._model.config:
            return True
        return any(module.__dict__.get("config") is config for module in self._model.modules())

    @contextmanager
    def causal(self) -> Iterator[None]:
        """Run causally inside the block, in this thread."""
        with causal_block(self):
            yield

    @property
    def is_causal(self) -> bool:
        """Whether this thread is inside of `causal()`."""
        return is_causal(self)

    def settle(self, begun: ForwardPass, arguments: dict[str, Any], config: Any) -> None:
        """Give a pass the checked ids (batch, past + new) of its call, or None where the causal mask is exact.

        Args:
            begun: the pass.
            arguments: of `forward`, by name, with `segment_ids`.
            config: of the module that is called.

        Raises:
            SegmentError: ids that are missing or do not fit the call.
            LabelLeakError: a label that its predecessor can see.
            UnsupportedModelError: the attention implementation was changed after `enable`.
        """
        if config._attn_implementation != self.implementation:
            raise UnsupportedModelError(
                f"the attention implementation was changed to {config._attn_implementation!r} after segattn.enable(); "
                "call segattn.disable(model), set it, and enable again"
            )
        if self.is_causal:
            return
        begun.wants_weights = bool(
            arguments.get("output_attentions") or getattr(config, "output_attentions", None) or False
        )
        embeds = arguments.get("inputs_embeds")
        tokens: Tensor | None = embeds if arguments.get("input_ids") is None else arguments["input_ids"]
        segment_ids = arguments.get("segment_ids")
        if tokens is None:
            return  # the model itself says what is missing
        new = tokens.shape[1]
        if segment_ids is None and new == 1:
            return  # the newest token sees everything before it under either rule
        compiling = torch.compiler.is_compiling()
        if not compiling and (arguments.get("input_ids") is None or arguments.get("past_key_values") is not None):
            refuse_virtual_tokens(self)  # virtual tokens come as embeddings or as a cache
        use_cache = arguments.get("use_cache")
        use_cache = bool(getattr(config, "use_cache", False) if use_cache is None else use_cache)
        try:
            record = self.recorded()  # also with ids given: adapters that do not agree, or were tuned causally
            begun.layers = record.layers
            ids = self._checked(record.segmenter, segment_ids, tokens, arguments, use_cache)
            # Without segments the stock path is exact; a compiled graph cannot look, and builds the mask.
            if compiling or bool((ids >= 0).any()):
                begun.mask_was_built = _is_prepared(arguments.get("attention_mask"), ids)
                begun.segment_ids = ids
                begun.borders = _borders(arguments, use_cache)
        except SegmentError as error:
            if not compiling:
                raise
            # Raised here, it would come out as an error of the compiler's.
            begun.segment_ids, begun.mask_was_built = refuse(tokens, str(error)), True

    def _checked(
        self,
        segmenter: "Segmenter | None",
        segment_ids: Any,
        tokens: Tensor,
        arguments: dict[str, Any],
        use_cache: bool,
    ) -> Tensor:
        """The ids of a call, given or derived, checked, (batch, past + new)."""
        past = cached_length(arguments)
        if segment_ids is None:
            padding = padding_of(arguments.get("attention_mask"))
            segment_ids = self._derive(segmenter, arguments.get("input_ids"), padding, past)
        check_inputs(segment_ids, tokens)
        return checked_ids(segment_ids, arguments, past, use_cache)

    @staticmethod
    def _derive(segmenter: "Segmenter | None", input_ids: Tensor | None, padding: Tensor | None, past: int) -> Tensor:
        if segmenter is None:
            raise SegmentError(
                "segment_ids is missing, and the model was enabled without a segmenter. "
                f"{_WAYS_OUT}, or enable(model, segmenter=segattn.Segmenter.from_tokenizer(tokenizer))"
            )
        if input_ids is None:
            raise SegmentError(f"segment_ids is missing, and inputs_embeds tells no token ids. {_WAYS_OUT}")
        if past:
            raise SegmentError(
                f"segment_ids is missing for {input_ids.shape[1]} new tokens after {past} cached ones, and the new "
                f"tokens alone do not tell the segmentation. {_WAYS_OUT}; ids cover cached and new tokens"
            )
        return _derived(segmenter, input_ids, padding)


@torch.compiler.disable(
    reason="a segmenter reads token ids in plain Python; with fullgraph=True, pass "
    "segment_ids=segmenter.segment_ids(input_ids, attention_mask)"
)
def _derived(segmenter: "Segmenter", input_ids: Tensor, padding: Tensor | None) -> Tensor:
    return segmenter.segment_ids(input_ids, padding)


def _is_prepared(attention_mask: Any, ids: Tensor) -> bool:
    """Whether the mask was built ahead, by our mask function, from these ids; any other 4D mask is refused."""
    masks = list(attention_mask.values()) if isinstance(attention_mask, dict) else [attention_mask]
    prepared = [mask for mask in masks if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2)]
    for mask in prepared:
        built_from = getattr(mask, PREPARED, None)
        if built_from is None:
            shape = tuple(mask.shape) if hasattr(mask, "shape") else type(mask).__name__
            raise SegmentError(
                f"attention_mask is a prepared mask {shape}, which would replace the segment mask; pass the 2D "
                "padding mask (batch, length), or disable(model) to use your own"
            )
        if not torch.compiler.is_compiling() and not _same_segments(built_from[0], ids):
            raise SegmentError(
                "attention_mask was prepared for other segment_ids than those of this call; prepare the inputs again, "
                "or pass the 2D padding mask (batch, length)"
            )
    return bool(prepared)


def _same_segments(built_from: Tensor | None, ids: Tensor) -> bool:
    """Whether two segmentations are the same; tokens that one of them lacks are causal."""
    if built_from is None:
        return not bool((ids >= 0).any())
    length = max(built_from.shape[1], ids.shape[1])
    return torch.equal(pad_segment_ids(built_from, length), pad_segment_ids(ids, length))


def _borders(arguments: dict[str, Any], use_cache: bool) -> Tensor | None:
    """Where packed documents begin, (batch or 1, length), if the call is one in which transformers looks for them."""
    hidden = use_cache or any(arguments.get(name) is not None for name in ("attention_mask", "past_key_values"))
    position_ids = arguments.get("position_ids")
    if hidden or not isinstance(position_ids, Tensor) or position_ids.ndim != 2 or position_ids.shape[1] == 1:
        return None
    return document_borders(position_ids)
