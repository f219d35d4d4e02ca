"""The model `segattn` of EleutherAI's lm-evaluation-harness. Importing this registers it."""

from segattn.harness.model import SegmentLM

__all__ = ["SegmentLM"]
