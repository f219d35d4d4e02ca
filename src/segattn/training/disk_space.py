"""Room on the disk: asked for before a checkpoint is written, and told in one line when it has run out."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segattn.training.errors import CheckpointError, DiskFullError

__all__ = ["checkpoint_size", "require_space", "told_if_full"]

# No space, over the quota, over the largest file that is allowed.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ("no space left", "disk quota", "file too large", *(f"os error {number}" for number in _FULL))
_SLACK = 1 << 20  # bytes: folders, small files


def checkpoint_size(last: Path | None, trainer: Any) -> int:
    """Return the bytes that the next checkpoint will need: those of the last one, or of weights and optimizer."""
    if last is not None and last.is_dir():
        return sum(file.stat().st_size for file in last.rglob("*") if file.is_file())
    adapted = hasattr(trainer.model, "peft_config")
    saved = [weight for weight in trainer.model.parameters() if weight.requires_grad or not adapted]
    state = trainer.optimizer.state.values() if trainer.optimizer is not None else []
    held = [value for entry in state for value in entry.values() if hasattr(value, "nbytes")]
    return sum(tensor.nbytes for tensor in [*saved, *held])


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to begin writing what will not fit.

    Raises:
        DiskFullError: the file system of `folder` has fewer bytes free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed + _SLACK:
        raise _disk_full(folder, needed, what)


@contextmanager
def told_if_full(folder: Path, what: str, needed: int | None = None) -> Iterator[None]:
    """Turn whatever a writer raises when the disk is full, or the folder cannot be written, into one clear line.

    safetensors repeats the system's words, torch says nothing of the reason: then a file is written to see.

    Args:
        folder: that is written to.
        what: is written.
        needed: bytes, if known.

    Raises:
        DiskFullError: no space, a quota or a limit on file sizes.
        CheckpointError: another error of the file system.
    """
    try:
        yield
    except (DiskFullError, CheckpointError):
        raise
    except Exception as error:
        reason = error if _says_full(error) else _refused(folder)
        if _says_full(reason):
            raise _disk_full(folder, needed, what, reason) from error
        if isinstance(error, OSError):
            raise CheckpointError(f"{what} could not be written to {folder}: {error}") from error
        raise


def _refused(folder: Path) -> OSError | None:
    """What the system says to another file in this folder."""
    if not folder.is_dir():
        return None
    trial = folder / ".trial"
    try:
        trial.write_bytes(bytes(_SLACK))
    except OSError as error:
        return error
    finally:
        trial.unlink(missing_ok=True)
    return None


def _says_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(words in str(error).lower() for words in _FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _disk_full(folder: Path, needed: int | None, what: str, error: BaseException | None = None) -> DiskFullError:
    why = f" ({error})" if error is not None else ""
    wanted = "" if needed is None else f"about {_bytes(needed)} are needed and "
    return DiskFullError(
        f"{what} does not fit into {folder}: {wanted}{_bytes(_free(folder))} are free{why}. What was saved before is "
        "still there: make room and go on with --resume. A lower --save_total_limit keeps fewer checkpoints"
    )


def _free(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _bytes(count: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.1f} {unit}" if unit != "bytes" else f"{count} bytes"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.1f} TB"
