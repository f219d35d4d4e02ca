"""How near a student comes to its causal teacher: token by token on given answers, and in its own greedy answers."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from segattn.data import EncodedPrompt
from segattn.modeling import causal
from segattn.segments import IGNORED_LABEL
from segattn.training.collator import SegmentCollator
from segattn.training.distillation import answer_logits, kl_divergence, teacher_logits
from segattn.training.lessons import Lesson, Progress
from segattn.training.teacher_answers import generate_answers

__all__ = ["Agreement", "greedy_answers", "measure_agreement"]

Attention = Literal["segments", "causal"]


@dataclass(frozen=True)
class Agreement:
    """One held-out prompt.

    Attributes:
        kl: KL(teacher || student), mean over the answer's tokens, in nats.
        top1: the share of the answer's tokens at which both hold the same next token the likeliest.
        loss: the student's own loss on the answer, nats per token.
        exact: whether both write the same greedy answer, to its end or to max_new_tokens.
        prefix: the share of the teacher's greedy answer before the first difference.
        tokens: of the answer that kl, top1 and loss are of.
    """

    kl: float
    top1: float
    loss: float
    exact: bool
    prefix: float
    tokens: int

    def to_dict(self) -> dict[str, float | bool | int]:
        """Return the fields, for JSON."""
        return asdict(self)


def measure_agreement(
    model: Any,
    tokenizer: Any,
    lessons: Sequence[Lesson],
    teacher_answers: Sequence[list[int]],
    *,
    adapter: bool,
    attention: Attention,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress,
    name: str = "agreement",
) -> list[Agreement]:
    """Compare a student with the teacher on answered prompts, without gradients, at temperature 1.

    Args:
        model: enabled and wrapped by PEFT; the teacher is the same model without its adapter, run causally.
        tokenizer: its tokenizer.
        lessons: answered.
        teacher_answers: the teacher's greedy answers, see `greedy_answers`.
        adapter: whether the student has the adapter.
        attention: how the student runs.
        max_new_tokens: as for the teacher's greedy answers.
        batch_size: how many prompts run at once.
        progress: told after each batch.
        name: what it is told that is measured.

    Returns:
        One per lesson, in the given order.
    """
    model.eval()
    found: dict[int, tuple[float, float, float, int]] = {}
    order = sorted(range(len(lessons)), key=lambda place: len(lessons[place].prompt.input_ids))
    own: dict[int, list[int]] = {}
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = [lessons[place] for place in places]
        found.update(zip(places, _compare(model, tokenizer, batch, adapter, attention), strict=True))
        prompts = [lesson.prompt for lesson in batch]
        with _student(model, adapter, attention):
            answers = generate_answers(model, tokenizer, prompts, max_new_tokens=max_new_tokens)
        own.update(zip(places, answers, strict=True))
        progress(name, start + len(batch), len(order))
    return [_agreement(found[place], teacher_answers[place], own[place]) for place in range(len(lessons))]


def greedy_answers(
    model: Any, tokenizer: Any, prompts: Sequence[EncodedPrompt], *, max_new_tokens: int, batch_size: int
) -> list[list[int]]:
    """Return the teacher's greedy answers, in the given order; `model` as for `measure_agreement`."""
    model.eval()
    answers: list[list[int]] = []
    with _student(model, False, "causal"):
        for start in range(0, len(prompts), batch_size):
            answers += generate_answers(
                model, tokenizer, prompts[start : start + batch_size], max_new_tokens=max_new_tokens
            )
    return answers


@contextmanager
def _student(model: Any, adapter: bool, attention: Attention) -> Iterator[None]:
    masked: AbstractContextManager[None] = causal(model) if attention == "causal" else nullcontext()
    with masked, nullcontext() if adapter else model.disable_adapter():
        yield


def _compare(
    model: Any, tokenizer: Any, lessons: Sequence[Lesson], adapter: bool, attention: Attention
) -> list[tuple[float, float, float, int]]:
    """Per lesson (KL, top-1 agreement, loss, answer tokens)."""
    rows = [lesson.row for lesson in lessons if lesson.row is not None]
    collate = SegmentCollator(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)
    batch = {name: tensor.to(model.device) for name, tensor in collate([vars(row) for row in rows]).items()}
    teacher = teacher_logits(model, batch)
    with torch.no_grad(), _student(model, adapter, attention):
        student = answer_logits(model, batch)
    kl = kl_divergence(student, teacher).double()
    same = (student.argmax(-1) == teacher.argmax(-1)).double()
    later = batch["labels"][:, 1:]
    chosen = later[later != IGNORED_LABEL]
    loss = -student.log_softmax(-1).gather(-1, chosen[:, None]).squeeze(-1).double()
    counts = (later != IGNORED_LABEL).sum(-1).tolist()
    per_row = zip(kl.split(counts), same.split(counts), loss.split(counts), counts, strict=True)
    return [(float(a.mean()), float(b.mean()), float(c.mean()), count) for a, b, c, count in per_row]


def _agreement(numbers: tuple[float, float, float, int], teacher: list[int], own: list[int]) -> Agreement:
    kl, top1, loss, tokens = numbers
    same = next((place for place, pair in enumerate(zip(teacher, own, strict=False)) if pair[0] != pair[1]), None)
    shared = min(len(teacher), len(own)) if same is None else same
    return Agreement(kl, top1, loss, teacher == own, shared / len(teacher), tokens)
