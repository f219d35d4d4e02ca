"""The rule as a computation: one function, several kernels that agree."""

from segattn.attention.backends import BACKENDS, segment_attention

__all__ = ["BACKENDS", "segment_attention"]
