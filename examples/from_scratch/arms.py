"""The arms of the comparison: how a model is trained, and what is one segment for it."""

from dataclasses import dataclass

__all__ = ["ARMS", "Arm"]


@dataclass(frozen=True)
class Arm:
    """How a model is trained.

    Attributes:
        policy: of the segmenter: "causal", "turns" (table and question are segments of their own) or "prefix" (both
            are one segment).
        opening: over which share of the steps the segments open; 0 for the plain rule from the first step on.
    """

    policy: str
    opening: float = 0.0


ARMS = {
    "causal": Arm("causal"),
    "segments": Arm("turns"),
    "segments, opened gradually": Arm("turns", opening=0.5),
    "prefix": Arm("prefix"),
}
