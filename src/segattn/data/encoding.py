"""Samples as token ids, labels and segment ids, through the chat template that inference uses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segattn.data.samples import DataError, Message, Sample
from segattn.errors import TemplateError
from segattn.segments import IGNORED_LABEL

if TYPE_CHECKING:
    from segattn.templates import Segmenter

__all__ = ["EncodedPrompt", "EncodedSample", "Encoder"]


@dataclass(frozen=True)
class EncodedSample:
    """A whole conversation: one row to train on. All three lists have the same length."""

    input_ids: list[int]
    labels: list[int]
    segment_ids: list[int]


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt, generation prompt included, and the tokens of answers that may follow it."""

    input_ids: list[int]
    segment_ids: list[int]
    answers: list[list[int]]


class Encoder:
    """Turns samples into tokens with one segmenter.

    The tokens of an answer are those of the assistant message's content and of its end marker: from the end of the
    generation prompt to the last special token before the next message. A line break that a template writes after
    the end marker is not part of it, for generation stops at the marker.

    Attributes:
        tokenizer: the segmenter's.

    Raises:
        TemplateError: the segmenter has no tokenizer.
    """

    def __init__(self, segmenter: "Segmenter") -> None:
        self.segmenter = segmenter
        self.tokenizer = _tokenizer_of(segmenter)
        self._special = frozenset(self.tokenizer.all_special_ids) | _added_special_ids(self.tokenizer)
        # Where an answer ends is told by the next message's segment, which a causal segmentation does not show.
        self._turns = segmenter.with_policy("turns") if segmenter.policy == "causal" else segmenter
        self._answer_cache: dict[tuple[Any, ...], list[int]] = {}

    @property
    def pad_token_id(self) -> int:
        """The id that fills padding; what it is does not matter, the attention mask hides it."""
        candidates = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(int(token) for token in candidates if token is not None)

    def encode(self, sample: Sample) -> EncodedSample:
        """Encode prompt and answer, with labels on the answer (and earlier ones where `sample.learn` is "all").

        Raises:
            DataError: the prompt's tokens are not the beginning of the conversation's tokens.
        """
        conversation = [*sample.messages, _assistant(sample.answer)]
        ids, segment_ids = self._render(conversation, generation_prompt=False)
        last = len(conversation) - 1
        turns = [
            number
            for number, message in enumerate(conversation)
            if message["role"] == "assistant" and (number == last or (sample.learn == "all" and number > 0))
        ]
        labels = [IGNORED_LABEL] * len(ids)
        boundaries = self._segment_starts(ids)
        for number in turns:
            prompt, _ = self._render(conversation[:number], generation_prompt=True)
            start = _prefix_length(prompt, ids, sample)
            end = self._answer_end(ids, start, boundaries)
            labels[start:end] = ids[start:end]
        return EncodedSample(ids, labels, segment_ids)

    def prompt(self, sample: Sample, answers: Sequence[str]) -> EncodedPrompt:
        """Encode the prompt and the candidate answers that may follow it.

        Raises:
            DataError: see `encode`.
        """
        ids, segment_ids = self._render(sample.messages, generation_prompt=True)
        return EncodedPrompt(ids, segment_ids, [self._answer(sample, ids, answer) for answer in answers])

    def _answer(self, sample: Sample, prompt: list[int], answer: str) -> list[int]:
        # Tokenizers split at special tokens first: what stands before the last one cannot change the answer's tokens.
        # So candidates that many prompts share are rendered once.
        header = next((n for n in range(1, len(prompt) + 1) if prompt[-n] in self._special), len(prompt))
        key = (tuple(prompt[-header:]), tuple(message["role"] for message in sample.messages), answer)
        if key not in self._answer_cache:
            ids, _ = self._render([*sample.messages, _assistant(answer)], generation_prompt=False)
            start = _prefix_length(prompt, ids, sample)
            self._answer_cache[key] = ids[start : self._answer_end(ids, start, [])]
        return self._answer_cache[key]

    def _render(self, messages: Sequence[Message], *, generation_prompt: bool) -> tuple[list[int], list[int]]:
        batch = self.segmenter.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=generation_prompt
        )
        return [int(token) for token in batch["input_ids"]], [int(number) for number in batch["segment_ids"]]

    def _segment_starts(self, ids: list[int]) -> list[int]:
        return [start for start, _ in self._turns.spans(ids)]

    def _answer_end(self, ids: list[int], start: int, boundaries: list[int]) -> int:
        end = next((boundary for boundary in boundaries if boundary >= start), len(ids))
        marker = next((position for position in range(end - 1, start - 1, -1) if ids[position] in self._special), None)
        return end if marker is None else marker + 1


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _prefix_length(prompt: list[int], ids: list[int], sample: Sample) -> int:
    if len(prompt) >= len(ids) or ids[: len(prompt)] != prompt:
        differing = next((n for n, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), len(prompt))
        raise DataError(
            f"sample {sample.id!r} of {sample.task!r}: the chat template renders the prompt differently once the "
            f"answer follows (first difference at token {differing} of {len(prompt)}), so what is trained would not be "
            "what is asked at inference. Use a template whose generation prompt is a prefix of the conversation"
        )
    return len(prompt)


def _added_special_ids(tokenizer: Any) -> frozenset[int]:
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(number for number, token in added.items() if token.special)


def _tokenizer_of(segmenter: "Segmenter") -> Any:
    if segmenter.tokenizer is None:
        raise TemplateError(
            "this Segmenter has no tokenizer, it was read from a dict; expected one with which samples can be encoded: "
            "Segmenter.from_dict(data, tokenizer=tokenizer)"
        )
    return segmenter.tokenizer
