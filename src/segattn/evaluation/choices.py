"""Which of the given answers a model finds likeliest, and how likely the right one."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from segattn.data import DataError, Sample
from segattn.evaluation.likelihood import Attention, ScoredSample, score_answers

__all__ = ["AnswerLoss", "ChoiceResult", "answer_loss", "iterate_choices", "rank_choices"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ChoiceResult:
    """One sample, answered.

    Attributes:
        task, id, fingerprint: of the sample.
        choices: what there was to choose from; the right answer alone where the sample has no choices.
        answer: the place of the right one in `choices`.
        log_likelihoods: of each choice given the prompt: summed over its tokens, end marker included, in nats.
        tokens: of each choice.
    """

    task: str
    id: str
    fingerprint: str
    choices: tuple[str, ...]
    answer: int
    log_likelihoods: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def per_token(self) -> tuple[float, ...]:
        """The mean log-likelihood of a token, per choice."""
        return tuple(total / count for total, count in zip(self.log_likelihoods, self.tokens, strict=True))

    @property
    def predicted(self) -> int:
        """The place of the likeliest choice; the first of equals."""
        return _argmax(self.log_likelihoods)

    @property
    def predicted_per_token(self) -> int:
        """The place of the choice whose tokens are likeliest on average."""
        return _argmax(self.per_token)

    @property
    def correct(self) -> bool:
        """Whether the likeliest choice is the right one."""
        return self.predicted == self.answer

    @property
    def correct_per_token(self) -> bool:
        """Whether the choice with the likeliest tokens is the right one."""
        return self.predicted_per_token == self.answer

    @property
    def loss(self) -> float:
        """The loss of the right answer, in nats per token."""
        return -self.per_token[self.answer]


@dataclass(frozen=True)
class AnswerLoss:
    """How unlikely a model finds the right answers.

    Attributes:
        mean: nats per answer token, over all tokens of all samples, as a training loss is.
        per_sample: nats per answer token of each sample, in the given order: for paired comparisons.
        tokens: of each answer, end marker included.
    """

    mean: float
    per_sample: tuple[float, ...]
    tokens: tuple[int, ...]


def rank_choices(
    model: Any,
    segmenter: Any,
    samples: Sequence[Sample],
    *,
    attention: Attention = "segments",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> list[ChoiceResult]:
    """Compute the log-likelihood of every choice of every sample.

    A choice is scored as the assistant's message: its content and end marker, as the chat template writes them after
    the generation prompt. Its tokens are causal; the prompt's segments come from the prompt's tokens. A prompt runs
    once, and its choices go on from its cache, so many labels cost little more than one.

    Args:
        model: enabled (`segattn.enable`), with or without an adapter. It is put into eval mode.
        segmenter: decides what is a segment, whatever segmenter the model itself was enabled with.
        samples: each with `choices`.
        attention: "segments", or "causal" to run the same model causally.
        batch_size: how many choices run at once.
        progress: called with (samples done, samples in all).

    Returns:
        One result per sample, in the given order.

    Raises:
        DataError: a sample without choices, or one whose prompt cannot be encoded.
        UnsupportedModelError: the model is not enabled.
    """
    without = next((sample for sample in samples if sample.choices is None), None)
    if without is not None:
        raise DataError(
            f"sample {without.id!r} of {without.task!r} has no choices to rank; give the rows a list `choices`, or use "
            "answer_loss"
        )
    found: dict[int, ChoiceResult] = {}
    for position, result in iterate_choices(model, segmenter, samples, attention=attention, batch_size=batch_size):
        found[position] = result
        if progress is not None:
            progress(len(found), len(samples))
    return [found[position] for position in range(len(samples))]


def iterate_choices(
    model: Any, segmenter: Any, samples: Sequence[Sample], *, attention: Attention = "segments", batch_size: int = 16
) -> Iterator[tuple[int, ChoiceResult]]:
    """Yield (place of the sample, result) as they come; a sample without choices has its answer alone."""
    model.eval()
    choices = [sample.choices or (sample.answer,) for sample in samples]
    for scored in score_answers(model, segmenter, samples, choices, attention=attention, batch_size=batch_size):
        yield scored.position, _result(samples[scored.position], choices[scored.position], scored)


def answer_loss(
    model: Any, segmenter: Any, samples: Sequence[Sample], *, attention: Attention = "segments", batch_size: int = 16
) -> AnswerLoss:
    """Compute the loss of the right answers; see `rank_choices` for the arguments. Choices do not matter.

    Raises:
        DataError: no samples, or one whose prompt cannot be encoded.
        UnsupportedModelError: the model is not enabled.
    """
    if not samples:
        raise DataError("there are no samples to score")
    model.eval()
    answers = [(sample.answer,) for sample in samples]
    scored = sorted(
        score_answers(model, segmenter, samples, answers, attention=attention, batch_size=batch_size),
        key=lambda result: result.position,
    )
    total = math.fsum(result.log_likelihoods[0] for result in scored)
    tokens = tuple(result.tokens[0] for result in scored)
    return AnswerLoss(
        mean=-total / sum(tokens),
        per_sample=tuple(-result.log_likelihoods[0] / result.tokens[0] for result in scored),
        tokens=tokens,
    )


def _result(sample: Sample, choices: tuple[str, ...], scored: ScoredSample) -> ChoiceResult:
    return ChoiceResult(
        task=sample.task,
        id=sample.id,
        fingerprint=sample.fingerprint,
        choices=choices,
        answer=choices.index(sample.answer),
        log_likelihoods=scored.log_likelihoods,
        tokens=scored.tokens,
    )


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda place: values[place])
