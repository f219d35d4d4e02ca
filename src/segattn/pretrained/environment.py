"""What a result was computed with: versions, machine, threads. Used by `segattn doctor` and by reports."""

import os
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

__all__ = ["cpu_computes_bfloat16", "environment", "installed_version", "memory", "requirements"]

_REPORTED = (
    "segattn",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "gguf",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "typer",
)


def environment() -> dict[str, str]:
    """Return the facts that a result should be read with, as name -> text.

    Versions ("not installed" where missing), operating system, processor, cores, threads, memory and device.
    """
    facts = {"python": platform.python_version()}
    facts |= {name: installed_version(name) or "not installed" for name in _REPORTED}
    facts["system"] = platform.platform()
    facts["processor"] = _processor()
    facts["cores"] = str(usable_cores())
    facts |= _torch_facts()
    total, available = memory()
    facts["memory"] = f"{total / 2**30:.1f} GiB, {available / 2**30:.1f} GiB free" if total else "unknown"
    return facts


def installed_version(distribution: str) -> str | None:
    """Return the installed version of a distribution, None if it is not installed; imports nothing."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def requirements() -> dict[str, list[tuple[str, str]]]:
    """Return what this package declares: extra ("" for none) -> [(distribution, least version), ...].

    An extra that includes another one of ours lists only what it adds.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for line in requires("segattn") or []:
        requirement, _, marker = line.partition(";")
        name = re.match(r"[\w.-]+", requirement.strip())
        least = re.search(r">=\s*([\w.]+)", requirement)
        extra = re.search(r"extra\s*==\s*[\"']([\w-]+)[\"']", marker)
        if name is None or name[0] == "segattn":
            continue
        found.setdefault(extra[1] if extra else "", []).append((name[0], least[1] if least else "0"))
    return found


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> tuple[int, int]:
    """Return total and free main memory in bytes, (0, 0) where the system does not tell."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * page
    except (AttributeError, OSError, ValueError):
        return 0, 0
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return total, total
    free = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return total, int(free[1]) * 1024 if free else total


def cpu_computes_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16; elsewhere it is emulated, several times slower than float32."""
    import torch

    names = ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16")
    return any(torch.cpu.get_capabilities().get(name, False) for name in names)


def free_disk(folder: Path) -> int:
    """Return the free bytes on the disk that holds (or will hold) `folder`."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    model = re.search(r"model name\s*:\s*(.+)", text)
    return model[1].strip() if model else platform.machine()


def _torch_facts() -> dict[str, str]:
    try:
        import torch
    except ImportError:
        return {"threads": "unknown", "device": "unknown"}
    if torch.cuda.is_available():
        device = f"cuda ({torch.cuda.get_device_name(0)}, {torch.cuda.device_count()} in all)"
    elif torch.backends.mps.is_available():
        device = "mps"
    else:
        device = "cpu"
    return {"threads": str(torch.get_num_threads()), "device": device}
