"""Where fetched models lie, and whether what lies there can be trusted.

An entry is one folder of plain transformers files plus `provenance.json`, which says where they came from and lists
every file with its size and hash. An entry appears by one rename, so it is whole or absent.
"""

import hashlib
import json
import os
import shutil
import struct
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from segattn.pretrained.errors import FetchError

__all__ = [
    "PROVENANCE_FILE",
    "cache_folder",
    "entry_path",
    "entry_problem",
    "install",
    "provenance",
    "write_provenance",
]

PROVENANCE_FILE = "provenance.json"

_FORMAT = 1
_HASHED_UP_TO = 16 * 2**20
"""Files up to this size are hashed at every check; of larger ones (the weights) header and size are checked."""


def cache_folder() -> Path:
    """Return the cache: `$SEGATTN_CACHE`, else `$XDG_CACHE_HOME/segattn`, else `~/.cache/segattn`."""
    own = os.environ.get("SEGATTN_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    # The XDG rules: a relative path there counts as unset.
    base = Path(shared) if shared and Path(shared).is_absolute() else Path.home() / ".cache"
    return base / "segattn"


def entry_path(model: str) -> Path:
    """Return the folder of a hub id in the cache, whether or not it is there."""
    return cache_folder() / "models" / model.replace("/", "--")


def provenance(entry: Path) -> dict[str, Any] | None:
    """Read where an entry came from, None if that file is missing or not readable."""
    try:
        content = json.loads((entry / PROVENANCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("format") == _FORMAT else None


def write_provenance(folder: Path, source: dict[str, str]) -> None:
    """Record the source of the files in `folder`, and the files themselves."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != PROVENANCE_FILE
    }
    content = {
        "format": _FORMAT,
        **source,
        "fetched": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "files": files,
    }
    partial = folder / f"{PROVENANCE_FILE}.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / PROVENANCE_FILE)


def entry_problem(entry: Path) -> str | None:
    """Check a cache entry in milliseconds.

    Returns:
        What is wrong with it in one line, None if it can be used.
    """
    if not entry.is_dir():
        return "not there"
    recorded = provenance(entry)
    if recorded is None:
        return f"{PROVENANCE_FILE} is missing or not readable"
    files = recorded.get("files")
    if not isinstance(files, dict) or "config.json" not in files:
        return f"{PROVENANCE_FILE} lists no config.json"
    weights = [name for name in files if name.endswith(".safetensors")]
    if not weights:
        return f"{PROVENANCE_FILE} lists no safetensors weights"
    for name, expected in files.items():
        problem = _file_problem(entry / name, expected)
        if problem:
            return problem
    return next(filter(None, (_safetensors_problem(entry / name) for name in weights)), None)


def _file_problem(path: Path, expected: dict[str, Any]) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    if size != expected.get("size"):
        return f"{path.name} has {size} bytes, not {expected.get('size')}"
    if size <= _HASHED_UP_TO and sha256(path) != expected.get("sha256"):
        return f"{path.name} has changed since it was fetched"
    return None


def _safetensors_problem(path: Path) -> str | None:
    """Check that the header parses and that its tensors fill the file exactly."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 2 <= length <= size - 8:
                return f"{path.name} is no safetensors file (header of {length} bytes in {size})"
            header = json.loads(file.read(length))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{path.name} is no safetensors file ({error})"
    if end == 0 or 8 + length + end != size:
        return f"{path.name} has {size} bytes, but its header describes {8 + length + end}"
    return None


def sha256(path: Path) -> str:
    """Return the hash of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def install(staged: Path, entry: Path) -> None:
    """Move a finished folder to its place in one rename; a broken entry there is set aside and removed."""
    problem = entry_problem(staged)
    if problem:
        raise FetchError(f"the files in {staged} are not usable: {problem}; remove that folder and fetch again")
    if entry.exists():
        broken = entry.with_name(f".{entry.name}.broken")
        shutil.rmtree(broken, ignore_errors=True)
        entry.replace(broken)
        staged.replace(entry)
        shutil.rmtree(broken, ignore_errors=True)
    else:
        staged.replace(entry)


def require_space(folder: Path, needed: int) -> None:
    """Raise FetchError if the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FetchError(
            f"{folder} is on a disk with {free / 1e6:,.0f} MB free; fetching needs about {needed / 1e6:,.0f} MB. Free "
            "some space, or set SEGATTN_CACHE to a folder on another disk"
        )
