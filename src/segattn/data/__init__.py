"""Chats as training and test data: samples, the formats they come in, and their tokens, labels and segments."""

from segattn.data.encoding import EncodedPrompt, EncodedSample, Encoder
from segattn.data.loading import Split, has_split, load_samples
from segattn.data.padding import pad_rows
from segattn.data.samples import DataError, Message, Sample

__all__ = [
    "DataError",
    "EncodedPrompt",
    "EncodedSample",
    "Encoder",
    "Message",
    "Sample",
    "Split",
    "has_split",
    "load_samples",
    "pad_rows",
]
