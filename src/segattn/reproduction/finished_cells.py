"""Read the finished cells of sweeps: one model, data set, arm and seed each, a file under the run's folder `cells`.

What cannot be read is named and left out, never silently: each function returns notes beside what it found.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from segattn.reports.page import ReportError

__all__ = ["Cell", "Evaluated", "Names", "cell_files", "read_cells", "tuned_for"]

UNTUNED = "untuned"
_EVALUATION_KEYS = ("task", "attention", "scoring", "ids", "lengths", "correct")


class Names(NamedTuple):
    """What a cell is."""

    model: str
    data: str
    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.model}, {self.data}, {self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of a tuned model: one task, under one mask, scored one way.

    Attributes:
        task, attention, scoring: "segments" or "causal"; "likelihood" or "generation".
        ids: of the items; each once.
        lengths: prompt tokens of each item.
        correct: whether each was answered right.
        losses: nats per answer token of each; None where they were not measured.
        chance: what guessing gets; None where that has no meaning.
        seconds: it took; None if not recorded.
    """

    task: str
    attention: str
    scoring: str
    ids: tuple[str, ...]
    lengths: tuple[int, ...]
    correct: tuple[bool, ...]
    losses: tuple[float, ...] | None
    chance: float | None
    seconds: float | None


@dataclass(frozen=True)
class Cell:
    """A finished cell.

    Attributes:
        file: where it was read.
        names: what it is.
        settings: what the arm was trained with.
        training: steps, counts, curves; None for the model as it is.
        evaluations: under both masks; of a data set with several tasks also one of all their items together.
        attention_pattern: where the attention goes; None where it was not measured.
        environment: versions and machine.
        seconds: the cell took.
    """

    file: Path
    names: Names
    settings: dict[str, Any]
    training: dict[str, Any] | None
    evaluations: tuple[Evaluated, ...]
    attention_pattern: dict[str, Any] | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def own_mask(self) -> str:
        """The mask that the arm is tuned for; a model as it is, for the causal one."""
        return tuned_for(self.settings.get("trained_as", "causal" if self.names.arm == UNTUNED else "segments"))


def tuned_for(trained_as: str) -> str:
    """Return the mask that an arm is tuned for, of the setting "trained_as": mixed training is for segments."""
    return "causal" if trained_as == "causal" else "segments"


def cell_files(run: Path) -> list[Path]:
    """Return the cell files of a run's folder, sorted; none where it is no sweep."""
    return sorted(file for file in (run / "cells").glob("*.json") if not file.name.startswith("."))


def read_cells(runs: Sequence[Path]) -> tuple[list[Cell], list[str]]:
    """Read the cells of several runs as if they were one.

    Args:
        runs: folders of sweeps.

    Returns:
        The cells in the order of the folders and names, and a note for everything that was left out or is odd: files
        that cannot be read, the same cell found twice (the first is kept), seeds of one arm with different settings.

    Raises:
        ReportError: not one cell can be read.
    """
    cells: dict[Names, Cell] = {}
    notes = []
    for file in (file for run in runs for file in cell_files(run)):
        try:
            cell = _cell(file)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            notes.append(f"{file} was left out: {_reason(error)}")
            continue
        kept = cells.setdefault(cell.names, cell)
        if kept is not cell:
            notes.append(f"{file} was left out: {kept.file} is the same cell ({cell.names}) and came first")
    if not cells:
        listed = "; ".join(notes) or "there is no cells/*.json"
        raise ReportError(
            f"no finished cell in {', '.join(map(str, runs))} ({listed}); expected those of `segattn reproduce`. Run "
            "it again: it goes on where it was"
        )
    return list(cells.values()), notes + _mixed_settings(list(cells.values()))


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return f"{error or type(error).__name__}"


def _cell(file: Path) -> Cell:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"it is no complete JSON ({error})") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}; expected an object")
    names = content["names"]
    evaluations = tuple(_evaluated(one) for one in content["evaluations"])
    if not evaluations:
        raise ValueError("it has no evaluations")
    evaluations += _all_tasks(evaluations)
    return Cell(
        file=file,
        names=Names(str(names["model"]), str(names["data"]), str(names["arm"]), int(names["seed"])),
        settings=dict(content["settings"]),
        training=None if content["training"] is None else _training(content["training"]),
        evaluations=evaluations,
        attention_pattern=_attention(content.get("attention_pattern")),
        environment=dict(content.get("environment") or {}),
        seconds=content.get("seconds"),
    )


def _training(content: Mapping[str, Any]) -> dict[str, Any]:
    """Check what the curves are drawn from."""
    for point in content.get("curve") or []:
        float(point["step"]), float(point["loss"])
    for point in content.get("accuracy_curve") or []:
        float(point["step"])
        _answers(point["correct"])
    return dict(content)


def _attention(content: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if content is None:
        return None
    heads = {len(layer) for layer in content["ahead"]}
    if len(heads) != 1 or 0 in heads:
        raise ValueError(
            f"attention_pattern.ahead has layers of {sorted(heads)} heads; expected the same for each layer"
        )
    return dict(content)


def _evaluated(content: Mapping[str, Any]) -> Evaluated:
    missing = [name for name in _EVALUATION_KEYS if name not in content]
    if missing:
        raise ValueError(f"an evaluation lacks {', '.join(missing)}")
    ids = tuple(str(one) for one in content["ids"])
    losses = content.get("losses")
    counts = {len(ids), len(content["lengths"]), len(content["correct"])} | (
        {len(losses)} if losses is not None else set()
    )
    if len(counts) != 1 or len(set(ids)) != len(ids) or not ids:
        raise ValueError(
            f"an evaluation of {content['task']} has lists of {sorted(counts)} items, {len(set(ids))} different ids; "
            "expected the same number everywhere, and each id once"
        )
    return Evaluated(
        task=str(content["task"]),
        attention=str(content["attention"]),
        scoring=str(content["scoring"]),
        ids=ids,
        lengths=tuple(int(length) for length in content["lengths"]),
        correct=_answers(content["correct"]),
        losses=None if losses is None else tuple(float(loss) for loss in losses),
        chance=content.get("chance"),
        seconds=content.get("seconds"),
    )


def _all_tasks(evaluations: Sequence[Evaluated]) -> tuple[Evaluated, ...]:
    """The items of several tasks as if they were one, each item counting the same; nothing for a single task."""
    tasks = sorted({one.task for one in evaluations})
    groups: dict[tuple[str, str], list[Evaluated]] = {}
    for one in evaluations:
        groups.setdefault((one.attention, one.scoring), []).append(one)
    complete = {
        key: group for key, group in groups.items() if sorted(one.task for one in group) == tasks and len(tasks) > 1
    }
    return tuple(
        Evaluated(
            task=f"all {len(tasks)} tasks",
            attention=attention,
            scoring=scoring,
            ids=tuple(f"{one.task}/{name}" for one in group for name in one.ids),
            lengths=tuple(length for one in group for length in one.lengths),
            correct=tuple(answer for one in group for answer in one.correct),
            losses=_joined_losses(group),
            chance=_mean_chance(group),
            seconds=None,  # the tasks' own
        )
        for (attention, scoring), group in complete.items()
    )


def _joined_losses(group: Sequence[Evaluated]) -> tuple[float, ...] | None:
    if any(one.losses is None for one in group):
        return None
    return tuple(loss for one in group for loss in one.losses or ())


def _mean_chance(group: Sequence[Evaluated]) -> float | None:
    counts = [len(one.ids) for one in group]
    if any(one.chance is None for one in group):
        return None
    return sum((one.chance or 0.0) * count for one, count in zip(group, counts, strict=True)) / sum(counts)


def _answers(values: Sequence[Any]) -> tuple[bool, ...]:
    if any(value not in (0, 1) for value in values):
        raise ValueError("right and wrong answers are not all 0 or 1")
    return tuple(bool(value) for value in values)


def _mixed_settings(cells: Sequence[Cell]) -> list[str]:
    """Name arms whose seeds were not trained with the same settings: their mean mixes two things."""
    first: dict[tuple[str, str, str], Cell] = {}
    notes = []
    for cell in cells:
        model, data, arm, _ = cell.names
        other = first.setdefault((model, data, arm), cell)
        names = sorted({*cell.settings, *other.settings} - {"seed"})
        odd = [name for name in names if cell.settings.get(name) != other.settings.get(name)]
        if odd:
            notes.append(
                f"{cell.file} was trained with other settings than {other.file} ({', '.join(odd)}), and both are seeds "
                f"of {model}, {data}, {arm}: their mean mixes the two"
            )
    return notes
