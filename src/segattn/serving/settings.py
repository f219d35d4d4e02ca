"""What a server knows of segments, and how that reaches vLLM's processes: an entry of `VllmConfig.additional_config`.

vLLM sends its config to every process that it starts, so scheduler and runner read no checkpoint; only the folders of
adapters are read there, for they may be loaded later (see `adapters`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from segattn.errors import SegmentError
from segattn.serving.errors import ServingError
from segattn.serving.limits import StepLimits
from segattn.templates import Segmenter

__all__ = ["KEY", "ServingSettings"]

KEY = "segment_attention"
"""The entry of `--additional-config`."""

_RESOLVED = "resolved"


@dataclass(frozen=True)
class ServingSettings:
    """How the requests of a server are segmented.

    Args:
        base: the segmenter of the base model; None if it was not tuned with segments.
        adapters: the segmenters of LoRA adapters by name; None for an adapter that was tuned causally.
        folders: where the segmentations of adapters were read, by name; those that are missing here hold for a name
            whatever is loaded under it (see `adapters.Adapters`).
        limits: what bounds a segment.
        per_request: whether the attention backend takes a flag per request (see `backends`).
    """

    base: Segmenter | None
    limits: StepLimits
    per_request: bool = True
    adapters: Mapping[str, Segmenter | None] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        return {
            _RESOLVED: True,
            "base": _written(self.base),
            "adapters": {name: _written(segmenter) for name, segmenter in self.adapters.items()},
            "folders": dict(self.folders),
            "per_request": self.per_request,
            "limits": vars(self.limits),
        }

    @classmethod
    def from_config(cls, vllm_config: Any) -> "ServingSettings":
        """Read the settings that `configure` left in a vLLM config.

        Raises:
            ServingError: there are none: the platform plugin was not active.
        """
        entry = entry_of(vllm_config)
        if entry is None or not entry.get(_RESOLVED):
            raise ServingError(
                "vLLM's config holds no segments although segattn's scheduler or worker was asked for; expected the "
                "platform plugin of segattn to be active. Leave --scheduler-cls and --worker-cls out, unset "
                "VLLM_TARGET_DEVICE, and let VLLM_PLUGINS include 'segattn'"
            )
        return cls(
            base=_read(entry["base"]),
            limits=StepLimits(**entry["limits"]),
            per_request=bool(entry["per_request"]),
            adapters={name: _read(data) for name, data in entry["adapters"].items()},
            folders=entry["folders"],
        )


def entry_of(vllm_config: Any) -> dict[str, Any] | None:
    """Return the entry of a vLLM config, as the user or `configure` wrote it; None if there is none.

    Raises:
        SegmentError: it is no object.
    """
    config = vllm_config.additional_config
    entry = config.get(KEY) if isinstance(config, dict) else None
    if entry is not None and not isinstance(entry, dict):
        raise SegmentError(
            f'--additional-config has "{KEY}": {entry!r:.100}; expected an object such as '
            '{"base": "runs/mine"} or {"adapters": {"name": "runs/adapter"}}'
        )
    return entry


def is_resolved(entry: Mapping[str, Any]) -> bool:
    """Return whether `configure` wrote this entry."""
    return bool(entry.get(_RESOLVED))


def _written(segmenter: Segmenter | None) -> dict[str, Any] | None:
    return None if segmenter is None else segmenter.to_dict()


def _read(data: Mapping[str, Any] | None) -> Segmenter | None:
    return None if data is None else Segmenter.from_dict(data)
