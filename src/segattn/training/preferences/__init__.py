"""Preference training under segments, through TRL: DPO."""

from segattn.training.preferences.collator import SegmentPreferenceCollator
from segattn.training.preferences.dpo import SegmentDPOTrainer

__all__ = ["SegmentDPOTrainer", "SegmentPreferenceCollator"]
