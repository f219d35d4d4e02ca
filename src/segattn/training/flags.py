"""Which settings of a run differ from the defaults, and the command that gives them again."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import Any

from segattn.training.settings import ModelSettings, SFTSettings, TrainSettings

__all__ = ["changed_flags", "train_command"]

# How a run is shown, taken up again or paid for; not what it computes. A token is nobody's business.
_NOT_OF_THE_RUN = ("disable_tqdm", "resume_from_checkpoint", "local_rank", "hub_token", "push_to_hub_token")


def changed_flags(settings: Any, sft: Any, model: Any) -> dict[str, Any]:
    """Return the flags of `segattn train` whose values differ from its defaults.

    Args:
        settings: a TrainSettings.
        sft: an SFTSettings, or TRL's own SFTConfig, as it was given: a run changes it.
        model: a ModelSettings, or TRL's own ModelConfig.

    Returns:
        Name -> value as JSON types, in the order of the fields; None where a default was switched off.
    """
    # Some defaults follow from the output folder.
    defaults: tuple[Any, ...] = (TrainSettings(), SFTSettings(output_dir=sft.output_dir), ModelSettings())
    plugin = getattr(sft, "deepspeed_plugin", None)
    if plugin is not None:
        plugin.set_deepspeed_weakref()  # the defaults took its place; ZeRO 3 shares out weights by it when they load
    flags: dict[str, Any] = {}
    for given, default in zip((settings, sft, model), defaults, strict=True):
        for field in fields(default):
            value = getattr(given, field.name, None)
            if field.init and field.name not in _NOT_OF_THE_RUN and value != getattr(default, field.name):
                flags[field.name] = _plain(value)
    if sft.output_dir != SFTSettings.output_dir:
        flags["output_dir"] = sft.output_dir
    return flags


def train_command(flags: Mapping[str, Any]) -> str | None:
    """Return the command line that gives these flags, None where the command line cannot: a default switched off.

    Args:
        flags: what `changed_flags` returns.
    """
    words = ["segattn", "train"]
    for name, value in flags.items():
        if value is None:
            return None
        words += [f"--{name}", *_words(value)]
    return shlex.join(words)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _words(value: Any) -> list[str]:
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, list):
        return [word for one in value for word in _words(one)]
    return [json.dumps(value) if isinstance(value, dict) else str(value)]
