"""What PEFT does to an enabled model: adapters that were saved with another segmentation, and virtual tokens.

An adapter is tuned under one segmentation and is badly wrong under another. So an adapter that is loaded into an
enabled model brings its own along, and the model follows the adapter that is active.
"""

import functools
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segattn.errors import SegmentError, UnsupportedModelError
from segattn.modeling.layer_choice import chosen_layers, layer_count
from segattn.modeling.segmentation_entry import CONFIG_KEY, SEGMENTATION_FILE, entry_of, read_segmentation

if TYPE_CHECKING:
    from segattn.modeling.state import SegmentState
    from segattn.templates import Segmenter

__all__ = [
    "Recorded",
    "active_adapters",
    "adapter_members",
    "agreed",
    "load_members",
    "refuse_virtual_tokens",
    "write_segmentation",
]


@dataclass(frozen=True)
class Recorded:
    """What a checkpoint of an adapter says of its segmentation.

    Attributes:
        found: whether it says anything; an adapter without an entry was tuned causally.
        segmenter: None where its segment ids were always given.
        layers: those that follow segments; None for all.
    """

    found: bool
    segmenter: "Segmenter | None"
    layers: tuple[int, ...] | None = None

    @property
    def entry(self) -> dict[str, Any]:
        """As checkpoints record it."""
        return entry_of(self.segmenter, self.layers)


def active_adapters(model: Any) -> set[str]:
    """Return the names of the adapters that shape the model's next pass, merged ones included."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is None:
        return set()
    # All adapted layers of a model have the same adapters active.
    layer: Any = next((module for module in model.modules() if isinstance(module, tuners.BaseTunerLayer)), None)
    if layer is None or layer.disable_adapters:
        return set()
    return {*layer.active_adapters, *layer.merged_adapters}


def agreed(records: dict[str, Recorded]) -> Recorded:
    """Return the one segmentation of some adapters.

    Raises:
        SegmentError: one was saved without a segmentation, or two with different ones.
    """
    overrule = "segattn.enable(model, segmenter) sets one segmentation for all adapters"
    for name, record in records.items():
        if not record.found:
            raise SegmentError(
                f"the adapter {name!r} is active and was saved without a segmentation: it was tuned causally. Run it "
                f"with `with segattn.causal(model): ...`, or activate another adapter; {overrule}"
            )
    (first, record), *others = records.items()
    for name, other in others:
        if other.entry != record.entry:
            raise SegmentError(
                f"the adapters {first!r} and {name!r} are both active and were saved with different segmentations; "
                f"activate one of them (model.set_adapter), or {overrule}"
            )
    return record


def refuse_virtual_tokens(state: "SegmentState") -> None:
    """Refuse a call that comes from a PEFT wrapper which puts virtual tokens before the model's own.

    `enable` refuses such a wrapper; this finds one that was put around an enabled model later. It leaves no trace in
    the model inside, so the callers are looked at.

    Raises:
        UnsupportedModelError: prefix tuning, prompt tuning or the like.
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "peft.peft_model":
            wrapper = frame.f_locals.get("self")
            config: Any = getattr(wrapper, "active_peft_config", None)
            if getattr(config, "is_prompt_learning", False) and _state_inside(wrapper) is state:
                raise UnsupportedModelError(
                    f"the PEFT adapter ({config.peft_type}) puts virtual tokens before the prompt, so segment ids "
                    "would not line up with the keys; use LoRA, DoRA or another method that adapts weights"
                )
        frame = frame.f_back


def _state_inside(wrapper: Any) -> Any:
    return vars(wrapper.get_base_model()).get("_segattn_state")


def load_members(cls: type[Any]) -> dict[str, Any]:
    """Return the methods of a class that bring in adapters, so that each one's segmentation is known."""
    return {"load_adapter": _load_adapter(cls)} if hasattr(cls, "load_adapter") else {}


def adapter_members(cls: type[Any]) -> dict[str, Any]:
    """Return the methods of a PEFT wrapper around an enabled model."""
    return {
        **load_members(cls),
        "save_pretrained": _save_pretrained(cls),
        "merge_and_unload": _merge_and_unload,
    }


def _inner(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _load_adapter(cls: type[Any]) -> Any:
    @functools.wraps(cls.load_adapter)
    def load_adapter(self: Any, *args: Any, **kwargs: Any) -> Any:
        from segattn.templates import Segmenter

        # PEFT calls it model_id, transformers peft_model_id; a state dict instead of a path comes from no checkpoint.
        path = next((kwargs[name] for name in ("model_id", "peft_model_id") if name in kwargs), *args[:1] or (None,))
        name = args[1] if len(args) > 1 else kwargs.get("adapter_name") or "default"
        hub = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "subfolder") if key in kwargs}
        entry = None if path is None else read_segmentation(os.fspath(path), **hub)
        result = cls.load_adapter(self, *args, **kwargs)
        inner = _inner(self)
        state: SegmentState | None = vars(inner).get("_segattn_state")
        if state is not None and path is not None:
            saved, layers = (None, None) if entry is None else (entry["segmenter"], entry["layers"])
            segmenter = None if saved is None else Segmenter.from_dict(saved)
            chosen = None if layers is None else chosen_layers(layers, layer_count(inner))
            state.adapters[name] = Recorded(entry is not None, segmenter, chosen)
        return result

    return load_adapter


def write_segmentation(model: Any, path: str | os.PathLike[str]) -> None:
    """Write an enabled model's segmentation beside each of its adapters that lies under `path`, atomically."""
    state: SegmentState = vars(_inner(model))["_segattn_state"]
    for name in model.peft_config:
        folder = Path(path) if name == "default" else Path(path) / name  # as PEFT saves them
        if not (folder / "adapter_config.json").is_file() or not state.adapters.get(name, Recorded(True, None)).found:
            continue
        entry = state.recorded({name}).entry
        target = folder / SEGMENTATION_FILE
        partial = target.with_suffix(".partial")
        partial.write_text(json.dumps(entry, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(target)


def _save_pretrained(cls: type[Any]) -> Any:
    @functools.wraps(cls.save_pretrained)
    def save_pretrained(self: Any, save_directory: str, *args: Any, **kwargs: Any) -> Any:
        result = cls.save_pretrained(self, save_directory, *args, **kwargs)
        write_segmentation(self, save_directory)
        return result

    return save_pretrained


def _merge_and_unload(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Merge as PEFT does; the model that comes back follows the segmentation of what was merged into it."""
    state: SegmentState = vars(_inner(self))["_segattn_state"]
    names = kwargs.get("adapter_names") or (args[2] if len(args) > 2 else None)
    record = state.recorded(set(names) if names else None)
    merged = self.base_model.merge_and_unload(*args, **kwargs)
    state.segmenter, state.own_layers = record.segmenter, record.layers
    setattr(merged.config, CONFIG_KEY, record.entry)
    return merged
