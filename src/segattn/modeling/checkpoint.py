"""Save and load a model together with its segmentation: a checkpoint tuned one way must not run the other."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from segattn.errors import SegmentError, UnsupportedModelError
from segattn.modeling.adapters import write_segmentation
from segattn.modeling.enable import enable, is_enabled
from segattn.modeling.segmentation_entry import CONFIG_KEY, SEGMENTATION_FILE, checkpoint_file, read_segmentation

__all__ = ["adapter_base", "from_pretrained", "save_pretrained"]


def save_pretrained(model: nn.Module, path: str | os.PathLike[str], **kwargs: Any) -> None:
    """Save an enabled model: plain transformers or PEFT files, plus its segmentation.

    The files are written to a new folder beside `path` and moved into it when complete.

    Args:
        model: an enabled model, PEFT-wrapped or not.
        path: the folder; created if missing, files of the same names are replaced.
        kwargs: passed on to the model's own `save_pretrained`.

    Raises:
        UnsupportedModelError: the model is not enabled.
    """
    target = Path(path)
    if not is_enabled(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} is not enabled, so there is no segmentation to save; call segattn.enable(model) "
            "first, or save a causal model with model.save_pretrained()"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        saver: Any = model
        saver.save_pretrained(str(partial), **kwargs)
        if hasattr(model, "peft_config"):
            write_segmentation(model, partial)
        _move_into(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_into(source: Path, target: Path) -> None:
    """Move a complete folder to its place; where one stands already, replace file by file."""
    if not target.exists():
        source.replace(target)
        target.chmod(0o755)  # mkdtemp makes private folders
        return
    for file in sorted(source.rglob("*")):
        destination = target / file.relative_to(source)
        if file.is_dir():
            destination.mkdir(exist_ok=True)
        else:
            file.replace(destination)


def from_pretrained(path: str | os.PathLike[str], **kwargs: Any) -> tuple[Any, Any]:
    """Load a checkpoint that was saved with its segmentation, enabled, with its tokenizer.

    Args:
        path: a folder or a hub id: a full model, or a PEFT adapter (its base model is loaded too).
        kwargs: passed on to transformers' `from_pretrained` (dtype, device_map, attn_implementation, revision, ...).

    Returns:
        (model, tokenizer), the model enabled with the recorded segmenter.

    Raises:
        SegmentError: the checkpoint records no segmentation, or a malformed one.
        UnsupportedModelError: the family or the chosen attention backend cannot honour segments.
    """
    from segattn.templates import Segmenter

    hub: dict[str, Any] = {
        name: kwargs[name] for name in ("revision", "token", "cache_dir", "subfolder") if name in kwargs
    }
    entry = read_segmentation(path, **hub)
    if entry is None:
        raise SegmentError(
            f"{os.fspath(path)} records no segmentation (no {SEGMENTATION_FILE}, no '{CONFIG_KEY}' in config.json). A "
            "model that was tuned causally is badly wrong under segments: load it with transformers, and call "
            "segattn.enable(model, segmenter) if you mean to tune it"
        )
    model, tokenizer = _load(path, hub, kwargs)
    segmenter = None if entry["segmenter"] is None else Segmenter.from_dict(entry["segmenter"], tokenizer=tokenizer)
    return enable(model, segmenter, layers=entry["layers"]), tokenizer


def _load(path: str | os.PathLike[str], hub: dict[str, Any], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = adapter_base(path, **hub)
    if base is None:
        model = AutoModelForCausalLM.from_pretrained(path, **kwargs)
        return model, AutoTokenizer.from_pretrained(path, **hub)
    from peft import PeftModel

    # A revision or subfolder belongs to the adapter, not to its base.
    model = AutoModelForCausalLM.from_pretrained(
        base, **{name: value for name, value in kwargs.items() if name not in ("revision", "subfolder")}
    )
    with_tokenizer = path if checkpoint_file(path, "tokenizer_config.json", **hub) is not None else base
    tokenizer = AutoTokenizer.from_pretrained(with_tokenizer)
    return PeftModel.from_pretrained(model, str(path), **hub), tokenizer


def adapter_base(path: str | os.PathLike[str], **hub: Any) -> str | None:
    """Return the base model that a PEFT adapter names, None for a checkpoint that is no adapter.

    Args:
        path: a folder or a hub id.
        hub: `revision`, `token`, `cache_dir`, ... for a hub id.

    Raises:
        SegmentError: the adapter names no base model.
    """
    if checkpoint_file(path, "adapter_config.json", **hub) is None:
        return None
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(str(path), **hub).base_model_name_or_path
    if not base:
        raise SegmentError(
            f"the adapter config of {os.fspath(path)} names no base model; set base_model_name_or_path in it, or load "
            "the base yourself and use peft.PeftModel.from_pretrained, then segattn.enable"
        )
    return str(base)
