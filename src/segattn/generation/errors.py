"""What a prefix cache raises."""

from segattn.errors import SegmentAttentionError

__all__ = ["PrefixCacheError"]


class PrefixCacheError(SegmentAttentionError, ValueError):
    """A prefix cache that is asked for what it cannot hold, or a file of one that does not fit the model."""
