"""Which chunks may share a step, where the attention backend takes one causal flag for the whole step."""

from segattn.serving.chunks import chunk_length, is_causal
from segattn.serving.spans import Spans

__all__ = ["StepPlan"]


class StepPlan:
    """Decides the length of each chunk of one step, in the order in which the scheduler asks.

    A request that waits for its first step and cannot be taken closes the step for later ones, which else would take
    its room again and again; running requests come before them and are not closed out.

    Args:
        per_request: each chunk may be of its own kind. Otherwise the first chunk of several tokens decides: only
            segments, or only causal chunks. A chunk of one token fits either kind.
    """

    def __init__(self, per_request: bool) -> None:
        self._per_request = per_request
        self._causal: bool | None = None
        self._closed = False

    def length(self, spans: Spans, start: int, wanted: int, *, waiting: bool, prefill: bool = True) -> int:
        """Return how many tokens of a request this step computes, 0 to leave it for a later step.

        Args:
            spans: the request's segments.
            start: tokens that are computed already.
            wanted: tokens that the step has room for.
            waiting: it is not running yet.
            prefill: it has more than its newest token to compute.
        """
        if waiting and self._closed:
            return 0
        tokens = chunk_length(spans, start, wanted) if wanted > 0 else wanted
        if tokens > 1 and prefill and not self._fits(is_causal(spans, start, start + tokens)):
            tokens = 0
        if tokens <= 0 and waiting:
            self._closed = True
        return tokens

    def _fits(self, causal: bool) -> bool:
        if self._per_request:
            return True
        if self._causal is None:
            self._causal = causal
        return self._causal == causal
