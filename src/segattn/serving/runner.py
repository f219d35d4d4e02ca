"""vLLM's model runner with segments: says for each piece of a step's chunks whether it attends causally."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from segattn.serving.adapters import Adapters
from segattn.serving.attention_rows import Rows, rows_of, with_rows
from segattn.serving.backends import BACKENDS
from segattn.serving.chunks import pieces, step_is_causal
from segattn.serving.errors import ServingError
from segattn.serving.settings import ServingSettings
from segattn.serving.spans import Spans

__all__ = ["SegmentRunner"]

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as _Base
else:
    _Base = object

Step = Rows | bool | None


class SegmentRunner(_Base):
    """Mixed into a model runner of vLLM, before it.

    vLLM builds a step's metadata in one long method, with a row for each request and True for the causal flag. So what
    the step really is is kept here while that method runs, and each backend's metadata builder (an object of this
    runner) is given a `build` that reads it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = ServingSettings.from_config(self.vllm_config)
        self._adapters = Adapters(self._settings)
        self._step: Step = None

    def initialize_metadata_builders(self, kv_cache_config: Any, kernel_block_sizes: list[int]) -> None:
        """Let vLLM make its metadata builders, then have them read this runner's steps."""
        super().initialize_metadata_builders(kv_cache_config, kernel_block_sizes)
        for group in (group for groups in self.attn_groups for group in groups):
            name = group.backend.get_name()
            if name not in BACKENDS:
                raise ServingError(
                    f"vLLM chose the attention backend {name} for {len(group.layer_names)} layers; expected one of "
                    f"{', '.join(BACKENDS)}, which compute segments. Name one with --attention-backend"
                )
            for builder in group.metadata_builders:
                builder.build = _reading(builder.build, lambda: self._step)
                # Or vLLM puts another block table, with a row for each request, into metadata that was built.
                builder.supports_update_block_table = False

    def add_lora(self, lora_request: Any) -> bool:
        """Load an adapter as vLLM does, unless its segmentation cannot be served: then loading it is what fails."""
        self._adapters.segmenter_of(lora_request)
        return bool(super().add_lora(lora_request))

    def _build_attention_metadata(self, *args: Any, **kwargs: Any) -> Any:
        scheduled = kwargs.get("num_scheduled_tokens")
        self._step = None if scheduled is None else self._rows_or_flag(scheduled, kwargs)
        try:
            return super()._build_attention_metadata(*args, **kwargs)
        finally:
            self._step = None

    def _rows_or_flag(self, scheduled: dict[str, int], sizes: dict[str, Any]) -> Step:
        """The rows of a step, or its flag where the backend takes one; None where vLLM's causal rows are right."""
        batch = self.input_batch
        chunks = []
        for index in range(sizes["num_reqs"]):
            name = batch.req_ids[index]
            start = int(batch.num_computed_tokens_cpu[index])
            chunks.append(pieces(self._spans(self.requests[name]), start, start + scheduled[name]))
        if all(piece.causal for chunk in chunks for piece in chunk):
            return None
        if not self._settings.per_request:
            return step_is_causal(chunks)
        return rows_of(chunks, sizes.get("num_reqs_padded") or sizes["num_reqs"])

    def _spans(self, state: Any) -> Spans:
        """The segments of a request, derived once and kept with its state."""
        spans: Spans | None = getattr(state, "segment_spans", None)
        if spans is None:
            extra_args = state.sampling_params.extra_args
            spans = self._adapters.spans(state.prompt_token_ids, extra_args, state.lora_request)
            state.segment_spans = spans
        return spans


def _reading(build: Callable[..., Any], current: Callable[[], Step]) -> Callable[..., Any]:
    """A metadata builder's `build` that takes the rows or the flag of the step in place of vLLM's."""

    def reading(common_prefix_len: int, common_attn_metadata: Any, *args: Any, **kwargs: Any) -> Any:
        step = current()
        if isinstance(step, Rows):
            common_attn_metadata = with_rows(common_attn_metadata, step)
        elif step is not None:
            common_attn_metadata = common_attn_metadata.replace(causal=step)
        return build(common_prefix_len, common_attn_metadata, *args, **kwargs)

    return reading
