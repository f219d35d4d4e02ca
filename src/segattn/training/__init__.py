"""Fine-tune a model under segments or causally, through TRL."""

from segattn.training.collator import SegmentCollator
from segattn.training.opening import OPENING_START, opening_bias
from segattn.training.preferences import SegmentDPOTrainer, SegmentPreferenceCollator
from segattn.training.run import CurvePoint, TrainResult, train
from segattn.training.settings import ModelSettings, SFTSettings, TrainSettings
from segattn.training.trainer import SegmentSFTTrainer

__all__ = [
    "OPENING_START",
    "CurvePoint",
    "ModelSettings",
    "SFTSettings",
    "SegmentCollator",
    "SegmentDPOTrainer",
    "SegmentPreferenceCollator",
    "SegmentSFTTrainer",
    "TrainResult",
    "TrainSettings",
    "opening_bias",
    "train",
]
