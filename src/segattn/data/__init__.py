"""Chats as training and test data: samples, the formats they come in, and their tokens, labels and segments."""

from segattn.data.encoding import EncodedPrompt, EncodedSample, Encoder
from segattn.data.loading import Split, has_split, load_samples, load_training_samples
from segattn.data.padding import pad_rows
from segattn.data.samples import DataError, Message, Sample
from segattn.data.texts import SpanText, encode_text

__all__ = [
    "DataError",
    "EncodedPrompt",
    "EncodedSample",
    "Encoder",
    "Message",
    "Sample",
    "SpanText",
    "Split",
    "encode_text",
    "has_split",
    "load_samples",
    "load_training_samples",
    "pad_rows",
]
