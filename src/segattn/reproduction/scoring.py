"""Score a tuned model on a task, under one mask, by likelihood or by what it writes."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from segattn.data import Encoder, Sample
from segattn.evaluation.choices import ChoiceResult, iterate_choices
from segattn.evaluation.likelihood import Attention, running
from segattn.reproduction.answers import is_right
from segattn.training.teacher_answers import generate_answers

__all__ = ["answered_rightly", "evaluate_task", "scorings_of"]


def scorings_of(items: Sequence[Sample], scoring: Sequence[str]) -> list[str]:
    """Return how a task is scored: items without choices can only be answered."""
    return list(scoring) if all(item.choices for item in items) else ["generation"]


def evaluate_task(
    model: Any,
    segmenter: Any,
    items: Sequence[Sample],
    *,
    attention: Attention,
    scoring: str,
    batch_size: int,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Score the items of one task.

    Args:
        model: enabled; put into eval mode.
        segmenter: decides what is a segment.
        items: of one task.
        attention: the mask to run under.
        scoring: "likelihood" ranks the choices; "generation" reads the greedy answer, and measures the loss of the
            right one where there are no choices.
        batch_size: answers at once.
        max_new_tokens: of a written answer.

    Returns:
        An evaluation as cells hold them: see `segattn.reproduction.cell`.
    """
    start = time.perf_counter()
    encoder = Encoder(segmenter)
    losses: list[float] | None = None
    if scoring == "likelihood" or not all(item.choices for item in items):
        ranked = _ranked(model, segmenter, items, attention, batch_size)
        losses = [round(one.loss, 5) for one in ranked]
    if scoring == "likelihood":
        correct = [one.correct for one in ranked]
    else:
        correct = answered_rightly(
            model, segmenter, items, attention=attention, batch_size=batch_size, max_new_tokens=max_new_tokens
        )
    has_choices = all(item.choices for item in items)
    return {
        "task": items[0].task,
        "attention": attention,
        "scoring": scoring,
        "ids": [item.id for item in items],
        "lengths": [len(encoder.prompt(item, []).input_ids) for item in items],
        "correct": [int(right) for right in correct],
        "losses": losses,
        "chance": sum(1 / len(item.choices or ()) for item in items) / len(items) if has_choices else None,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _ranked(
    model: Any, segmenter: Any, items: Sequence[Sample], attention: Attention, batch_size: int
) -> list[ChoiceResult]:
    found = dict(iterate_choices(model, segmenter, items, attention=attention, batch_size=batch_size))
    return [found[place] for place in range(len(items))]


def answered_rightly(
    model: Any,
    segmenter: Any,
    items: Sequence[Sample],
    *,
    attention: Attention,
    batch_size: int,
    max_new_tokens: int,
) -> list[bool]:
    """Answer each item greedily and tell whether the answer is right; prompts of like length run together."""
    model.eval()
    encoder = Encoder(segmenter)
    prompts = [encoder.prompt(item, []) for item in items]
    order = sorted(range(len(items)), key=lambda place: len(prompts[place].input_ids))
    right = [False] * len(items)
    context: AbstractContextManager[None] = running(model, attention)
    with context, torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            answers = generate_answers(
                model, encoder.tokenizer, [prompts[place] for place in batch], max_new_tokens=max_new_tokens
            )
            texts = encoder.tokenizer.batch_decode(answers, skip_special_tokens=True)
            for place, text in zip(batch, texts, strict=True):
                right[place] = is_right(text, items[place])
    return right
