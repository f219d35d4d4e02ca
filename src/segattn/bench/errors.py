"""What this room raises."""

from segattn.errors import SegmentAttentionError

__all__ = ["BenchError"]


class BenchError(SegmentAttentionError, ValueError):
    """A measurement that cannot be made as asked, or a contestant whose result is wrong."""
