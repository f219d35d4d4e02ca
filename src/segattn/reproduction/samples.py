"""The samples of a cell: what is trained on, in the order of its seed, and what all cells of a data set answer."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segattn.data import DataError, Sample, load_samples
from segattn.reproduction.settings import DataSettings

__all__ = ["SweepData", "load_sweep_data"]

# Which items are scored does not depend on a cell's seed: results are compared item by item.
_ITEMS_SEED = 0


@dataclass(frozen=True)
class SweepData:
    """The samples of one data set.

    Attributes:
        train: all of the training split, in file order.
        test: the scored items of each task.
        curve: items for the learning curves, from the scored ones, tasks in turn.
    """

    train: list[Sample]
    test: list[Sample]
    curve: list[Sample]

    def shuffled(self, seed: int, count: int | None) -> list[Sample]:
        """Return the training samples of a seed, at most `count` of them."""
        order = list(self.train)
        random.Random(seed).shuffle(order)
        return order[:count]


def load_sweep_data(settings: DataSettings, folder: Path | None = None) -> SweepData:
    """Load the samples of a data set.

    Args:
        settings: which data, and what is done to prompts.
        folder: where relative paths are looked up first.

    Raises:
        DataError: data that cannot be read, tasks that are not there, or a question that cannot be moved.
    """
    train = _load(settings.train_path or settings.path, "train", folder)
    everything = _load(settings.test_path or settings.path, "dev", folder)
    tasks = list(dict.fromkeys(sample.task for sample in everything))
    missing = [task for task in settings.tasks or () if task not in tasks]
    if missing:
        raise DataError(f"{settings.path} has no test data for {', '.join(missing)}; it has {', '.join(tasks)}")
    test = []
    for task in settings.tasks or tasks:
        items = [sample for sample in everything if sample.task == task]
        if settings.test_items is not None and settings.test_items < len(items):
            items = random.Random(_ITEMS_SEED).sample(items, settings.test_items)
        test.append([_prepared(sample, settings) for sample in items])
    return SweepData(
        train=[_prepared(sample, settings) for sample in train],
        test=[sample for items in test for sample in items],
        curve=_in_turn(test)[: settings.curve_items],
    )


def _load(path: str, split: str, folder: Path | None) -> list[Sample]:
    found = folder / path if folder is not None and (folder / path).exists() else path
    return load_samples(str(found), split)  # type: ignore[arg-type]


def _in_turn(groups: Sequence[Sequence[Sample]]) -> list[Sample]:
    longest = max(map(len, groups))
    return [group[place] for place in range(longest) for group in groups if place < len(group)]


def _prepared(sample: Sample, settings: DataSettings) -> Sample:
    messages = [dict(message) for message in sample.messages]
    if settings.question_first:
        # The formats put a question after its passage, behind a blank line; a question is one paragraph.
        passage, blank, question = messages[-1]["content"].rpartition("\n\n")
        if not blank:
            raise DataError(
                f"sample {sample.id!r} of {sample.task!r} has one paragraph; expected a passage and a question "
                "(question_first)"
            )
        messages[-1]["content"] = f"{question}\n\n{passage}"
    if settings.system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": settings.system})
    return replace(sample, messages=tuple(messages))
