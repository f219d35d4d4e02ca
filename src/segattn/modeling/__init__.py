"""A Hugging Face model that follows segments: enable, disable, save and load."""

from segattn.modeling.checkpoint import from_pretrained, save_pretrained
from segattn.modeling.enable import causal, disable, enable, is_enabled, opening_of, probe, segmenter_of, set_opening

__all__ = [
    "causal",
    "disable",
    "enable",
    "from_pretrained",
    "is_enabled",
    "opening_of",
    "probe",
    "save_pretrained",
    "segmenter_of",
    "set_opening",
]
