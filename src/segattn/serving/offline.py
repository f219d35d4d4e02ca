"""`segattn.serving.llm`: vLLM's offline `LLM` with segments."""

import os
from typing import Any

from segattn.serving.checkpoint import Target, recorded_segmenter, target_of
from segattn.serving.errors import ServingError
from segattn.serving.hooked import check_version, installed_version
from segattn.serving.settings import KEY
from segattn.serving.switch import VARIABLE

__all__ = ["engine_arguments", "llm"]

_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def llm(model_or_adapter: str, **kwargs: Any) -> Any:
    """Make vLLM's `LLM` for a checkpoint that was tuned with segments.

    For an adapter, vLLM loads the base model and the adapter, and every request runs with the adapter unless it names
    another `lora_request`. Requests set their own segments by `SamplingParams(extra_args={"segment_attention": ...})`
    (see `segattn.serving.spans`).

    Args:
        model_or_adapter: a folder or a hub id of a model or a LoRA adapter, or "smollm2-segments".
        kwargs: passed on to `vllm.LLM`.

    Returns:
        A `vllm.LLM`.

    Raises:
        ServingError: vLLM is missing or of another version, or this setup cannot honour segments.
        SegmentError: the checkpoint's segmentation is malformed.
    """
    check_version(installed_version())
    target = target_of(str(model_or_adapter))
    arguments = engine_arguments(target, kwargs)
    os.environ[VARIABLE] = "1"
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    from segattn.serving.plugin import check_active, check_environment

    check_environment(os.environ)
    check_active()
    from segattn.serving.adapter_llm import make_llm

    return make_llm(target, arguments)


def engine_arguments(target: Target, given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM` (or of its server) for a target, what the user gave taking precedence.

    Raises:
        ServingError: a checkpoint that records no segmentation, or an adapter with more settings than one can merge.
    """
    arguments = {"model": target.model, **given}
    extra = dict(arguments.get("additional_config") or {})
    if target.tokenizer is not None:
        arguments.setdefault("tokenizer", target.tokenizer)
    if target.adapter is not None:
        segmenter = recorded_segmenter(target.adapter)
        if segmenter is None:
            raise ServingError(
                f"{target.adapter} records no segmentation, so it was tuned causally and would be badly wrong under "
                "segments; serve it causally (segattn serve --attention causal, or vLLM itself)"
            )
        # The base model alone was not tuned with segments, unless it says so.
        base = recorded_segmenter(target.model)
        entry = {"base": None if base is None else target.model, "adapters": {target.name: target.adapter}}
        extra[KEY] = {**entry, **extra.get(KEY, {})}
        arguments["enable_lora"] = True
        arguments.setdefault("max_lora_rank", next((rank for rank in _LORA_RANKS if rank >= target.rank), target.rank))
    arguments["additional_config"] = extra
    return arguments
