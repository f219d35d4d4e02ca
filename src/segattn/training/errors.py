"""What ends a training run, or keeps one from going on."""

from segattn.errors import SegmentAttentionError

__all__ = ["CheckpointError", "DiskFullError", "NotFiniteError"]


class CheckpointError(SegmentAttentionError):
    """A checkpoint that cannot be gone on with: damaged, missing, or of a run with other settings."""


class DiskFullError(SegmentAttentionError, OSError):
    """A checkpoint or a model for which the file system has no room; what was saved before is still there."""


class NotFiniteError(SegmentAttentionError, ArithmeticError):
    """A loss or a gradient that is NaN or infinite; the weights are those of the step before."""

    exit_code = 1
