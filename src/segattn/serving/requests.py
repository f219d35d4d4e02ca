"""Check a request before it enters the engine: the engine itself cannot refuse one without hanging its client."""

from collections.abc import Mapping
from typing import Any

from segattn.errors import SegmentError
from segattn.serving.settings import ServingSettings
from segattn.serving.spans import OVERRIDE, spans_of

__all__ = ["RequestChecker"]


class RequestChecker:
    """Checks requests against the settings of a server."""

    def __init__(self, settings: ServingSettings) -> None:
        self._settings = settings
        # Which adapter a request names is not known here: it must be servable by each.
        self._segmenters = list({id(segmenter): segmenter for segmenter in settings.segmenters()}.values())

    def check(self, engine_input: Mapping[str, Any], params: Any) -> None:
        """Refuse what cannot be served.

        Args:
            engine_input: of vLLM's front end: `type`, `prompt_token_ids`, ...
            params: SamplingParams or PoolingParams.

        Raises:
            SegmentError: says what to change.
        """
        kind = engine_input.get("type")
        if kind != "token":
            raise SegmentError(
                f"the prompt is of the kind {kind!r}; segments are found in token ids, so only text and token ids can "
                "be served (no embeddings, images, audio or encoder inputs)"
            )
        if not hasattr(params, "extra_args") or not hasattr(params, "temperature"):
            raise SegmentError("this server generates text; pooling and embeddings are not served with segments")
        ids = engine_input["prompt_token_ids"]
        extra_args = params.extra_args
        if (extra_args or {}).get(OVERRIDE) == "segments" and any(self._segmenters):
            extra_args = {name: value for name, value in extra_args.items() if name != OVERRIDE}
        for segmenter in self._segmenters:
            problem = self._settings.limits.problem(spans_of(ids, extra_args, segmenter))
            if problem is not None:
                raise SegmentError(problem)
