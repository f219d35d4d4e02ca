"""The adapter that comes with the package: SmolLM2-135M-Instruct, taught by itself to read with segments.

`smollm2_segments/README.md` says how it was made. PEFT finds the base model of an adapter by the path in its config,
which differs from machine to machine: so the adapter is copied into the cache, with the path that holds here.
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from segattn.pretrained import cache
from segattn.pretrained.errors import FetchError

__all__ = ["SMOLLM2_SEGMENTS", "shipped_adapter"]

SMOLLM2_SEGMENTS = "smollm2-segments"
"""What it is called on the command line."""

_FOLDER = Path(__file__).parent / "smollm2_segments"
_FILES = ("adapter_config.json", "adapter_model.safetensors", "segment_attention.json")


def shipped_adapter(base: Path) -> Path:
    """Return a folder with the adapter, for a base model that lies in `base`.

    Args:
        base: the folder of SmolLM2-135M-Instruct.

    Raises:
        FetchError: this copy of the package lacks a file of it, or the cache cannot be written.
    """
    missing = [name for name in _FILES if not (_FOLDER / name).is_file()]
    if missing:
        raise FetchError(
            f"this copy of segattn lacks {', '.join(missing)} of its adapter; install it again, or convert the model "
            "yourself: segattn adapt --model smollm2 --output-dir runs/adapted"
        )
    contents = {name: (_FOLDER / name).read_bytes() for name in _FILES}
    config = {**json.loads(contents["adapter_config.json"]), "base_model_name_or_path": str(base)}
    contents["adapter_config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    # Of another version of the package, or for another base, it is another folder.
    version = hashlib.sha256(b"".join(contents.values())).hexdigest()[:12]
    target = cache.cache_folder() / "adapters" / f"{SMOLLM2_SEGMENTS}-{version}"
    if all(_is_there(target / name, content) for name, content in contents.items()):
        return target
    try:
        _write(target, contents)
    except OSError as error:
        raise FetchError(f"cannot write {target} ({error}); set SEGATTN_CACHE to another folder") from error
    return target


def _is_there(file: Path, content: bytes) -> bool:
    return file.is_file() and file.read_bytes() == content


def _write(target: Path, contents: dict[str, bytes]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for name, content in contents.items():
            (partial / name).write_bytes(content)
        partial.chmod(0o755)  # mkdtemp makes private folders
        if target.exists():
            for name in contents:
                (partial / name).replace(target / name)
        else:
            partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
