"""Fine-tune a model under segments or causally, through TRL."""

from typing import TYPE_CHECKING, Any

from segattn.training.collator import SegmentCollator
from segattn.training.opening import OPENING_START, opening_bias
from segattn.training.run import CurvePoint, TrainResult, train
from segattn.training.settings import ModelSettings, SFTSettings, TrainSettings
from segattn.training.trainer import SegmentSFTTrainer

if TYPE_CHECKING:
    from segattn.training.preferences import SegmentDPOTrainer as SegmentDPOTrainer
    from segattn.training.preferences import SegmentGRPOTrainer as SegmentGRPOTrainer
    from segattn.training.preferences import SegmentRewardTrainer as SegmentRewardTrainer

# Imported when they are first used: `segattn train` needs none of TRL's other trainers, which take long to import.
_PREFERENCES = ("SegmentDPOTrainer", "SegmentGRPOTrainer", "SegmentRewardTrainer")

__all__ = [
    "OPENING_START",
    "CurvePoint",
    "ModelSettings",
    "SFTSettings",
    "SegmentCollator",
    "SegmentDPOTrainer",
    "SegmentGRPOTrainer",
    "SegmentRewardTrainer",
    "SegmentSFTTrainer",
    "TrainResult",
    "TrainSettings",
    "opening_bias",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import the trainers on preferences when they are first used."""
    if name not in _PREFERENCES:
        raise AttributeError(f"module 'segattn.training' has no attribute {name!r}")
    from segattn.training import preferences

    return getattr(preferences, name)
