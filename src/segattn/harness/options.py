"""Options of the harness's `hf` model under which segments would be lost, or that nobody has run with segments."""

import difflib
import os
from collections.abc import Collection, Mapping
from typing import Any

from segattn.errors import UnsupportedModelError

__all__ = ["refuse_options", "refuse_unknown"]

_SPREAD = "models that are spread over devices are not verified in the harness"
_QUANTISED = "it loads another class of model, which is not verified"

# Option -> the values that go with segments, and why no other does.
_ACCEPTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "backend": (("default", "causal"), "an encoder-decoder model has no prompt in its decoder"),
    "truncation": ((False, None), "the tokenizer would cut the end of a prompt, and with it the header of the answer"),
    "parallelize": ((False, None), _SPREAD),
    "device_map": ((None,), _SPREAD),
    "tp_plan": ((None,), _SPREAD),
    "delta": ((None,), "delta weights do not say which segmentation they were tuned with"),
    "autogptq": ((False, None), _QUANTISED),
    "gptqmodel": ((False, None), _QUANTISED),
    "gguf_file": ((None,), "a GGUF file records no segmentation; save the model with save_pretrained first"),
}


def refuse_unknown(options: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse options that the harness would ignore: those that it hands on to a loading that does not happen.

    Args:
        options: what the model was called with, by name, where `pretrained` is a loaded model.
        known: the names that have a meaning.

    Raises:
        UnsupportedModelError: names the option, and the one that was perhaps meant.
    """
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "what loads a model has no effect on one that is loaded"
            raise UnsupportedModelError(f"there is no argument {name}; {hint}")


def refuse_options(options: Mapping[str, Any]) -> None:
    """Refuse what does not go with segments.

    Args:
        options: what the model was called with (`--model_args`), by name.

    Raises:
        UnsupportedModelError: names the option, its value and the reason.
    """
    for name, (accepted, why) in _ACCEPTED.items():
        if name in options and options[name] not in accepted:
            expected = f"expected {accepted[0]}" if accepted[0] is not None else "leave it out"
            raise UnsupportedModelError(
                f"{name}={options[name]} does not go with attention=segments, for {why}; {expected}, or run with "
                "attention=causal"
            )
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise UnsupportedModelError(
            f"the harness was started in {processes} processes; attention=segments is verified in one. Start it "
            "without `accelerate launch`, e.g. once per device, each with other tasks"
        )
