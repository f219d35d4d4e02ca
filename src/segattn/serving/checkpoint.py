"""What is to be served: a model or an adapter, and what they record of their segmentation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segattn.serving.errors import ServingError

if TYPE_CHECKING:
    from segattn.templates import Segmenter

__all__ = ["SHORT_NAMES", "Target", "recorded_segmenter", "target_of"]

SHORT_NAMES = ("smollm2", "smollm2-segments")


@dataclass(frozen=True)
class Target:
    """What vLLM is to load.

    Args:
        model: the folder or hub id of the full model.
        adapter: the folder of a LoRA adapter over it, or None.
        name: what clients call the adapter.
        rank: the adapter's LoRA rank.
        tokenizer: where the tokenizer lies if not beside the model.
    """

    model: str
    adapter: str | None = None
    name: str | None = None
    rank: int = 0
    tokenizer: str | None = None


def target_of(model_or_adapter: str) -> Target:
    """Return what to load for a folder, a hub id or a short name.

    Raises:
        ServingError: an adapter that vLLM cannot load.
        FetchError: a short name whose model cannot be fetched.
    """
    path = model_or_adapter
    if path in SHORT_NAMES:
        from segattn.pretrained import resolve_model

        path = resolve_model(path)
    config_file = Path(path) / "adapter_config.json"
    if not config_file.is_file():
        return Target(path)
    config = json.loads(config_file.read_text(encoding="utf-8"))
    base, kind = config.get("base_model_name_or_path"), config.get("peft_type")
    if not base or kind != "LORA":
        raise ServingError(
            f"{config_file} names the base model {base!r} and the type {kind!r}; expected a LoRA adapter with its base "
            "model, which is what vLLM loads. Merge the adapter into its model (PEFT's merge_and_unload, then "
            "segattn.save_pretrained) and serve that"
        )
    if base in SHORT_NAMES:
        from segattn.pretrained import resolve_model

        base = resolve_model(base)
    own_tokenizer = (Path(path) / "tokenizer_config.json").is_file()
    name = model_or_adapter if model_or_adapter in SHORT_NAMES else Path(path).resolve().name
    ranks = [int(config.get("r") or 0), *map(int, (config.get("rank_pattern") or {}).values())]
    return Target(str(base), str(path), name, max(ranks), str(path) if own_tokenizer else None)


def recorded_segmenter(path: str, entry: Mapping[str, Any] | None = None, **hub: Any) -> "Segmenter | None":
    """Return the segmenter that a checkpoint records, None if it records no segmentation.

    Args:
        path: a folder or a hub id, of a model or an adapter.
        entry: what it records, where that is known already.
        hub: `revision`, ... of a hub id.

    Raises:
        SegmentError: a malformed entry.
        ServingError: a segmentation that cannot be served.
    """
    from segattn.templates import Segmenter

    if entry is None:
        from segattn.modeling.segmentation_entry import read_segmentation

        entry = read_segmentation(path, **hub)
    if entry is None:
        return None
    if entry.get("layers") is not None:
        raise ServingError(
            f"{path} was tuned with segments in the layers {entry['layers']} only; vLLM gives all layers one flag. "
            "Serve a checkpoint whose layers all follow segments"
        )
    if entry.get("segmenter") is None:
        raise ServingError(
            f"{path} records no segmenter (its segment ids were always given), so a server cannot find segments in "
            "token ids; enable the model with a Segmenter, save it again and serve that"
        )
    return Segmenter.from_dict(entry["segmenter"])
