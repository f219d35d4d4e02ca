"""Samples from a JSON Lines or JSON file, a folder of them, or a data set of the hub."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from segattn.data.formats import FORMATS, Format, complete_intents, format_of, read_row
from segattn.data.samples import DataError, Sample
from segattn.data.texts import SpanText, is_text_row, read_text_row

__all__ = ["Split", "has_split", "load_samples", "load_training_samples"]

Split = Literal["train", "dev"]

# The names under which files and hub data sets keep a split, the first one found counts.
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "dev": ("dev", "validation", "valid", "test")}

_INTENT = next(known for known in FORMATS if known.name == "intent")


def load_samples(source: str | os.PathLike[str], split: Split = "train") -> list[Sample]:
    """Load the samples of a file, a folder or a hub data set.

    Args:
        source: a JSON Lines file, or a JSON file that holds a list (`split` does not matter then); a folder with
            train.jsonl and dev.jsonl (or .json), or with one sub-folder like that per task, as LLM-Adapters keeps them,
            or with any other .jsonl files, one per task, which serve every split; or a hub id, "owner/name" or
            "owner/name:configuration".
        split: "train" or "dev"; a dev split may also be called validation, valid or test.

    Returns:
        The samples in file order, tasks in alphabetical order.

    Raises:
        DataError: nothing there, no samples, rows of several formats, or a bad row: names the file and the line.
            Plain text with spans too, which has no prompt to ask: `load_training_samples` reads it.
    """
    samples: list[Sample] = []
    for sample in load_training_samples(source, split):
        if isinstance(sample, SpanText):
            raise DataError(
                f"{source} holds plain text with spans (sample {sample.id!r} of {sample.task!r}), which has no prompt "
                "and no answer; expected chats or another format with both. segattn train reads such texts"
            )
        samples.append(sample)
    return samples


def load_training_samples(source: str | os.PathLike[str], split: Split = "train") -> list[Sample | SpanText]:
    """Load what can be trained on: as `load_samples`, and plain text with spans (fields text, spans, loss_spans).

    Raises:
        DataError: see `load_samples`.
    """
    path = Path(source)
    if path.is_file():
        return _read_file(path, task=path.parent.name if _is_split_file(path) else path.stem)
    if path.is_dir():
        return [sample for file, task in _files_of(path, split) for sample in _read_file(file, task)]
    text = os.fspath(source)
    if text.endswith((".jsonl", ".json")) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise DataError(
            f"{text} does not exist; expected a .jsonl file, a folder of them, or a hub data set owner/name"
        )
    return _read_hub(text, split)


def has_split(source: str | os.PathLike[str], split: Split) -> bool:
    """Tell whether data has files (or, on the hub, a split) of its own for a split; a single file has none.

    Raises:
        DataError: the hub data set cannot be looked up.
    """
    path = Path(source)
    if path.is_dir():
        folders = [path, *(sub for sub in path.iterdir() if sub.is_dir())]
        return any(_split_file(folder, split) is not None for folder in folders)
    if path.exists():
        return False
    return any(name in _hub_splits(os.fspath(source)) for name in SPLIT_NAMES[split])


def _is_split_file(path: Path) -> bool:
    return any(path.stem in names for names in SPLIT_NAMES.values())


def _split_file(folder: Path, split: Split) -> Path | None:
    candidates = (folder / f"{name}{ending}" for name in SPLIT_NAMES[split] for ending in (".jsonl", ".json"))
    return next((file for file in candidates if file.is_file()), None)


def _files_of(folder: Path, split: Split) -> list[tuple[Path, str]]:
    """The files to read with the task name of each."""
    own = _split_file(folder, split)
    if own is not None:
        return [(own, folder.resolve().name)]
    tasks = [(file, sub.name) for sub in sorted(folder.iterdir()) if sub.is_dir() and (file := _split_file(sub, split))]
    if tasks:
        return tasks
    files = sorted(file for file in folder.glob("*.jsonl") if not _is_split_file(file))
    if files:
        return [(file, file.stem) for file in files]
    found = sorted(entry.name for entry in folder.iterdir())[:10]
    names = " or ".join(f"{name}.jsonl" for name in SPLIT_NAMES[split])
    raise DataError(f"{folder} has no {split} data; expected {names} in it or in its sub-folders. It holds: {found}")


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8") as lines:
        try:
            number = 1
            if path.suffix == ".json":
                yield from enumerate(_listed(json.load(lines), path), 1)
                return
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}); expected one JSON object per line") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text ({error}); save the file as UTF-8") from error


def _listed(content: Any, path: Path) -> list[Any]:
    if not isinstance(content, list):
        raise DataError(f"{path} holds a {type(content).__name__}; expected a JSON list of objects, or a .jsonl file")
    return content


def _read_file(path: Path, task: str) -> list[Sample | SpanText]:
    samples, found = _read_rows(_rows(path), task, where=lambda number: f"{path}, line {number}")
    if not samples:
        raise DataError(f"{path} holds no rows; expected one JSON object per line")
    if found is not _INTENT or _has_choices(samples):
        return samples
    # The intents of the other split belong to the choices too: a small dev file need not show them all.
    siblings = [file for file in path.parent.glob("*.json*") if file != path and _is_split_file(file)]
    intents: set[str] = set()
    for file in siblings if _is_split_file(path) else ():
        intents |= {str(row["intent"]).replace("_", " ") for _, row in _rows(file) if "intent" in row}
    return _with_intents(samples, intents)


def _has_choices(samples: list[Sample | SpanText]) -> bool:
    return isinstance(samples[0], Sample) and samples[0].choices is not None


def _with_intents(samples: list[Sample | SpanText], others: set[str]) -> list[Sample | SpanText]:
    own = [sample for sample in samples if isinstance(sample, Sample)]
    return [*complete_intents(own, others | {sample.answer for sample in own})]


def _read_rows(rows: Iterable[tuple[int, Any]], task: str, where: Any) -> tuple[list[Sample | SpanText], Format | None]:
    samples: list[Sample | SpanText] = []
    expected: Format | None = None
    for number, row in rows:
        try:
            texts = is_text_row(row)
            if samples and texts != isinstance(samples[0], SpanText):
                raise DataError("plain text with spans and other rows stand in one file; split the data")
            if texts:
                samples.append(read_text_row(row, task, sample_id=str(number)))
                continue
            expected = expected or format_of(row)
            samples.append(read_row(row, expected, task, sample_id=str(number)))
        except DataError as error:
            raise DataError(f"{where(number)}: {error}") from error
    return samples, expected


def _hub_splits(name: str) -> list[str]:
    from datasets import get_dataset_split_names

    identifier, _, configuration = name.partition(":")
    with _hub_errors(name):
        return [str(split) for split in get_dataset_split_names(identifier, configuration or None)]


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # datasets raises many kinds: offline, missing, gated, several configurations
        raise DataError(
            f"{name!r} is no file or folder here, and loading it from the hub failed: {error}. Expected a path, or a "
            "hub data set owner/name[:configuration]; without a network, download the data and pass its path"
        ) from error


def _read_hub(name: str, split: Split) -> list[Sample | SpanText]:
    from datasets import load_dataset

    identifier, _, configuration = name.partition(":")
    available = _hub_splits(name)
    chosen = next((candidate for candidate in SPLIT_NAMES[split] if candidate in available), None)
    if chosen is None:
        raise DataError(f"{name} has no {split} split; it has {available}, expected one of {SPLIT_NAMES[split]}")
    with _hub_errors(name):
        rows = load_dataset(identifier, configuration or None, split=chosen)
    samples, found = _read_rows(enumerate(rows, 1), identifier.split("/")[-1], lambda number: f"{name}, row {number}")
    if not samples:
        raise DataError(f"{name} holds no rows in its split {chosen}")
    if found is _INTENT and not _has_choices(samples):
        return _with_intents(samples, set())
    return samples
