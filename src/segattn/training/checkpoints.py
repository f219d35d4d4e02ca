"""Checkpoints that are whole: sealed by a manifest, published by a rename, verified before they are gone on with.

A checkpoint is written in `output_dir/.saving/checkpoint-N`. When all is written a manifest (`segattn_checkpoint.json`)
with the size and checksum of every file goes in last, and the folder is renamed to `output_dir/checkpoint-N`. A process
that is killed at any moment leaves either no `checkpoint-N`, or a whole one.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segattn.training.checkpoint_files import missing_part, unreadable
from segattn.training.errors import CheckpointError

__all__ = [
    "MANIFEST",
    "STAGING",
    "Manifest",
    "checkpoints_in",
    "chosen_checkpoint",
    "fault",
    "publish",
    "read_manifest",
    "rotate",
    "seal",
]

logger = logging.getLogger(__name__)

MANIFEST = "segattn_checkpoint.json"
"""Written last: a folder without it is cut off, or was written by another program."""

STAGING = ".saving"
"""The folder in output_dir in which checkpoints are written."""

_STATE = "trainer_state.json"
_NOT_LOADED = (".md",)  # model cards, which people edit


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself.

    Attributes:
        step: optimizer steps done.
        saved: when, in seconds since 1970.
        settings: those that decide the weights, by name; see `segattn.training.fingerprint`.
        versions: of the packages and the device.
        sums: what was added up since the last line of the log, so that the next one is what it would have been.
        files: path inside the folder -> [bytes, SHA-256].
    """

    step: int
    saved: float
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    sums: dict[str, Any] = field(default_factory=dict)
    files: dict[str, list[Any]] = field(default_factory=dict)


def seal(
    folder: Path, *, step: int, settings: dict[str, Any], versions: dict[str, Any], sums: dict[str, Any]
) -> Manifest:
    """Write the manifest of a folder in which everything else is written, and force all of it onto the disk."""
    files = {}
    for file in sorted(_files(folder)):
        _force_to_disk(file)
        files[str(file.relative_to(folder))] = [file.stat().st_size, _sum_of(file)]
    manifest = Manifest(step, time.time(), settings, versions, sums, files)
    content = vars(manifest)
    partial = folder / f".{MANIFEST}.partial"
    with partial.open("w", encoding="utf-8") as stream:
        json.dump({**content, "checksum": _checksum(content)}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(folder / MANIFEST)
    _force_to_disk(folder)
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """Return what a checkpoint says of itself, None where another program wrote it.

    Raises:
        CheckpointError: the manifest is damaged.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        checksum = content.pop("checksum")
        manifest = Manifest(**content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{MANIFEST} is damaged") from error
    if checksum != _checksum(content):
        raise CheckpointError(f"{MANIFEST} is damaged")
    return manifest


def fault(folder: Path) -> str | None:
    """Say why a checkpoint cannot be gone on with: which file is missing, cut off or changed. None if it is whole.

    All files are read. Without a manifest (a checkpoint of plain TRL) they are opened: JSON, safetensors and torch's
    zip files show most damages themselves.
    """
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return str(error)
    if manifest is None:
        return missing_part(folder) or next(
            (f"{file.relative_to(folder)} {why}" for file in sorted(_files(folder)) if (why := unreadable(file))), None
        )
    for name, (size, checksum) in manifest.files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, and {size} were written"
        if _sum_of(file) != checksum:
            return f"{name} has changed since it was written (its checksum differs)"
    return missing_part(folder)


def checkpoints_in(output_dir: Path) -> list[Path]:
    """Return the checkpoint folders of a run, the one that was saved last first, whole or not."""
    found = [folder for folder in output_dir.glob("checkpoint-*") if folder.is_dir() and step_of(folder) is not None]
    return sorted(found, key=lambda folder: (_saved(folder), step_of(folder)), reverse=True)


def step_of(folder: Path) -> int | None:
    """Return the number in a checkpoint folder's name, None where there is none."""
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else None


def chosen_checkpoint(wanted: str | bool | None, output_dir: Path) -> Path | None:
    """Return the checkpoint to go on with, verified; None to begin.

    Args:
        wanted: None or "false": begin. "last" or "true": the last whole one in `output_dir`, telling those that are
            not. "auto": "last" where there is any, otherwise begin. Anything else is a checkpoint's folder.
        output_dir: of the run.

    Raises:
        CheckpointError: the named one is not whole, or none is.
    """
    word = str(wanted).lower()
    if wanted is None or word in ("false", "no"):
        return None
    if word not in ("true", "yes", "last", "auto"):
        named = Path(str(wanted))
        why = fault(named) if named.is_dir() else "there is no such folder"
        if why is not None:
            raise CheckpointError(
                f"the checkpoint {named} cannot be gone on with: {why}. Expected a whole one; --resume takes the last "
                "whole one of --output_dir"
            )
        return named
    _promote(output_dir)
    found = checkpoints_in(output_dir)
    if not found and word == "auto":
        return None
    for folder in found:
        why = fault(folder)
        if why is None:
            return folder
        logger.warning("the checkpoint %s is not whole: %s; looking for the one before", folder, why)
    raise CheckpointError(
        f"{output_dir} holds no whole checkpoint"
        + (f" ({len(found)} damaged, named above)" if found else "")
        + "; expected one to go on with. To begin anew leave --resume out"
        + (" and take another --output_dir, or delete them" if found else "")
    )


def publish(staged: Path, target: Path) -> None:
    """Move a sealed checkpoint to its place; one that stands there gives way to it."""
    if target.exists():
        replaced = staged.with_name(f"replaced-{target.name}")
        target.replace(replaced)
        staged.replace(target)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        staged.replace(target)
    _force_to_disk(target.parent)


def rotate(output_dir: Path, limit: int | None, keep: list[Path]) -> None:
    """Delete the checkpoints that were saved first, until `limit` are left; those in `keep` stay and count.

    A folder gets another name before its files go, so that a half-deleted one is never taken for a checkpoint.
    """
    if not limit or limit < 1:
        return
    kept = {folder.resolve() for folder in keep if folder.exists()}
    others = [folder for folder in checkpoints_in(output_dir) if folder.resolve() not in kept]
    for folder in others[max(0, limit - len(kept)) :]:
        aside = output_dir / STAGING
        aside.mkdir(exist_ok=True)
        folder.replace(aside / f"deleted-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)


def _promote(output_dir: Path) -> None:
    """Publish a checkpoint that was sealed when the process ended, before its rename."""
    for folder in (output_dir / STAGING).glob("checkpoint-*"):
        if (folder / MANIFEST).is_file() and fault(folder) is None:
            publish(folder, output_dir / folder.name)


def _files(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        if file.is_file() and file.suffix not in _NOT_LOADED and MANIFEST not in file.name:
            yield file


def _sum_of(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _force_to_disk(path: Path) -> None:
    """Survive a power cut too, not only a killed process."""
    if os.name != "posix":
        return  # elsewhere only files that are open for writing can be forced, and folders not at all
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _saved(folder: Path) -> float:
    try:
        manifest = read_manifest(folder)
    except CheckpointError:
        manifest = None
    if manifest is not None:
        return manifest.saved
    state = folder / _STATE
    return (state if state.is_file() else folder).stat().st_mtime
