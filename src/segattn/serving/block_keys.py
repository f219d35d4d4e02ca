"""What else than tokens makes two cached blocks the same: the segments that they overlap, whole.

The keys and values inside a segment depend on all of it, so two user messages with a common beginning must not share
the blocks of that beginning. A block's key names every segment that it overlaps by its place and a digest of all its
tokens. vLLM chains the hashes, so a block also depends on the segments of all blocks before it; causal text has no key
and is shared as vLLM shares it.
"""

import hashlib
from array import array
from collections.abc import Sequence

from segattn.serving.spans import Spans

__all__ = ["SegmentKey", "keys_in_block", "segment_keys"]

SegmentKey = tuple[str, int, int, bytes]


def segment_keys(token_ids: Sequence[int], spans: Spans) -> tuple[SegmentKey, ...]:
    """Return one key per segment, of JSON-like types, which each of vLLM's hash functions takes."""
    return tuple(
        ("segment", start, end, hashlib.sha256(array("q", token_ids[start:end]).tobytes()).digest())
        for start, end in spans
    )


def keys_in_block(keys: Sequence[SegmentKey], start: int, end: int) -> tuple[SegmentKey, ...]:
    """Return the keys of the segments that overlap the tokens `start` to `end` (exclusive)."""
    return tuple(key for key in keys if key[1] < end and key[2] > start)
