"""How many tokens each request gets in a step, so that the attention kernels can compute the step."""

from segattn.serving.chunks import next_chunk
from segattn.serving.spans import Spans

__all__ = ["StepPlan"]


class StepPlan:
    """Decides the length of each chunk of one step, in the order in which the scheduler asks.

    A request that waits for its first step and cannot be taken closes the step for later ones, which else would take
    its room again and again; running requests come before them and are not closed out.

    Args:
        per_request: the kernels take a causal flag for each row, so that a chunk may hold several pieces, a row each.
            Otherwise each chunk is one piece, and the first of several tokens decides: only segments, or only causal
            ones. A chunk of one token fits either kind.
        most_rows: rows of a step, at least the number of requests; vLLM sizes its buffers for that many requests.
        running: requests that run already. Each of them is sure of a row.
    """

    def __init__(self, per_request: bool, most_rows: int, running: int) -> None:
        self._per_request = per_request
        self._spare_rows = max(most_rows - running, 0)
        self._causal: bool | None = None
        self._closed = False

    def length(self, spans: Spans, start: int, wanted: int, *, waiting: bool) -> int:
        """Return how many tokens of a request this step computes, 0 to leave it for a later step.

        Args:
            spans: the request's segments.
            start: tokens that are computed already.
            wanted: tokens that the step has room for.
            waiting: it is not running yet.
        """
        if waiting and self._closed:
            return 0
        own = 0 if waiting else 1
        chunk = next_chunk(spans, start, wanted, own + self._spare_rows if self._per_request else 1)
        tokens = chunk[-1].end - start if chunk else min(wanted, 0)
        if tokens > 1 and not self._fits(chunk[0].causal):
            tokens = 0
        if tokens > 0:
            self._spare_rows -= len(chunk) - own
        elif waiting:
            self._closed = True
        return tokens

    def _fits(self, causal: bool) -> bool:
        if self._per_request:
            return True
        if self._causal is None:
            self._causal = causal
        return self._causal == causal
