"""vLLM's model runner with segments: says for each chunk of a step whether it attends causally."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from segattn.serving.adapters import Adapters
from segattn.serving.backends import BACKENDS
from segattn.serving.chunks import is_causal, step_is_causal
from segattn.serving.errors import ServingError
from segattn.serving.settings import ServingSettings
from segattn.serving.spans import Spans

__all__ = ["SegmentRunner"]

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as _Base
else:
    _Base = object

Flags = torch.Tensor | bool | None


class SegmentRunner(_Base):
    """Mixed into a model runner of vLLM, before it.

    vLLM builds a step's metadata in one long method whose causal flag is the constant True. So the flags of the step
    are kept here while that method runs, and each backend's metadata builder (an object of this runner) is given a
    `build` that reads them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = ServingSettings.from_config(self.vllm_config)
        self._adapters = Adapters(self._settings)
        self._flags: Flags = None

    def initialize_metadata_builders(self, kv_cache_config: Any, kernel_block_sizes: list[int]) -> None:
        """Let vLLM make its metadata builders, then have them read this runner's flags."""
        super().initialize_metadata_builders(kv_cache_config, kernel_block_sizes)
        for group in (group for groups in self.attn_groups for group in groups):
            name = group.backend.get_name()
            if name not in BACKENDS:
                raise ServingError(
                    f"vLLM chose the attention backend {name} for {len(group.layer_names)} layers; expected one of "
                    f"{', '.join(BACKENDS)}, which compute segments. Name one with --attention-backend"
                )
            for builder in group.metadata_builders:
                builder.build = _reading_flags(builder.build, lambda: self._flags)

    def add_lora(self, lora_request: Any) -> bool:
        """Load an adapter as vLLM does, unless its segmentation cannot be served: then loading it is what fails."""
        self._adapters.segmenter_of(lora_request)
        return bool(super().add_lora(lora_request))

    def _build_attention_metadata(self, *args: Any, **kwargs: Any) -> Any:
        scheduled = kwargs.get("num_scheduled_tokens")
        self._flags = None if scheduled is None else self._flags_of_step(scheduled, kwargs)
        try:
            return super()._build_attention_metadata(*args, **kwargs)
        finally:
            self._flags = None

    def _flags_of_step(self, scheduled: dict[str, int], sizes: dict[str, Any]) -> Flags:
        """What to put in place of vLLM's `causal=True`, None where that is right (steps without segments)."""
        batch = self.input_batch
        chunks = []
        for index in range(sizes["num_reqs"]):
            name = batch.req_ids[index]
            start, tokens = int(batch.num_computed_tokens_cpu[index]), scheduled[name]
            chunks.append((is_causal(self._spans(self.requests[name]), start, start + tokens), tokens))
        if all(causal or tokens == 1 for causal, tokens in chunks):
            return None
        if not self._settings.per_request:
            return step_is_causal(chunks)
        # int32, as the kernels want; padded requests have no queries.
        flags = torch.ones(sizes.get("num_reqs_padded") or sizes["num_reqs"], dtype=torch.int32)
        flags[: len(chunks)] = torch.tensor([causal for causal, _ in chunks], dtype=torch.int32)
        return flags.to(self.device, non_blocking=True)

    def _spans(self, state: Any) -> Spans:
        """The segments of a request, derived once and kept with its state."""
        spans: Spans | None = getattr(state, "segment_spans", None)
        if spans is None:
            extra_args = state.sampling_params.extra_args
            spans = self._adapters.spans(state.prompt_token_ids, extra_args, state.lora_request)
            state.segment_spans = spans
        return spans


def _reading_flags(build: Callable[..., Any], flags_of_step: Callable[[], Flags]) -> Callable[..., Any]:
    """A metadata builder's `build` that takes the step's flags in place of the constant."""

    def reading(common_prefix_len: int, common_attn_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        flags = flags_of_step()
        if flags is not None:
            common_attn_metadata = common_attn_metadata.replace(causal=flags)
        return build(common_prefix_len, common_attn_metadata, *args, **kwargs)

    return reading
