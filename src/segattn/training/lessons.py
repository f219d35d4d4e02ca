"""From prompts to what is learned: encoded, checked, each once, and answered by the causal teacher."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from segattn.data import DataError, EncodedPrompt, EncodedSample, Encoder
from segattn.errors import LabelLeakError
from segattn.modeling import causal
from segattn.segments import CAUSAL, IGNORED_LABEL, check_labels
from segattn.training.adapt_settings import AdaptSettings
from segattn.training.prompts import Prompt
from segattn.training.teacher_answers import AnswerFile, end_tokens, generate_answers, prompt_key

if TYPE_CHECKING:
    from segattn.templates import Segmenter

__all__ = ["Lesson", "Lessons", "Progress", "answer_lessons", "collect_lessons", "rows_of"]

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with (what is done, how many are done, how many there are)."""


@dataclass(frozen=True)
class Lesson:
    """A prompt with its answer in tokens.

    Attributes:
        prompt: what the answer goes on from.
        row: prompt and answer, labels on the answer; None until the teacher has answered.
    """

    prompt: EncodedPrompt
    row: EncodedSample | None = None


@dataclass(frozen=True)
class Lessons:
    """What is trained on and what is kept apart; `dropped` prompts were too long, `repeated` ones came before."""

    train: list[Lesson]
    held_out: list[Lesson]
    dropped: int
    repeated: int


def collect_lessons(
    train: Iterable[Prompt], held_out: Iterable[Prompt] | None, segmenter: "Segmenter", settings: AdaptSettings
) -> Lessons:
    """Take as many prompts from a stream as the run needs, and encode them.

    Args:
        train: may be endless; no more is read than is used.
        held_out: a stream of its own; None takes the first ones of `train`.
        segmenter: its policy decides what is a segment.
        settings: how many, how long, and where answers come from.

    Raises:
        DataError: too few prompts, one over max_length, or one without the answer that is asked for.
        TemplateError: a chat template that refuses a prompt.
    """
    seen: set[str] = set()
    dropped: list[str] = []
    repeated: list[str] = []
    encoder = Encoder(segmenter)

    def encoded(prompts: Iterable[Prompt]) -> Iterator[Lesson]:
        for prompt in prompts:
            lesson = _lesson(prompt, encoder, settings)
            key = prompt_key(lesson.prompt)
            if _is_too_long(lesson, prompt, settings):
                dropped.append(prompt.where)
            elif key in seen:
                repeated.append(prompt.where)
            else:
                seen.add(key)
                yield lesson

    stream = encoded(train)
    kept_apart = list(itertools.islice(stream if held_out is None else encoded(held_out), settings.held_out))
    learned = list(itertools.islice(stream, settings.steps * settings.batch_size))
    if not learned or len(kept_apart) < min(settings.held_out, 1):
        raise DataError(
            f"{len(learned)} prompts to learn on and {len(kept_apart)} of {settings.held_out} to keep apart were left "
            f"({len(dropped)} too long, {len(repeated)} repeated); expected at least one of each: give more prompts, "
            "or set a smaller --held-out"
        )
    return Lessons(learned, kept_apart, len(dropped), len(repeated))


def _lesson(prompt: Prompt, encoder: Encoder, settings: AdaptSettings) -> Lesson:
    encoded = encoder.prompt(replace(prompt.sample, answer="-", choices=None, tool_calls=None), [])
    if settings.answers == "teacher":
        return Lesson(encoded)
    if not prompt.answered:
        raise DataError(
            f"{prompt.where} gives no answer, and --answers given learns on given ones; leave it out, so that the "
            "model answers itself"
        )
    row = encoder.encode(prompt.sample)
    try:
        check_labels(torch.tensor(row.segment_ids), torch.tensor(row.labels))
    except LabelLeakError as error:
        raise LabelLeakError(f"{prompt.where}: {error}") from error
    return Lesson(encoded, row)


def _is_too_long(lesson: Lesson, prompt: Prompt, settings: AdaptSettings) -> bool:
    # A given answer has its length; the teacher's may take all it is allowed. Students answer within it too.
    answered = len(lesson.prompt.input_ids) + settings.max_new_tokens
    length = max(answered, 0 if lesson.row is None else len(lesson.row.input_ids))
    if length <= settings.max_length:
        return False
    if settings.too_long == "error":
        raise DataError(
            f"{prompt.where} has {len(lesson.prompt.input_ids)} tokens, and with its answer up to {length}, over "
            f"max_length {settings.max_length}; raise --max-length, lower --max-new-tokens, or leave long prompts out "
            "with --too-long drop"
        )
    return True


def answer_lessons(
    model: Any,
    tokenizer: Any,
    lessons: Sequence[Lesson],
    file: AnswerFile,
    settings: AdaptSettings,
    progress: Progress,
) -> list[Lesson]:
    """Let the causal model answer the prompts that `file` holds no answer to; returns all, in the given order.

    Args:
        model: the base model, enabled, without an adapter.
        tokenizer: its tokenizer.
        lessons: their rows are replaced.
        file: keeps each batch as it comes, so that a run that was cut off goes on there.
        settings: how the teacher answers.
        progress: told after each batch.
    """
    missing = [lesson for lesson in lessons if prompt_key(lesson.prompt) not in file.answers]
    # Prompts of similar length together: less padding.
    missing.sort(key=lambda lesson: len(lesson.prompt.input_ids))
    model.eval()
    for start in range(0, len(missing), settings.answer_batch_size):
        prompts = [lesson.prompt for lesson in missing[start : start + settings.answer_batch_size]]
        with causal(model):
            answers = generate_answers(
                model,
                tokenizer,
                prompts,
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.answer_temperature,
                # Of the prompt, not of the place: a run that goes on samples what an unbroken one does.
                seed=settings.seed + int(prompt_key(prompts[0])[:12], 16),
            )
        for prompt, answer in zip(prompts, answers, strict=True):
            file.add(prompt, answer, tokenizer.decode(answer, skip_special_tokens=True))
        progress("answers", len(lessons) - len(missing) + start + len(prompts), len(lessons))
    _tell_unfinished(lessons, file, end_tokens(model, tokenizer))
    return [Lesson(lesson.prompt, _row(lesson.prompt, file.answers[prompt_key(lesson.prompt)])) for lesson in lessons]


def _row(prompt: EncodedPrompt, answer: list[int]) -> EncodedSample:
    """The very tokens that the model wrote: their text might be tokenized in another way."""
    return EncodedSample(
        [*prompt.input_ids, *answer],
        [IGNORED_LABEL] * len(prompt.input_ids) + answer,
        [*prompt.segment_ids, *[CAUSAL] * len(answer)],
    )


def _tell_unfinished(lessons: Sequence[Lesson], file: AnswerFile, ends: set[int]) -> None:
    cut = sum(file.answers[prompt_key(lesson.prompt)][-1] not in ends for lesson in lessons)
    if cut:
        logger.warning("%d of %d answers reached max_new_tokens before their end", cut, len(lessons))


def rows_of(lessons: Sequence[Lesson]) -> Any:
    """Return answered lessons as a datasets.Dataset with the columns input_ids, labels and segment_ids."""
    from datasets import Dataset

    rows = [lesson.row for lesson in lessons if lesson.row is not None]
    return Dataset.from_dict(
        {name: [getattr(row, name) for row in rows] for name in ("input_ids", "labels", "segment_ids")}
    )
