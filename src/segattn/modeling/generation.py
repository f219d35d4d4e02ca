"""Generation of an enabled model: the segments of its prompt, and the options that cannot honour them.

transformers' own loop does the work: `generate` hands it the segment ids of the whole prompt once,
`prepare_inputs_for_generation` hands them on wherever prompt tokens are run, and a step of one token gets none.
"""

import functools
import inspect
from typing import Any

from torch import Tensor

from segattn.errors import SegmentError, UnsupportedModelError
from segattn.modeling.families import pretrained_model_of
from segattn.modeling.forward_pass import begin, end
from segattn.modeling.hooks import call_arguments, parameter_names
from segattn.modeling.inputs import cached_length, check_inputs, checked_ids, cut_segment
from segattn.modeling.prefill import check_chunk_size, prefill_member
from segattn.modeling.state import SegmentState
from segattn.segments import as_rows, check_segment_ids

__all__ = ["generation_members", "generation_option", "padding_mask", "prompt_segment_ids", "with_segment_ids"]

_CAUSALLY = "run causally on purpose with `with segattn.causal(model): ...`"


def generation_members(cls: type[Any]) -> dict[str, Any]:
    """Return the methods that let a class with transformers' `generate` follow segments."""
    members = {"generate": _generate(cls), "prepare_inputs_for_generation": _prepare_inputs(cls)}
    if hasattr(cls, "_prefill"):
        members["_prefill"] = prefill_member(cls)
    if hasattr(cls, "_get_candidate_generator"):
        members["_get_candidate_generator"] = _candidate_generator(cls)
    for name in ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager"):
        if hasattr(cls, name):
            members[name] = _refuse_continuous_batching(name)
    return members


def with_segment_ids(signature: inspect.Signature) -> inspect.Signature:
    """Add the keyword `segment_ids` to a signature."""
    parameter = inspect.Parameter("segment_ids", inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters = list(signature.parameters.values())
    at_end = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    parameters.insert(len(parameters) - 1 if at_end else len(parameters), parameter)
    return signature.replace(parameters=parameters)


def _generate(cls: type[Any]) -> Any:
    names = parameter_names(cls.generate)

    @functools.wraps(cls.generate)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        state: SegmentState = self._segattn_state
        prefix_cache = kwargs.pop("prefix_cache", None)
        given = call_arguments(names, args, kwargs)
        if not state.is_causal:
            _check_options(self, given)
            _refuse_right_padding(self, given)
            kwargs["segment_ids"] = given["segment_ids"] = prompt_segment_ids(state, given)
            check_chunk_size(generation_option(self, given, "prefill_chunk_size"))
        run = functools.partial(cls.generate, self, *args, **kwargs)
        if prefix_cache is None:
            return run()
        if not hasattr(prefix_cache, "generate_with"):
            raise UnsupportedModelError(
                f"prefix_cache is a {type(prefix_cache).__name__}; expected segattn.PrefixCache(model, max_bytes=...)"
            )
        return prefix_cache.generate_with(self, given, run)

    return generate


def generation_option(model: Any, given: dict[str, Any], name: str) -> Any:
    """Return the value that a generation option will have: of the call, its config, or the model's."""
    if name in given:
        return given[name]
    configs = (given.get("generation_config"), model.generation_config)
    return next((value for config in configs if (value := getattr(config, name, None)) is not None), None)


_REFUSED = {
    "token_healing": "it changes the prompt after its segments were found",
    "use_mtp": "its layers beside the model build masks of their own",
    "speculation_type": "its draft reads the model's hidden states and builds masks of its own",
}
_HUB_MODES = {
    "penalty_alpha": "contrastive search",
    "num_beam_groups": "diverse beam search",
    "constraints": "constrained beam search",
    "force_words_ids": "constrained beam search",
    "dola_layers": "DoLa",
}


def _check_options(model: Any, given: dict[str, Any]) -> None:
    """Refuse options that would change the prompt, or whose passes were not compared with hand-built masks."""
    option = functools.partial(generation_option, model, given)
    for name, why in _REFUSED.items():
        if option(name):
            raise UnsupportedModelError(
                f"generate({name}=...) cannot honour segments: {why}. Leave it out, or {_CAUSALLY}"
            )
    beams = (option("num_beams") or 1) > 1
    ignored = {
        "penalty_alpha": beams or option("do_sample") or option("penalty_alpha") == 0,
        "num_beam_groups": not beams or option("num_beam_groups") == 1,
    }
    for name, mode in _HUB_MODES.items():
        if option(name) is None or ignored.get(name) or given.get("custom_generate") is not None:
            continue
        raise UnsupportedModelError(
            f"generate({name}=...) asks for {mode}, whose code comes from the hub and was not compared "
            "with hand-built masks. Leave it out, or name the code with custom_generate=... (every pass that it makes "
            f"through the model is checked), or {_CAUSALLY}"
        )
    _check_draft(given, option)


def _check_draft(given: dict[str, Any], option: Any) -> None:
    draft = given.get("assistant_model")
    if draft is not None and given.get("assistant_tokenizer") is not None and _is_enabled(draft):
        raise UnsupportedModelError(
            f"the assistant model ({type(draft).__name__}) is enabled and has a tokenizer of its own, whose tokens the "
            "segment_ids do not fit; call segattn.disable(assistant_model): a draft only proposes, and may run causally"
        )
    if given.get("inputs_embeds") is None:
        return
    for name in ("prompt_lookup_num_tokens", "assistant_early_exit", "assistant_model", "prefill_chunk_size"):
        if (option(name) if name != "assistant_model" else draft) is not None:
            raise UnsupportedModelError(
                f"generate({name}=...) with inputs_embeds: transformers drafts and cuts token ids only, and would run "
                "another prompt than the one given; leave one of the two out"
            )


def _is_enabled(model: Any) -> bool:
    return "_segattn_state" in vars(pretrained_model_of(model))


def _prompt(given: dict[str, Any]) -> Tensor | None:
    return next((given[name] for name in ("inputs", "input_ids") if given.get(name) is not None), None)


def padding_mask(model: Any, given: dict[str, Any]) -> Tensor | None:
    """Return the padding mask that a call of `generate` has or that transformers infers; None without padding."""
    mask, prompt, pad = given.get("attention_mask"), _prompt(given), generation_option(model, given, "pad_token_id")
    if mask is None and prompt is not None and pad is not None and given.get("inputs_embeds") is None:
        ends = generation_option(model, given, "eos_token_id")
        if pad not in (ends if isinstance(ends, list) else [ends]):
            return prompt != pad
    return mask


def _refuse_right_padding(model: Any, given: dict[str, Any]) -> None:
    """The first new token comes from the last column: from nothing, where that is padding."""
    mask = padding_mask(model, given)
    if mask is not None and mask.ndim == 2 and bool((mask[:, -1] == 0).any()):
        raise SegmentError(
            f"row {int((mask[:, -1] == 0).nonzero()[0])} is padded on the right, so its first new token would be "
            "predicted from a padding token; pad generation batches on the left (tokenizer.padding_side = 'left')"
        )


def prompt_segment_ids(state: SegmentState, given: dict[str, Any]) -> Tensor:
    """Return the segments of the whole prompt, given or derived: what is generated later stays causal."""
    prompt = _prompt(given)
    segment_ids = given.get("segment_ids")
    if segment_ids is None:
        return _derived(state, prompt, given)
    ids = as_rows(segment_ids)
    tokens = [given.get("inputs_embeds"), prompt, given.get("attention_mask")]
    covers = [tensor for tensor in tokens if isinstance(tensor, Tensor) and tensor.ndim > 1]
    if not covers:
        return ids
    check_inputs(ids, covers[0])
    length = max(tensor.shape[1] for tensor in covers)
    if ids.shape[1] > length:
        raise SegmentError(
            f"generate() got segment_ids for {ids.shape[1]} tokens with a prompt of {length}; expected at most the "
            "prompt's tokens, cached ones included (generated tokens are causal by themselves)"
        )
    return ids


def _derived(state: SegmentState, prompt: Tensor | None, given: dict[str, Any]) -> Tensor:
    embeds = given.get("inputs_embeds")
    if embeds is not None:
        prompt = None  # what the token ids beside them stand for is not known
    if prompt is None or state.segmenter is None:
        missing = "no token ids to derive it from" if prompt is None else "the model was enabled without a segmenter"
        raise SegmentError(
            f"generate() got no segment_ids, and {missing}; pass segment_ids (batch, prompt length), or {_CAUSALLY}"
        )
    padding = given.get("attention_mask")
    if padding is not None and padding.shape != prompt.shape:
        raise SegmentError(
            f"generate() got input_ids {tuple(prompt.shape)} with attention_mask {tuple(padding.shape)} and no "
            "segment_ids; pass the whole prompt (transformers skips what is cached), or segment_ids for all of it"
        )
    return state.segmenter.segment_ids(prompt, padding)


def _refuse_cut(ids: Tensor, position: int, what: str) -> None:
    cut = cut_segment(ids, position)
    if cut is not None:
        raise SegmentError(
            f"{cut} lies on both sides of position {position}, where {what} ends, so its first tokens would not see "
            "the others. Expected an end where every row's segments end"
        )


def _prepare_inputs(cls: type[Any]) -> Any:
    stock = cls.prepare_inputs_for_generation
    signature, names = inspect.signature(stock), parameter_names(stock)

    @functools.wraps(stock)
    def prepare_inputs_for_generation(
        self: Any, input_ids: Tensor, *args: Any, segment_ids: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Prepare a step; a static cache has its 4D mask built here, so the segments must be known here.

        Where layers may run slices, the forward gets the padding mask instead.
        """
        state: SegmentState = self._segattn_state
        given = call_arguments(names, (input_ids, *args), kwargs)
        length = given.get("next_sequence_length")
        new = input_ids.shape[1] if length is None else length
        in_prompt = new != 1 or given.get("is_first_iteration", False)
        if segment_ids is not None and in_prompt and not state.is_causal:
            segment_ids = _run_so_far(check_segment_ids(segment_ids), given, new)
        owner = object()
        begun = begin(state, owner)
        assert begun is not None
        try:
            if in_prompt and not state.is_causal:
                begun.segment_ids = segment_ids
                begun.is_ahead = state.slices and segment_ids is not None
            inputs: dict[str, Any] = stock(self, input_ids, *args, **kwargs)
        finally:
            end(owner, succeeded=False)
        inputs.pop("segment_ids", None)
        if begun.is_ahead:
            inputs["attention_mask"] = given.get("attention_mask")
        if in_prompt and segment_ids is not None:
            tokens = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
            inputs["segment_ids"] = segment_ids.to(tokens.device)
            if not state.is_causal and _has_mask(inputs):
                # The forward will see no padding any more: what is checked with it is checked here.
                with_padding = {**inputs, "attention_mask": given.get("attention_mask")}
                checked_ids(inputs["segment_ids"], with_padding, cached_length(given), use_cache=True)
        elif in_prompt and not state.is_causal and _has_mask(inputs):
            raise SegmentError(
                "prepare_inputs_for_generation() got no segment_ids, and a static cache has its mask built here; pass "
                f"segment_ids (batch, cached and new tokens), or {_CAUSALLY}"
            )
        return inputs

    prepare_inputs_for_generation.__signature__ = with_segment_ids(signature)  # type: ignore[attr-defined]
    return prepare_inputs_for_generation


def _run_so_far(ids: Tensor, given: dict[str, Any], new: int) -> Tensor:
    """Return the segment ids up to the last token of this pass, which a prefill in chunks ends before the prompt."""
    if given.get("inputs_embeds") is not None and given.get("is_first_iteration", False):
        return ids
    total = new + cached_length(given)
    if not 0 < total < ids.shape[1]:
        return ids
    _refuse_cut(ids, total, "this pass")
    return ids[:, :total]


def _has_mask(inputs: dict[str, Any]) -> bool:
    mask = inputs.get("attention_mask")
    return isinstance(mask, dict) or (isinstance(mask, Tensor) and mask.ndim > 2)


def _candidate_generator(cls: type[Any]) -> Any:
    stock = cls._get_candidate_generator
    names = parameter_names(stock)

    @functools.wraps(stock)
    def _get_candidate_generator(self: Any, *args: Any, **kwargs: Any) -> Any:
        """A draft that is not enabled runs causally, and gets no segment ids: it only proposes tokens."""
        given = call_arguments(names, args, kwargs)
        draft = given.get("assistant_model")
        if draft is not None and not _is_enabled(draft):
            without = {name: value for name, value in given["model_kwargs"].items() if name != "segment_ids"}
            given["model_kwargs"] = without
        return stock(self, **given)

    return _get_candidate_generator


def _refuse_continuous_batching(name: str) -> Any:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ARG001
        raise UnsupportedModelError(
            f"{name}() runs paged attention, which builds no mask from segments; use model.generate(**batch), or "
            "segattn.disable(model) to run causally"
        )

    refuse.__name__ = name
    return refuse
