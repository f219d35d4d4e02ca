"""Whether vLLM is to serve segments: the environment variable SEGATTN_VLLM.

- unset: where the model or the flags say so (`segment_attention` in config.json or in `--additional-config`); every
  other model is served as if segattn were not installed.
- 1: always; a model without segmentation is refused. `segattn serve` and `segattn.serving.llm` set it.
- 0: never.
"""

import os

from segattn.serving.errors import ServingError

__all__ = ["VARIABLE", "is_off", "is_required"]

VARIABLE = "SEGATTN_VLLM"


def is_off() -> bool:
    """Return whether segments are switched off."""
    return _value() == "0"


def is_required() -> bool:
    """Return whether a model without segmentation is to be refused."""
    return _value() == "1"


def _value() -> str:
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise ServingError(f"{VARIABLE} is {value!r}; expected 1 (segments), 0 (off) or unset (as the model says)")
    return value
