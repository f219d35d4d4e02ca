"""Chat messages or token ids to segment ids: the Segmenter, and how it reads a chat template's markers."""

from segattn.templates.segmenter import Segmenter

__all__ = ["Segmenter"]
