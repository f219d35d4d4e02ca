"""The longest segment that a configuration can always schedule, and what to set for a longer one."""

from dataclasses import dataclass

from segattn.serving.spans import Spans

__all__ = ["StepLimits"]


@dataclass(frozen=True)
class StepLimits:
    """How many tokens of one request fit into a step, in the worst case.

    A segment is computed in one step. The other running requests may take a token each before its turn comes.
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    long_prefill_token_threshold: int = 0

    @property
    def longest_segment(self) -> int:
        """The most tokens that a segment may have; a longer one might wait for ever."""
        room = self.max_num_batched_tokens - (self.max_num_seqs - 1)
        return min(room, self.long_prefill_token_threshold) if self.long_prefill_token_threshold > 0 else room

    def problem(self, spans: Spans) -> str | None:
        """Return why these segments cannot be served, None if they can."""
        start, end = max(spans, key=lambda span: span[1] - span[0], default=(0, 0))
        length = end - start
        if length <= self.longest_segment:
            return None
        flags = [f"--max-num-batched-tokens {length + self.max_num_seqs - 1}"]
        if 0 < self.long_prefill_token_threshold < length:
            flags.append(f"--long-prefill-token-threshold {length}")
        return (
            f"tokens {start} to {end} of the prompt are one segment of {length} tokens; this server computes segments "
            f"of up to {self.longest_segment} tokens in one step (--max-num-batched-tokens "
            f"{self.max_num_batched_tokens}, --max-num-seqs {self.max_num_seqs}). Shorten the message, or start the "
            f"server with {' and '.join(flags)} (or fewer --max-num-seqs)"
        )
