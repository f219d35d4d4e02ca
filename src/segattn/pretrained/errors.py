"""What this room raises."""

from segattn.errors import SegmentAttentionError

__all__ = ["FetchError"]


class FetchError(SegmentAttentionError, OSError):
    """A model that could not be brought, or files that are not what they should be."""
