"""What a prefix cache has done."""

from dataclasses import dataclass, replace

__all__ = ["CacheStatistics"]


@dataclass(frozen=True)
class CacheStatistics:
    """What a prefix cache has done and holds.

    `requests` and `hits` count rows; a hit reused at least one token. `tokens_reused` and `tokens_computed` count the
    prompts' tokens without padding, and `hit_rate` is the share that was reused, 0 to 1. `bytes` of keys, values and
    token ids are held in `entries` pieces; `evictions` counts pieces that were let go for want of room.
    """

    requests: int = 0
    hits: int = 0
    tokens_reused: int = 0
    tokens_computed: int = 0
    bytes: int = 0
    entries: int = 0
    evictions: int = 0

    @property
    def hit_rate(self) -> float:
        """The share of the prompts' tokens that were reused."""
        return self.tokens_reused / max(self.tokens_reused + self.tokens_computed, 1)

    def plus(self, reused: list[int], lengths: list[int]) -> "CacheStatistics":
        """Return the counts after one more batch: per row, the tokens that were reused, and all of them."""
        return replace(
            self,
            requests=self.requests + len(lengths),
            hits=self.hits + sum(tokens > 0 for tokens in reused),
            tokens_reused=self.tokens_reused + sum(reused),
            tokens_computed=self.tokens_computed + sum(lengths) - sum(reused),
        )
