"""What a checkpoint says of its segmentation: an entry in config.json, or a file beside an adapter."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segattn.errors import SegmentError

if TYPE_CHECKING:
    from segattn.templates import Segmenter

__all__ = ["CONFIG_KEY", "SEGMENTATION_FILE", "checkpoint_file", "entry_of", "read_segmentation"]

CONFIG_KEY = "segment_attention"
"""Where config.json records the segmentation of a checkpoint."""

SEGMENTATION_FILE = "segment_attention.json"
"""Beside an adapter, whose own config file carries no extra entries."""

_FORMAT = 1
_FORMAT_WITH_LAYERS = 2


def entry_of(segmenter: "Segmenter | None", layers: Sequence[int] | None = None) -> dict[str, Any]:
    """Return the entry that records a segmenter, or that the ids were always given, and the layers that follow it."""
    entry = {"format": _FORMAT, "segmenter": None if segmenter is None else segmenter.to_dict()}
    # A version that does not know `layers` must not read past it.
    return entry if layers is None else {**entry, "format": _FORMAT_WITH_LAYERS, "layers": list(layers)}


def read_segmentation(path: str | os.PathLike[str], **hub: Any) -> dict[str, Any] | None:
    """Return what a checkpoint records about its segmentation, None if it records nothing.

    Args:
        path: a folder or a hub id of a full model or an adapter.
        hub: `revision`, `token`, `cache_dir`, ... for a hub id.

    Raises:
        SegmentError: the entry is malformed or of a later format.
    """
    for name in (SEGMENTATION_FILE, "config.json"):
        file = checkpoint_file(path, name, **hub)
        if file is None:
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            entry = content if name == SEGMENTATION_FILE else content.get(CONFIG_KEY)
        except (json.JSONDecodeError, AttributeError) as error:
            raise SegmentError(
                f"{file} is not a JSON object ({error}); the checkpoint is damaged, save it again"
            ) from error
        if entry is not None:
            return _checked_entry(entry, file)
    return None


def _checked_entry(entry: Any, file: Path) -> dict[str, Any]:
    readable = isinstance(entry, dict) and "segmenter" in entry
    if readable and entry.get("format") == _FORMAT and "layers" not in entry:
        return {**entry, "layers": None}
    layers = entry.get("layers") if readable and entry.get("format") == _FORMAT_WITH_LAYERS else None
    if isinstance(layers, list) and layers and all(type(layer) is int and layer >= 0 for layer in layers):
        return dict(entry)
    raise SegmentError(
        f"{file} holds a segmentation that this version cannot read: {json.dumps(entry)[:200]}; expected "
        f'{{"format": {_FORMAT}, "segmenter": ...}} or {{"format": {_FORMAT_WITH_LAYERS}, "segmenter": ..., "layers": '
        "[0, ...]}. A newer segattn may have written it: upgrade"
    )


def checkpoint_file(path: str | os.PathLike[str], name: str, **hub: Any) -> Path | None:
    """Return the local path of one file of a checkpoint, None if it has no such file."""
    if Path(path).is_dir():
        file = Path(path) / name
        return file if file.is_file() else None
    from transformers.utils import cached_file

    found = cached_file(
        str(path),
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
    return None if found is None else Path(found)
