"""What serving raises besides the errors of the whole package."""

from segattn.errors import SegmentAttentionError, UnsupportedModelError

__all__ = ["CutSegmentError", "ServingError"]


class ServingError(UnsupportedModelError):
    """A setup (versions, flags, checkpoint) in which vLLM cannot honour segments."""


class CutSegmentError(SegmentAttentionError, RuntimeError):
    """A step of the engine that would compute a part of a segment: its tokens would not see the rest."""
