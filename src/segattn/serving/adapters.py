"""What segments the requests of each LoRA adapter, also of adapters that were loaded while the server runs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segattn.serving.checkpoint import recorded_segmenter
from segattn.serving.errors import ServingError
from segattn.serving.spans import OVERRIDE, Spans, spans_of

if TYPE_CHECKING:
    from segattn.serving.settings import ServingSettings
    from segattn.templates import Segmenter

__all__ = ["Adapters"]


@dataclass(frozen=True)
class _Read:
    """What a folder recorded, and of which file that was read."""

    state: tuple[int, int] | None
    segmenter: "Segmenter | None"


class Adapters:
    """Finds the segmenter of a request's adapter: what its own folder records, unless the settings fix it by name.

    Settings that name an adapter's folder hold for that folder: another adapter that is loaded under the name later is
    read by its own. Folders are read once, and again when their file changes.
    """

    def __init__(self, settings: "ServingSettings") -> None:
        self._settings = settings
        self._read: dict[str, _Read] = {}

    def spans(self, prompt_token_ids: Sequence[int], extra_args: Mapping[str, Any] | None, lora_request: Any) -> Spans:
        """Return the segments of a request, see `spans_of`; the adapter is not looked at where the request gives spans.

        Raises:
            SegmentError: a malformed override or segmentation.
            ServingError: see `segmenter_of`.
        """
        given = (extra_args or {}).get(OVERRIDE)
        segmenter = None if isinstance(given, list) else self.segmenter_of(lora_request)
        return spans_of(prompt_token_ids, extra_args, segmenter)

    def segmenter_of(self, lora_request: Any) -> "Segmenter | None":
        """Return what segments the requests of an adapter, None for one that was tuned causally.

        Args:
            lora_request: vLLM's LoRARequest; None for the base model.

        Raises:
            SegmentError: the adapter's segmentation is malformed.
            ServingError: it cannot be served, or its folder cannot be read here.
        """
        if lora_request is None:
            return self._settings.base
        name, path = lora_request.lora_name, str(Path(lora_request.lora_path).expanduser())
        folder = self._settings.folders.get(name)
        if folder is None and name in self._settings.adapters:
            return self._settings.adapters[name]
        found = self._recorded(path)
        if found is None and folder is not None and os.path.realpath(folder) != os.path.realpath(path):
            raise ServingError(
                f"the adapter {name!r} is loaded from {path}, which records no segmentation, while the server was "
                f"started with {folder} as the segmentation of that name; load it under another name, under which it "
                "runs causally"
            )
        return found

    def _recorded(self, path: str) -> "Segmenter | None":
        from segattn.modeling.segmentation_entry import SEGMENTATION_FILE, checkpoint_file

        state = _state(Path(path) / SEGMENTATION_FILE)
        known = self._read.get(path)
        if known is not None and known.state == state:
            return known.segmenter
        # What cannot be found must not pass for an adapter that records nothing.
        try:
            readable = checkpoint_file(path, "adapter_config.json") is not None
        except OSError:  # neither a folder nor the form of a hub id
            readable = False
        if not readable:
            raise ServingError(
                f"the adapter's folder {path} holds no adapter_config.json, or cannot be read by this process, so "
                "whether it was tuned with segments is not known; put it where all processes of the server find it"
            )
        segmenter = recorded_segmenter(path)
        self._read[path] = _Read(state, segmenter)
        return segmenter


def _state(file: Path) -> tuple[int, int] | None:
    """Tells one content of a file from another; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
