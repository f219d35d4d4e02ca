"""Check a request before it enters the engine: the engine itself cannot refuse one without hanging its client."""

from typing import Any

from segattn.errors import SegmentError
from segattn.serving.adapters import Adapters
from segattn.serving.settings import ServingSettings
from segattn.serving.spans import OVERRIDE

__all__ = ["RequestChecker"]


class RequestChecker:
    """Checks requests against the settings of a server, and writes their segments into them.

    Scheduler and model runner then find the spans in the request, whatever happens to an adapter's folder meanwhile.
    """

    def __init__(self, settings: ServingSettings) -> None:
        self._limits = settings.limits
        self._adapters = Adapters(settings)

    def settle(self, request: Any) -> None:
        """Refuse what cannot be served; give what can be its spans, in its `extra_args`.

        Args:
            request: vLLM's EngineCoreRequest. Its sampling parameters are its own copy.

        Raises:
            SegmentError: says what to change.
            ServingError: the segmentation of the request's adapter cannot be served.
        """
        parameters = request.sampling_params
        if parameters is None:
            raise SegmentError("this server generates text; pooling and embeddings are not served with segments")
        ids = request.prompt_token_ids
        if ids is None or request.prompt_embeds is not None or request.mm_features:
            raise SegmentError(
                "the prompt holds more than text; segments are found in token ids, so only text and token ids can be "
                "served (no embeddings, images, audio or encoder inputs)"
            )
        if request.resumable:
            raise SegmentError("the prompt is streamed in; a segment sees all of itself, so prompts must be sent whole")
        extra_args = parameters.extra_args
        spans = self._adapters.spans(ids, extra_args, request.lora_request)
        problem = self._limits.problem(spans)
        if problem is not None:
            raise SegmentError(problem)
        parameters.extra_args = {**(extra_args or {}), OVERRIDE: [bound for span in spans for bound in span]}
