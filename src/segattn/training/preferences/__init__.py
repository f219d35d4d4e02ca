"""Preference training under segments, through TRL: DPO, GRPO and reward models."""

from segattn.training.preferences.collator import SegmentPreferenceCollator
from segattn.training.preferences.dpo import SegmentDPOTrainer
from segattn.training.preferences.grpo import SegmentGRPOTrainer
from segattn.training.preferences.reward import SegmentRewardTrainer

__all__ = ["SegmentDPOTrainer", "SegmentGRPOTrainer", "SegmentPreferenceCollator", "SegmentRewardTrainer"]
