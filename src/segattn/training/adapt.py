"""Conversion without labels: a causal chat model becomes a segment model by learning from its own causal answers."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segattn.data import has_split
from segattn.errors import UnsupportedModelError
from segattn.training.adapt_result import AdaptResult, take_folder, write_result
from segattn.training.adapt_settings import BUILTIN_PROMPTS, AdaptSettings
from segattn.training.adapter_training import train_adapter
from segattn.training.agreement import Agreement, greedy_answers, measure_agreement
from segattn.training.base_model import load_base
from segattn.training.distillation import DistillationTrainer
from segattn.training.lessons import Lesson, Lessons, Progress, answer_lessons, collect_lessons
from segattn.training.plain_prompts import plain_prompts
from segattn.training.prompts import Prompt, check_source, iterate_prompts, shuffled
from segattn.training.teacher_answers import AnswerFile
from segattn.training.trackers import check_trackers
from segattn.training.trainer import SegmentSFTTrainer

__all__ = ["adapt"]

ANSWERS_FILE = "answers.jsonl"


def adapt(
    settings: AdaptSettings,
    *,
    prompts: Iterable[Prompt] | None = None,
    held_out: Iterable[Prompt] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> AdaptResult:
    """Convert a causal chat model, save the adapter, and measure on held-out prompts what it is worth.

    One model is in memory: without its adapter and causally it is the teacher, with both it is the student. With
    `compare_sft` the base is loaded a second time at the end.

    Args:
        settings: model, prompts, training and measurement.
        prompts: in place of `settings.prompts`; may be endless.
        held_out: in place of its dev split.
        resume: go on with the answers and the last checkpoint of `settings.output_dir`.
        progress: told how far answers and measurements are.

    Returns:
        The result, which is also written to output_dir as adapt_result.json.

    Raises:
        DataError: prompts that cannot be used; an output folder of other settings.
        TemplateError: the tokenizer has no chat template, or one that cannot be read.
        UnsupportedModelError: a model that cannot follow segments, or was tuned with them already; several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UnsupportedModelError(
            "adapt runs in one process on one device, for the teacher's answers are written by one; start it without a "
            "launcher"
        )
    check_trackers(settings.report_to)
    told: Progress = progress or _tell_nobody
    seconds: dict[str, float] = {}
    folder = Path(settings.output_dir)
    with _timed(seconds, "load"):
        network, tokenizer, segmenter = load_base(settings)
    if prompts is None:
        prompts, held_out = _streams(settings)
    with _timed(seconds, "prompts"):
        lessons = collect_lessons(prompts, held_out, segmenter, settings)
    take_folder(folder, settings, resume)
    with _timed(seconds, "answers"):
        lessons = _answered(lessons, network, tokenizer, settings, folder, told)
    with _timed(seconds, "train"):
        trainer, interrupted = train_adapter(DistillationTrainer, settings, folder, network, tokenizer, lessons, resume)
    tuned = trainer.model
    measured: dict[str, list[Agreement]] = {}
    if not interrupted and lessons.held_out:
        students = {"base, causal": False, "base, segments": False, "adapted, segments": True, "adapted, causal": True}
        with _timed(seconds, "measure"):
            measured = _measure(students, tuned, tokenizer, lessons.held_out, settings, told)
    if not interrupted and settings.compare_sft:
        interrupted = _compare_sft(settings, folder / "sft", lessons, resume, measured, seconds, told)
    result = _result(settings, trainer, lessons, measured, seconds, interrupted, segmenter)
    write_result(result, settings)
    return result


def _tell_nobody(what: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - start, 1)


def _streams(settings: AdaptSettings) -> tuple[Iterator[Prompt], Iterator[Prompt] | None]:
    """The prompts to learn on and, where the source has some, those to keep apart."""
    source, seed = settings.prompts, settings.seed
    if source == BUILTIN_PROMPTS:
        # Endless, and mixed already. Held-out ones do not depend on the seed: runs can be compared.
        return plain_prompts("train", seed), plain_prompts("dev")
    check_source(source)
    dev = has_split(source, "dev") if settings.held_out else False
    held_out = shuffled(iterate_prompts(source, "dev"), settings.shuffle, 0) if dev else None
    return shuffled(iterate_prompts(source, "train"), settings.shuffle, seed), held_out


def _answered(
    lessons: Lessons, network: Any, tokenizer: Any, settings: AdaptSettings, folder: Path, progress: Progress
) -> Lessons:
    if settings.answers == "given":
        return lessons
    names = ("model", "max_new_tokens", "answer_temperature", "seed")
    made_with = {name: settings.to_dict()[name] for name in names}
    file = AnswerFile(folder / ANSWERS_FILE, {**made_with, "dtype": settings.weights_dtype})
    # Held-out prompts first: in a run that is cut off they are there at least.
    every = answer_lessons(network, tokenizer, [*lessons.held_out, *lessons.train], file, settings, progress)
    kept = len(lessons.held_out)
    return Lessons(every[kept:], every[:kept], lessons.dropped, lessons.repeated)


def _measure(
    students: dict[str, bool],
    model: Any,
    tokenizer: Any,
    lessons: list[Lesson],
    settings: AdaptSettings,
    progress: Progress,
) -> dict[str, list[Agreement]]:
    """Measure students, given as name (which ends with the mask it runs under) -> whether with the adapter."""
    size, length = settings.answer_batch_size, settings.max_new_tokens
    prompts = [lesson.prompt for lesson in lessons]
    teacher = greedy_answers(model, tokenizer, prompts, max_new_tokens=length, batch_size=size)
    return {
        name: measure_agreement(
            model,
            tokenizer,
            lessons,
            teacher,
            adapter=adapter,
            attention="causal" if name.endswith("causal") else "segments",
            max_new_tokens=length,
            batch_size=size,
            progress=progress,
            name=name,
        )
        for name, adapter in students.items()
    }


def _compare_sft(
    settings: AdaptSettings,
    folder: Path,
    lessons: Lessons,
    resume: bool,
    measured: dict[str, list[Agreement]],
    seconds: dict[str, float],
    progress: Progress,
) -> bool:
    """Tune a second adapter on the same rows with the plain loss, and measure it; returns whether it was cut off."""
    network, tokenizer, _ = load_base(settings)
    with _timed(seconds, "train sft"):
        trainer, interrupted = train_adapter(SegmentSFTTrainer, settings, folder, network, tokenizer, lessons, resume)
    if not interrupted and lessons.held_out:
        students = {"sft, segments": True, "sft, causal": True}
        with _timed(seconds, "measure sft"):
            measured.update(_measure(students, trainer.model, tokenizer, lessons.held_out, settings, progress))
    return interrupted


def _result(
    settings: AdaptSettings,
    trainer: SegmentSFTTrainer,
    lessons: Lessons,
    measured: dict[str, list[Agreement]],
    seconds: dict[str, float],
    interrupted: bool,
    segmenter: Any,
) -> AdaptResult:
    history: list[dict[str, Any]] = trainer.state.log_history
    rows = [lesson.row for lesson in lessons.train if lesson.row is not None]
    return AdaptResult(
        output_dir=settings.output_dir,
        steps=trainer.state.global_step,
        interrupted=interrupted,
        prompts=len(lessons.train),
        dropped=lessons.dropped,
        repeated=lessons.repeated,
        answer_tokens=sum(label >= 0 for row in rows for label in row.labels),
        curve=[(log["step"], log["eval_loss"]) for log in history if "eval_loss" in log],
        train_losses=[(log["step"], log["loss"]) for log in history if "loss" in log],
        held_out=measured,
        adapter_bytes=(Path(settings.output_dir) / "adapter_model.safetensors").stat().st_size,
        seconds=seconds,
        model=trainer.model,
        segmenter=segmenter,
    )
