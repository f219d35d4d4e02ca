"""What the harness is asked to load, and what that records of its segmentation, before anything is loaded."""

from pathlib import Path
from typing import Any

from segattn.errors import SegmentError
from segattn.modeling.checkpoint import adapter_base
from segattn.modeling.enable import is_enabled, segmenter_of
from segattn.modeling.segmentation_entry import CONFIG_KEY, checkpoint_file, entry_of, read_segmentation

__all__ = ["name_of", "recorded_entry", "split_adapter"]

# Of this package, and not of a hub.
_SHORT_NAMES = ("smollm2", "smollm2-segments")


def split_adapter(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with an adapter that was given as `pretrained` split into its base model and the adapter.

    Args:
        options: of `HFLM`, with `pretrained`; "smollm2" and "smollm2-segments" are fetched.

    Raises:
        SegmentError: `peft` is no adapter, or an adapter names no base model.
        FetchError: see `segattn.pretrained.resolve_model`.
    """
    pretrained, peft, hub = options["pretrained"], options.get("peft"), _hub(options)
    if peft is not None and checkpoint_file(peft, "adapter_config.json", **hub) is None:
        raise SegmentError(
            f"peft={peft} has no adapter_config.json that can be read; expected the folder of a PEFT adapter, or a hub "
            "id that can be reached"
        )
    if not isinstance(pretrained, str):
        return options
    if pretrained in _SHORT_NAMES:
        from segattn.pretrained import resolve_model

        pretrained = resolve_model(pretrained)
    base = None if peft is not None else adapter_base(pretrained, **hub)
    if base is None:
        return {**options, "pretrained": pretrained}
    split = {**options, "pretrained": base, "peft": pretrained}
    if options.get("tokenizer") is None and checkpoint_file(pretrained, "tokenizer_config.json", **hub) is not None:
        split["tokenizer"] = pretrained
    return split


def recorded_entry(options: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a model, or its adapter where it has one, records of its segmentation; None if it records nothing.

    Raises:
        SegmentError: a malformed entry.
    """
    pretrained = options["pretrained"]
    if not isinstance(pretrained, str):
        in_config = getattr(pretrained.config, CONFIG_KEY, None)
        if is_enabled(pretrained):  # an active adapter may have a segmenter of its own
            in_config = {**(in_config or {}), "segmenter": entry_of(segmenter_of(pretrained))["segmenter"]}
        return None if in_config is None else {"layers": None, **in_config}
    if options.get("peft") is not None:
        return read_segmentation(options["peft"], **_hub(options))
    subfolder = options.get("subfolder") or ""
    if Path(pretrained).is_dir():
        return read_segmentation(Path(pretrained) / subfolder)
    return read_segmentation(pretrained, **_hub(options), **({"subfolder": subfolder} if subfolder else {}))


def name_of(options: dict[str, Any]) -> str:
    """What to call the model in messages."""
    pretrained = options["pretrained"]
    if not isinstance(pretrained, str):
        return type(pretrained).__name__
    return str(options.get("peft") or pretrained)


def _hub(options: dict[str, Any]) -> dict[str, Any]:
    return {"revision": str(options.get("revision") or "main")}
