"""The two places where vLLM's front end is patched: each request is settled, and prompts are not cut from the left.

vLLM's own hook, `Platform.validate_request`, is told neither the engine's config nor the adapter that a request names,
and nothing is told whether a prompt was cut. Both methods stand in `hooked.METHODS`, so a vLLM that changed them does
not start with segments. Engines without segments in the same process are passed through, except for the cut.
"""

from functools import wraps
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.renderers.params import TokenizeParams
from vllm.v1.engine.input_processor import InputProcessor

from segattn.errors import SegmentAttentionError
from segattn.serving.requests import RequestChecker
from segattn.serving.settings import ServingSettings, entry_of, is_resolved

__all__ = ["patch_front_end"]

_UNSET = object()


def patch_front_end() -> None:
    """Patch the classes of vLLM's front end in this process, once."""
    if getattr(InputProcessor.process_inputs, "settles_segments", False):
        return
    process_inputs, check_tokenizing = InputProcessor.process_inputs, TokenizeParams.__post_init__

    @wraps(process_inputs)  # which also keeps the parameters that `hooked` compares
    def settling(processor: Any, *args: Any, **kwargs: Any) -> Any:
        request = process_inputs(processor, *args, **kwargs)
        checker = _checker_of(processor)
        if checker is not None:
            try:
                checker.settle(request)
            except SegmentAttentionError as error:  # over HTTP, a 400 with the reason
                raise VLLMValidationError(str(error), parameter="vllm_xargs") from error
        return request

    @wraps(check_tokenizing)
    def refusing_cuts(parameters: Any) -> None:
        check_tokenizing(parameters)
        # Without a side, vLLM cuts where the tokenizer does, which for generation is from the left.
        if parameters.truncate_prompt_tokens is not None and parameters.truncation_side != "right":
            raise VLLMValidationError(
                "this server finds segments by the headers of messages, and a prompt that is cut from the left may "
                "begin inside a message; leave out truncate_prompt_tokens (in the Responses API: truncation) and drop "
                'whole messages, or set truncation_side to "right"',
                parameter="truncate_prompt_tokens",
                value=parameters.truncate_prompt_tokens,
            )

    settling.settles_segments = True  # type: ignore[attr-defined]
    InputProcessor.process_inputs = settling
    TokenizeParams.__post_init__ = refusing_cuts


def _checker_of(processor: Any) -> RequestChecker | None:
    """The checker of an engine's front end, made with its first request; None for an engine without segments."""
    found = getattr(processor, "segment_requests", _UNSET)
    if found is _UNSET:
        entry = entry_of(processor.vllm_config)
        active = entry is not None and is_resolved(entry)
        found = RequestChecker(ServingSettings.from_config(processor.vllm_config)) if active else None
        processor.segment_requests = found
    return found  # type: ignore[return-value]
