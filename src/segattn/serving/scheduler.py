"""vLLM's schedulers with segments: no chunk ends inside a segment, and cached blocks are keyed by segments."""

from typing import TYPE_CHECKING, Any

from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from segattn.serving.adapters import Adapters
from segattn.serving.block_hashes import segment_block_hasher
from segattn.serving.errors import ServingError
from segattn.serving.settings import ServingSettings
from segattn.serving.spans import Spans
from segattn.serving.step_kinds import StepPlan

__all__ = ["AsyncSegmentScheduler", "SegmentScheduler"]

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler as _Base
else:
    _Base = object


class _Segments(_Base):
    """What both schedulers add to vLLM's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = ServingSettings.from_config(self.vllm_config)
        self._adapters = Adapters(self._settings)
        self._plan = self._new_plan()
        size = kwargs.get("hash_block_size") or self.block_size
        algorithm = self.vllm_config.cache_config.prefix_caching_hash_algo
        self._hasher = segment_block_hasher(size, get_hash_fn_by_name(algorithm), self._spans)

    def _spans(self, request: Request) -> Spans:
        """The segments of a request, derived once and kept with it."""
        spans: Spans | None = getattr(request, "segment_spans", None)
        if spans is None:
            parameters = request.sampling_params
            if request.prompt_token_ids is None or parameters is None or request.resumable:
                raise ServingError(
                    f"request {request.request_id} has no prompt of token ids, or streams its input; expected the "
                    "platform of segattn to have refused it. Is it active in the process that receives requests?"
                )
            spans = self._adapters.spans(request.prompt_token_ids, parameters.extra_args, request.lora_request)
            problem = self._settings.limits.problem(spans)
            if problem is not None:
                raise ServingError(f"request {request.request_id} would wait for ever: {problem}")
            request.segment_spans = spans
        return spans

    def add_request(self, request: Request) -> None:
        """Key the request's blocks by its segments before vLLM looks for them in its cache."""
        self._spans(request)
        if request._block_hasher is not None:
            request._block_hasher = self._hasher
            request.block_hashes.clear()
            request.update_block_hashes()
        super().add_request(request)

    def _new_plan(self) -> StepPlan:
        return StepPlan(self._settings.per_request, self._settings.limits.max_num_seqs, len(self.running))

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """Schedule one step."""
        self._plan = self._new_plan()
        return super().schedule(throttle_prefills)

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """Shorten a chunk, or put it off: the last that vLLM does to a chunk's length, for running and new requests."""
        tokens = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        return self._plan.length(
            self._spans(request), num_computed_tokens, tokens, waiting=request.status != RequestStatus.RUNNING
        )


class SegmentScheduler(_Segments, Scheduler):
    """vLLM's scheduler with segments."""


class AsyncSegmentScheduler(_Segments, AsyncScheduler):
    """vLLM's scheduler for steps that are planned before the last one has ended, with segments."""
