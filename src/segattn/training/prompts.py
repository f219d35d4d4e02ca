"""Prompts as a stream: from files that are read line by line, or from a hub data set that is never held whole.

Beside the formats of `segattn.data`, rows may hold a prompt alone: `{"prompt": text or messages}`, or
`{"messages": [...]}` whose last message is the user's.
"""

import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from segattn.data import DataError, Message, Sample, Split
from segattn.data.formats import format_of
from segattn.data.loading import SPLIT_NAMES, _files_of, _hub_errors, _hub_splits, _rows

__all__ = ["Prompt", "check_source", "iterate_prompts", "shuffled"]

Item = TypeVar("Item")

_PLACEHOLDER = "-"


@dataclass(frozen=True)
class Prompt:
    """Chat messages that await an answer.

    Attributes:
        sample: the messages, with tools where the row has some, and the answer of the row.
        answered: whether the row gives an answer; otherwise the sample's is a placeholder.
        where: the file and line, for error messages.
    """

    sample: Sample
    answered: bool = True
    where: str = "prompt"

    @classmethod
    def alone(cls, messages: Sequence[Message], where: str = "prompt") -> "Prompt":
        """Make a prompt without an answer; the last message is the user's (or a tool's).

        Raises:
            DataError: messages that no chat template renders as they were meant.
        """
        return cls(Sample(tuple(messages), _PLACEHOLDER), answered=False, where=where)


def iterate_prompts(source: str | os.PathLike[str], split: Split = "train") -> Iterator[Prompt]:
    """Read prompts one after the other.

    Args:
        source: a .jsonl file, a folder (see `segattn.data.load_samples`) or a hub data set, which is streamed.
        split: "train" or "dev"; a single file serves both.

    Yields:
        One prompt per row; rows of different formats may stand in one file.

    Raises:
        DataError: nothing there, or a bad row: names the file and the line.
    """
    check_source(source)
    path = Path(source)
    if not path.exists():
        yield from _hub_prompts(os.fspath(source), split)
        return
    for file in [path] if path.is_file() else [file for file, _ in _files_of(path, split)]:
        for number, row in _rows(file):
            yield _read(row, f"{file}, line {number}")


def check_source(source: str | os.PathLike[str]) -> None:
    """Refuse what is meant as a path and is none, before a hub is asked for it.

    Raises:
        DataError: says what was expected.
    """
    name = os.fspath(source)
    if Path(name).exists():
        return
    if name.endswith((".jsonl", ".json")) or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise DataError(
            f"{name} does not exist; expected a .jsonl file, a folder of them, a hub data set owner/name, or 'builtin'"
        )


def _hub_prompts(name: str, split: Split) -> Iterator[Prompt]:
    from datasets import load_dataset

    identifier, _, configuration = name.partition(":")
    available = _hub_splits(name)
    chosen = next((candidate for candidate in SPLIT_NAMES[split] if candidate in available), None)
    if chosen is None:
        raise DataError(f"{name} has no {split} split; it has {available}, expected one of {SPLIT_NAMES[split]}")
    with _hub_errors(name):
        rows = load_dataset(identifier, configuration or None, split=chosen, streaming=True)
    for number, row in enumerate(rows, 1):
        yield _read(row, f"{name}, row {number}")


def _read(row: Any, where: str) -> Prompt:
    try:
        completed = _completed(row)
        whole = row if completed is None else completed
        prompt = Prompt(format_of(whole).read(whole), completed is None, where)
        if not str(prompt.sample.messages[-1].get("content") or "").strip():
            raise DataError("the prompt is empty; expected a last message with a text")
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return prompt


def _completed(row: Any) -> dict[str, Any] | None:
    """A row that holds a prompt alone, with a placeholder for its answer; None for every other row."""
    if not isinstance(row, Mapping):
        return None
    if "prompt" in row and row.get("completion") is None:
        return {**row, "completion": _PLACEHOLDER}
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        return None
    if isinstance(messages[-1], Mapping) and messages[-1].get("role") != "assistant":
        return {**row, "messages": [*messages, {"role": "assistant", "content": _PLACEHOLDER}]}
    return None


def shuffled(items: Iterable[Item], buffer: int, seed: int) -> Iterator[Item]:
    """Mix a stream within a buffer of `buffer` items, always in the same way for one seed; 0 leaves the order."""
    if buffer < 2:
        yield from items
        return
    generator = random.Random(seed)
    held: list[Item] = []
    for item in items:
        if len(held) < buffer:
            held.append(item)
            continue
        place = generator.randrange(buffer)
        held[place], item = item, held[place]
        yield item
    generator.shuffle(held)
    yield from held
