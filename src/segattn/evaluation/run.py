"""Score a model on tasks: resumable sample by sample, summed up per task."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segattn.data import DataError, Sample
from segattn.evaluation.choices import ChoiceResult, Progress, iterate_choices
from segattn.evaluation.likelihood import Attention
from segattn.evaluation.rows import RowFile
from segattn.evaluation.statistics import Interval, mean_interval, wilson_interval

__all__ = ["Evaluation", "TaskSummary", "average_accuracy", "evaluate", "model_fingerprint", "summarize"]


@dataclass(frozen=True)
class TaskSummary:
    """The results of one task, with 95 % intervals.

    Attributes:
        task: its name.
        samples: how many were scored.
        accuracy: how often the likeliest choice is the right one (Wilson interval); None without choices.
        accuracy_per_token: the same with log-likelihoods divided by the number of tokens.
        chance: what guessing gets.
        loss: nats per token of the right answer, mean over the samples (bootstrap interval).
    """

    task: str
    samples: int
    accuracy: Interval | None
    accuracy_per_token: Interval | None
    chance: float | None
    loss: Interval


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation: what was run, the summary of each task, the result of each sample in the given order."""

    settings: dict[str, Any]
    tasks: list[TaskSummary]
    results: list[ChoiceResult]

    def to_dict(self) -> dict[str, Any]:
        """Return settings and summaries as JSON types (the samples' results are in the rows file)."""
        average = average_accuracy(self.tasks)
        return {
            "settings": self.settings,
            "tasks": [asdict(task) for task in self.tasks],
            "average_accuracy": None if average is None else asdict(average),
        }


def evaluate(
    model: Any,
    segmenter: Any,
    samples: Sequence[Sample],
    *,
    attention: Attention = "segments",
    batch_size: int = 16,
    settings: Mapping[str, Any] | None = None,
    rows: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Rank the choices of every sample, and sum up per task.

    Args:
        model: enabled; it is put into eval mode.
        segmenter: decides what is a segment.
        attention: "segments", or "causal" to run the same model causally.
        batch_size: how many choices run at once.
        samples: of one task or several; without choices, only the loss of the right answer is measured.
        settings: what else makes results comparable (model, its fingerprint, ...); recorded in `rows`.
        rows: a file that keeps each result as it comes; samples that it holds already are not run again.
        progress: called with (samples done, samples in all).

    Raises:
        DataError: no samples, or two samples with the same task, id and content.
        SegmentAttentionError: `rows` holds results of other settings.
    """
    recorded = {**(settings or {}), "attention": attention, "policy": segmenter.policy}
    by_fingerprint = {sample.fingerprint: sample for sample in samples}
    if not samples or len(by_fingerprint) != len(samples):
        raise DataError(
            f"got {len(samples)} samples, {len(by_fingerprint)} of them different; expected at least one, each once "
            "(give repeated rows an id of their own)"
        )
    kept = RowFile(rows, recorded) if rows is not None else None
    results = {} if kept is None else {key: kept.results[key] for key in by_fingerprint if key in kept.results}
    missing = [sample for sample in samples if sample.fingerprint not in results]
    for _, result in iterate_choices(model, segmenter, missing, attention=attention, batch_size=batch_size):
        if kept is not None:
            kept.add(result)
        results[result.fingerprint] = result
        if progress is not None:
            progress(len(results), len(samples))
    ordered = [results[sample.fingerprint] for sample in samples]
    return Evaluation(recorded, summarize(ordered), ordered)


def summarize(results: Sequence[ChoiceResult]) -> list[TaskSummary]:
    """Sum results up per task, in the order in which tasks first appear."""
    tasks = dict.fromkeys(result.task for result in results)
    return [_summary(task, [result for result in results if result.task == task]) for task in tasks]


def _summary(task: str, results: Sequence[ChoiceResult]) -> TaskSummary:
    count = len(results)
    loss = mean_interval([result.loss for result in results])
    if any(len(result.choices) < 2 for result in results):
        return TaskSummary(task, count, None, None, None, loss)
    return TaskSummary(
        task=task,
        samples=count,
        accuracy=wilson_interval(sum(result.correct for result in results), count),
        accuracy_per_token=wilson_interval(sum(result.correct_per_token for result in results), count),
        chance=sum(1 / len(result.choices) for result in results) / count,
        loss=loss,
    )


def average_accuracy(tasks: Sequence[TaskSummary]) -> Interval | None:
    """Return the unweighted mean accuracy of several tasks; None with fewer than two, or one without choices.

    The interval is the normal one for a mean of independent proportions.
    """
    pairs = [(task.accuracy.value, task.samples) for task in tasks if task.accuracy is not None]
    if len(pairs) < 2 or len(pairs) < len(tasks):
        return None
    mean = sum(value for value, _ in pairs) / len(pairs)
    error = math.sqrt(sum(value * (1 - value) / count for value, count in pairs)) / len(pairs)
    return Interval(mean, max(0.0, mean - 1.96 * error), min(1.0, mean + 1.96 * error))


def model_fingerprint(path: str) -> list[list[Any]]:
    """Return name, size and time of a checkpoint's weight files: results of a model that was replaced do not mix."""
    folder = Path(path)
    if not folder.is_dir():
        return []
    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".gguf"))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
