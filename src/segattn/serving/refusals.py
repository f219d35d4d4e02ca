"""Setups of vLLM in which segments are not honoured, or were not tested: refused at start-up, all at once, by name."""

import os
from collections.abc import Callable
from typing import Any

from segattn.serving.errors import ServingError
from segattn.serving.limits import StepLimits

__all__ = ["check_config", "problems_of"]

# Each: (whether this config has it, what to say). `config` is vLLM's VllmConfig.
_PARALLEL: list[tuple[Callable[[Any], bool], str]] = [
    (
        lambda config: config.parallel_config.pipeline_parallel_size > 1,
        "pipeline parallelism was not tested: leave out --pipeline-parallel-size, use --tensor-parallel-size",
    ),
    (
        lambda config: config.parallel_config.decode_context_parallel_size > 1,
        "context parallelism splits keys over devices and masks by position: leave out --decode-context-parallel-size",
    ),
    (
        lambda config: config.parallel_config.prefill_context_parallel_size > 1,
        "context parallelism splits a segment's queries: leave out --prefill-context-parallel-size",
    ),
    (
        lambda config: bool(config.parallel_config.use_ubatching),
        "micro-batches cut a step without regard to its flags: leave out --enable-dbo and --ubatch-size",
    ),
]
_ENGINE: list[tuple[Callable[[Any], bool], str]] = [
    (
        lambda config: config.speculative_config is not None,
        "speculative decoding was not tested, and its drafters attend causally: leave out --speculative-config",
    ),
    (
        lambda config: not config.scheduler_config.enable_chunked_prefill,
        "a segment is a chunk of a chunked prefill: leave out --no-enable-chunked-prefill",
    ),
    (
        lambda config: config.kv_transfer_config is not None or config.ec_transfer_config is not None,
        "KV transfer, offloading and disaggregated prefill find blocks by token ids, and would share the beginning of "
        "two different segments: leave out --kv-transfer-config, --ec-transfer-config and --kv-offloading-size",
    ),
    (
        lambda config: config.kv_events_config is not None and config.kv_events_config.enable_kv_cache_events,
        "KV events carry vLLM's own block keys, without segments: leave out --kv-events-config",
    ),
    (
        lambda config: bool(config.cache_config.kv_sharing_fast_prefill),
        "fast prefill skips layers for all but the last token: leave out --kv-sharing-fast-prefill",
    ),
    (
        lambda config: bool(config.use_v2_model_runner),
        "model runner V2 builds attention metadata elsewhere: set VLLM_USE_V2_MODEL_RUNNER=0 in the environment",
    ),
    (
        lambda _: os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"),
        "the Rust front end checks no segments: unset VLLM_USE_RUST_FRONTEND",
    ),
    (
        lambda config: (
            config.device_config.device_type != "cpu"
            and config.compilation_config.cudagraph_mode is not None
            and config.compilation_config.cudagraph_mode.mixed_mode().name == "FULL"
        ),
        "a full CUDA graph of mixed batches holds the causal flag that it was captured with: set "
        '--compilation-config \'{"cudagraph_mode": "FULL_AND_PIECEWISE"}\'',
    ),
]
_MODEL: list[tuple[Callable[[Any], bool], str]] = [
    (lambda model: model.runner_type != "generate", "pooling and embedding models generate no answer to a prompt"),
    (lambda model: bool(model.is_encoder_decoder), "encoder-decoder models have no segments in their decoder's prompt"),
    (
        lambda model: bool(model.is_multimodal_model),
        "multimodal models put tokens into the prompt that segments do not know; serve the text model alone",
    ),
    (lambda model: bool(model.use_mla), "latent attention (MLA) has kernels of its own, which were not looked at"),
    (lambda model: bool(model.is_hybrid or model.is_attention_free), "state-space layers read left to right"),
    (
        lambda model: (
            model.get_sliding_window() is not None
            or (
                getattr(model.hf_text_config, "sliding_window", None) is not None
                and getattr(model.hf_text_config, "use_sliding_window", True)
            )
        ),
        "sliding windows are cut in both directions under segments, which vLLM's kernels do not do for one flag",
    ),
    (
        lambda model: getattr(model.hf_text_config, "attention_chunk_size", None) is not None,
        "chunked local attention ends at fixed positions, also inside a segment",
    ),
    (
        lambda model: bool(getattr(model.hf_text_config, "alibi", False)),
        "ALiBi biases depend on the direction, which was not tested",
    ),
    (lambda model: bool(model.enable_prompt_embeds), "prompt embeddings have no token ids: --enable-prompt-embeds"),
    (lambda model: bool(getattr(model, "is_diffusion", False)), "diffusion models do not prefill"),
]


def problems_of(config: Any) -> list[str]:
    """Return every reason for which a vLLM config cannot honour segments."""
    found = [text for has, text in _PARALLEL + _ENGINE if has(config)]
    found += [text for has, text in _MODEL if has(config.model_config)]
    limits = limits_of(config)
    if limits.longest_segment < 1:
        found.append(
            f"no segment fits into a step: --max-num-batched-tokens is {limits.max_num_batched_tokens} and "
            f"--max-num-seqs {limits.max_num_seqs}; set --max-num-batched-tokens to at least the longest segment plus "
            "--max-num-seqs"
        )
    return found


def check_config(config: Any) -> None:
    """Refuse a vLLM config that cannot honour segments.

    Raises:
        ServingError: names everything that must be changed.
    """
    found = problems_of(config)
    if found:
        lines = "".join(f"\n- {problem}" for problem in found)
        raise ServingError(f"this setup cannot serve {config.model_config.model} with segments:{lines}")


def limits_of(config: Any) -> StepLimits:
    """Return what bounds a segment under a vLLM config."""
    scheduler = config.scheduler_config
    most = getattr(scheduler, "max_num_scheduled_tokens", None)
    tokens = scheduler.max_num_batched_tokens if most is None else min(most, scheduler.max_num_batched_tokens)
    return StepLimits(int(tokens), int(scheduler.max_num_seqs), int(scheduler.long_prefill_token_threshold))
