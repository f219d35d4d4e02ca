"""Where and with what something was measured."""

import hashlib
import re
import subprocess
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import torch

from segattn.bench.errors import BenchError
from segattn.pretrained.environment import cpu_computes_bfloat16, environment

__all__ = ["DTYPES", "device_name", "folder_name", "open_device", "pick_dtype", "provenance"]

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

_PACKAGE = Path(__file__).parents[1]


def open_device(name: str) -> torch.device:
    """Return a device that can be measured on.

    Raises:
        BenchError: neither the CPU nor a CUDA device, or one that is not there.
    """
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise BenchError(f"the device is {name!r}; expected cpu, cuda or cuda:1 and so on")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BenchError(f"the device {name!r} cannot be used ({reason}); expected cpu, or cuda where it is") from None
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a name; "auto" is bfloat16 where the device computes it, and float32 elsewhere.

    Raises:
        BenchError: an unknown name.
    """
    if name == "auto":
        fast = device.type == "cuda" or cpu_computes_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    if name not in DTYPES:
        raise BenchError(f"the dtype is {name!r}; expected auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def device_name(device: torch.device) -> str:
    """Return what a person calls the device, with the threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{environment()['processor']}, {threads} thread{'s' if threads > 1 else ''}"


def folder_name(device: torch.device) -> str:
    """Return the device's name as a folder is called."""
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def provenance(device: torch.device) -> dict[str, Any]:
    """Return what a result must be read with: device, versions, commit, a fingerprint of the code, and the time."""
    facts = environment()
    total, _, _ = facts.pop("memory").partition(",")  # what is free changes by the minute
    return {
        "device": device_name(device),
        "environment": {**facts, "memory": total},
        "commit": _commit(),
        "code": _code(),
        "began": now(),
    }


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


@cache
def _code() -> str:
    """A fingerprint of the package's sources, the command line aside."""
    digest = hashlib.sha256()
    for file in sorted(_PACKAGE.rglob("*.py")):
        place = file.relative_to(_PACKAGE)
        if place.parts[0] != "cli":
            digest.update(place.as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


@cache
def _commit() -> str | None:
    """The commit of the checkout that the package lies in, None where it lies in none."""
    # A tracked file, because site-packages may lie in the checkout of another project.
    if _git("ls-files", "--error-unmatch", "errors.py") is None:
        return None
    commit = _git("rev-parse", "--short=12", "HEAD")
    return f"{commit} and changes" if _git("status", "--porcelain", "--untracked-files=no", ".") else commit


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(_PACKAGE), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
