"""Turn a vLLM config into one that serves segments: what the platform plugin does when vLLM shows it the config."""

from collections.abc import Mapping
from typing import Any

from segattn.errors import SegmentError
from segattn.serving.backends import DEFAULT_ON_GPU, Mode, mode_of
from segattn.serving.checkpoint import recorded_segmenter
from segattn.serving.errors import ServingError
from segattn.serving.hooked import check_hooks, check_version, installed_version
from segattn.serving.refusals import check_config, limits_of
from segattn.serving.settings import KEY, ServingSettings, entry_of, is_resolved
from segattn.serving.switch import is_required
from segattn.templates import Segmenter

__all__ = ["configure"]

_WORKERS = {
    "vllm.v1.worker.cpu_worker.CPUWorker": "segattn.serving.cpu_worker.SegmentCPUWorker",
    "vllm.v1.worker.gpu_worker.Worker": "segattn.serving.gpu_worker.SegmentGPUWorker",
}
_SCHEDULERS = {
    False: "segattn.serving.scheduler.SegmentScheduler",
    True: "segattn.serving.scheduler.AsyncSegmentScheduler",
}


def configure(vllm_config: Any) -> ServingSettings | None:
    """Set up a vLLM config for segments if its model or its user asks for them; otherwise leave it alone.

    Args:
        vllm_config: vLLM's VllmConfig, after vLLM's own platform has seen it. Changed in place.

    Returns:
        The settings; None for an ordinary model.

    Raises:
        SegmentError: the segmentation is malformed.
        ServingError: this setup cannot honour segments.
    """
    model = vllm_config.model_config
    if model is None:
        return None
    entry = entry_of(vllm_config)
    recorded = getattr(model.hf_config, KEY, None)
    if entry is None and recorded is None and not is_required():
        return None
    base, adapters, folders = _segmenters(vllm_config, recorded)
    check_version(installed_version())
    check_hooks()
    check_config(vllm_config)
    mode = _choose_mode(vllm_config, entry or {})
    settings = ServingSettings(base, limits_of(vllm_config), mode.per_request, adapters, folders)
    _install(vllm_config, settings)
    _tell(vllm_config, settings)
    return settings


def _segmenters(
    vllm_config: Any, recorded: Any
) -> tuple[Segmenter | None, Mapping[str, Segmenter | None], Mapping[str, str]]:
    """The base model's segmenter, those of the adapters, and the folders that adapters were read from."""
    entry, model = entry_of(vllm_config) or {}, vllm_config.model_config
    if is_resolved(entry):  # vLLM makes some configs twice
        before = ServingSettings.from_config(vllm_config)
        return before.base, before.adapters, before.folders
    unknown = set(entry) - {"base", "adapters", "per_request"}
    if unknown:
        raise SegmentError(
            f'--additional-config has "{KEY}" with {sorted(unknown)}; expected "base" (a folder, a hub id or what a '
            'checkpoint records) and "adapters" (an object of such by adapter name)'
        )
    base = _one(entry["base"], model) if "base" in entry else recorded_segmenter(model.model, recorded, **_hub(model))
    named = entry.get("adapters") or {}
    adapters = {name: _one(value, model) for name, value in named.items()}
    if base is None and not any(adapters.values()):
        raise ServingError(
            f"{model.model} records no segmentation, so it was tuned causally and would be badly wrong under segments. "
            "Serve a checkpoint that was tuned with segments, name its adapter (segattn serve ADAPTER), or serve "
            "causally: segattn serve --attention causal, or SEGATTN_VLLM=0"
        )
    return base, adapters, {n: value for n, value in named.items() if isinstance(value, str) and value != "causal"}


def _one(value: Any, model: Any) -> Segmenter | None:
    """A segmenter from a folder, a hub id or a recorded entry; None for what is to run causally."""
    if value is None or value == "causal":
        return None
    if isinstance(value, dict):
        return recorded_segmenter(model.model, value)
    found = recorded_segmenter(str(value))
    if found is None:
        raise ServingError(
            f'{value} records no segmentation; expected a checkpoint that was tuned with segments, or "causal" for one '
            "that was not"
        )
    return found


def _hub(model: Any) -> dict[str, Any]:
    return {} if model.revision is None else {"revision": model.revision}


def _choose_mode(vllm_config: Any, entry: dict[str, Any]) -> Mode:
    """How the attention backend is told which chunks are segments; on a GPU, the backend too if none was named."""
    attention = vllm_config.attention_config
    if vllm_config.device_config.device_type == "cpu":
        mode = mode_of("CPU_ATTN")
    else:
        from vllm.platforms import current_platform
        from vllm.v1.attention.backends.registry import AttentionBackendEnum

        if attention.backend is None:
            attention.backend = AttentionBackendEnum[DEFAULT_ON_GPU]
        capability = current_platform.get_device_capability()
        mode = mode_of(
            attention.backend.name,
            flash_attn_version=attention.flash_attn_version,
            capability=None if capability is None else (capability.major, capability.minor),
        )
    if entry.get("per_request") is False:  # for tests of the other mode, and if a kernel should turn out wrong
        return Mode(False, "set by the user")
    return mode


def _install(vllm_config: Any, settings: ServingSettings) -> None:
    scheduler, parallel = vllm_config.scheduler_config, vllm_config.parallel_config
    ours = _SCHEDULERS[bool(scheduler.async_scheduling)]
    if scheduler.scheduler_cls not in (None, *_SCHEDULERS.values()):
        raise ServingError(
            f"--scheduler-cls is {scheduler.scheduler_cls}; segments need a scheduler of their own. Leave it out"
        )
    if parallel.worker_cls not in (*_WORKERS, *_WORKERS.values()):
        raise ServingError(
            f"the worker is {parallel.worker_cls}; segments have workers for {', '.join(_WORKERS)}. Leave --worker-cls "
            "out, or run on a CPU or an NVIDIA GPU"
        )
    scheduler.scheduler_cls = ours
    parallel.worker_cls = _WORKERS.get(parallel.worker_cls, parallel.worker_cls)
    vllm_config.attention_config.use_non_causal = True
    vllm_config.additional_config = {**vllm_config.additional_config, KEY: settings.to_dict()}


def _tell(vllm_config: Any, settings: ServingSettings) -> None:
    """Say what is too long before a client meets it."""
    from vllm.logger import init_logger

    limits, longest = settings.limits, vllm_config.model_config.max_model_len
    text = f"Segments are on; a segment may have up to {limits.longest_segment} tokens"
    if limits.longest_segment < longest:
        text += (
            f", longer ones are refused. For segments of up to --max-model-len {longest}, set --max-num-batched-tokens "
            f"{longest + limits.max_num_seqs - 1}, or fewer --max-num-seqs than {limits.max_num_seqs}"
        )
    init_logger("vllm.segattn").info(text)
