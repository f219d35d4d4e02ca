"""What segattn raises: every error names what was given, what was expected and what to do next."""

__all__ = [
    "LabelLeakError",
    "SegmentAttentionError",
    "SegmentError",
    "TemplateError",
    "UnsupportedModelError",
]


class SegmentAttentionError(Exception):
    """The base of all errors of this package."""


class SegmentError(SegmentAttentionError, ValueError):
    """Segment ids (or a segmentation) that are missing or of wrong shape, type or order."""


class TemplateError(SegmentAttentionError, ValueError):
    """A chat template whose message boundaries cannot be read from token ids."""


class UnsupportedModelError(SegmentAttentionError, ValueError):
    """A model family, attention backend or option that cannot honour segments."""


class LabelLeakError(SegmentAttentionError, ValueError):
    """A label on a token that its predecessor can already see."""
