"""Samples as token ids, labels and segment ids, through the chat template that inference uses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segattn.data.samples import DataError, Message, Sample
from segattn.errors import TemplateError
from segattn.segments import CAUSAL, IGNORED_LABEL
from segattn.templates.markers import Marker, MarkerTable

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
        rewritten: how many encoded answers the template begins otherwise than its generation prompt.

    Raises:
        TemplateError: the segmenter has no tokenizer.
    """

    def __init__(self, segmenter: "Segmenter") -> None:
        self.segmenter = segmenter
        self.tokenizer = _tokenizer_of(segmenter)
        self.rewritten = 0
        self._special = frozenset(self.tokenizer.all_special_ids) | _added_special_ids(self.tokenizer)
        # Where a message begins is told by its marker, also where a causal segmentation shows no segments.
        self._markers = MarkerTable.from_dict(segmenter.to_dict())
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
        conversation = sample.conversation
        ids = self.token_ids(sample)
        last = len(conversation) - 1
        turns = [
            number
            for number, message in enumerate(conversation)
            if message["role"] == "assistant" and (number == last or (sample.learn == "all" and number > 0))
        ]
        labels = [IGNORED_LABEL] * len(ids)
        for number in reversed(turns):  # so that what stands before a turn is still as the template writes it
            prompt = self._render(sample, conversation[:number], generation_prompt=True)
            ids, labels, start = self._join(prompt, ids, labels, sample)
            end = self._answer_end(ids, start)
            labels[start:end] = ids[start:end]
        return EncodedSample(ids, labels, self.segment_ids(ids))

    def token_ids(self, sample: Sample) -> list[int]:
        """Return the tokens of a whole conversation as the chat template renders it."""
        return self._render(sample, sample.conversation, generation_prompt=False)

    def prompt(self, sample: Sample, answers: Sequence[str]) -> EncodedPrompt:
        """Encode the prompt and the candidate answers that may follow it.

        Raises:
            DataError: see `encode`; or the sample's answer calls tools, which no candidate text does.
        """
        if sample.tool_calls:
            raise DataError(
                f"sample {sample.id!r} of {sample.task!r}: its answer calls tools; expected an answer of text, for "
                "candidates are compared as texts. Such samples can be trained on"
            )
        ids = self._render(sample, sample.messages, generation_prompt=True)
        return EncodedPrompt(ids, self.segment_ids(ids), [self._answer(sample, ids, answer) for answer in answers])

    def content_spans(self, sample: Sample) -> list[tuple[int, int]]:
        """Return where the contents of the prompt's messages lie in the tokens of the whole conversation.

        What changes with a message's content is its content; header and end marker do not. A message that the template
        leaves out, or whose content is a single token, has no span.

        Returns:
            (start, end) pairs, end exclusive, ascending and disjoint; answers are not among them.
        """
        ids = self.token_ids(sample)
        found: list[tuple[int, int]] = []
        for number, message in enumerate(sample.messages):
            if message["role"] == "assistant" or not message.get("content"):
                continue
            before, after = len(ids), len(ids)
            for word in _OTHER_CONTENTS:
                changed = list(sample.conversation)
                changed[number] = {**message, "content": word}
                other = self._render(sample, changed, generation_prompt=False)
                before, after = min(before, _shared(ids, other)), min(after, _shared(ids[::-1], other[::-1]))
            if before + 1 < len(ids) - after and before >= (found[-1][1] if found else 0):
                found.append((before, len(ids) - after))
        return found

    def markers(self, ids: Sequence[int]) -> list[Marker]:
        """Return the template's markers in the order in which they stand in a row."""
        return [event.marker for event in self._markers.events(ids)]

    def _answer(self, sample: Sample, prompt: list[int], answer: str) -> list[int]:
        # Tokenizers split at special tokens first: what stands before the last one cannot change the answer's tokens.
        # So candidates that many prompts share are rendered once.
        header = next((n for n in range(1, len(prompt) + 1) if prompt[-n] in self._special), len(prompt))
        key = (tuple(prompt[-header:]), tuple(message["role"] for message in sample.messages), answer)
        if key not in self._answer_cache:
            conversation = (*sample.messages, {"role": "assistant", "content": answer})
            ids = self._render(sample, conversation, generation_prompt=False)
            shared = _shared(prompt, ids)
            taken = 0 if shared == len(prompt) < len(ids) else self._same_text(prompt[shared:], ids[shared:])
            if taken is None:
                raise _rewritten(prompt, ids, sample)
            self._answer_cache[key] = ids[shared + taken : self._answer_end(ids, shared + taken)]
        return self._answer_cache[key]

    def _render(self, sample: Sample, messages: Sequence[Message], *, generation_prompt: bool) -> list[int]:
        batch = self.segmenter.apply_chat_template(
            [dict(message) for message in messages],
            tools=None if sample.tools is None else list(sample.tools),
            add_generation_prompt=generation_prompt,
        )
        return [int(token) for token in batch["input_ids"]]

    def segment_ids(self, ids: Sequence[int]) -> list[int]:
        """Return the segment ids that the segmenter reads from the tokens of a row."""
        segment_ids = [CAUSAL] * len(ids)
        for number, (start, end) in enumerate(self.segmenter.spans(ids)):
            segment_ids[start:end] = [number] * (end - start)
        return segment_ids

    def _join(
        self, prompt: list[int], ids: list[int], labels: list[int], sample: Sample
    ) -> tuple[list[int], list[int], int]:
        """The conversation with the prompt's own tokens at its beginning, and where the answer begins.

        Where both say the same in other tokens (two line breaks, or one token of two), the prompt's tokens are taken:
        inference begins with them. Where the template writes an answer otherwise than its generation prompt begins it
        (a thinking block that earlier answers lose), the conversation stays, and the answer begins where they part.
        """
        shared = _shared(prompt, ids)
        if shared == len(prompt) < len(ids):
            return ids, labels, shared
        taken = self._same_text(prompt[shared:], ids[shared:])
        if taken is not None:
            rest = shared + taken
            kept = [IGNORED_LABEL] * (len(prompt) - shared)
            return prompt + ids[rest:], labels[:shared] + kept + labels[rest:], len(prompt)
        headers = [event.end for event in self._markers.events(prompt) if event.marker.kind in ("causal", "close")]
        if not headers or shared < headers[-1]:
            raise _rewritten(prompt, ids, sample)
        self.rewritten += 1
        return ids, labels, shared

    def _same_text(self, tokens: list[int], others: list[int]) -> int | None:
        """How many of the other tokens stand for the same text, None if none do."""
        text = self.tokenizer.decode(tokens)
        counts = range(1, min(len(others), 2 * len(text) + 2))
        return next((n for n in counts if self.tokenizer.decode(others[:n]) == text), None)

    def _answer_end(self, ids: list[int], start: int) -> int:
        events = [event for event in self._markers.events(ids) if event.start >= start]
        end = next((event.start for event in events if event.marker.kind in ("segment", "bos")), len(ids))
        # Some templates end every conversation with a generation prompt.
        if events and events[-1].marker.kind == "causal" and not self.tokenizer.decode(ids[events[-1].end :]).strip():
            end = min(end, events[-1].start)
        marker = next((position for position in range(end - 1, start - 1, -1) if ids[position] in self._special), None)
        return end if marker is None else marker + 1


# Two texts that begin and end with different letters: what stands before and after both belongs to the template.
_OTHER_CONTENTS = ("Xylophone", "quorum")


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two rows have in common at their beginning."""
    pairs = zip(first, second, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _rewritten(prompt: list[int], ids: list[int], sample: Sample) -> DataError:
    return DataError(
        f"sample {sample.id!r} of {sample.task!r}: the chat template renders the prompt differently once the "
        f"answer follows (first difference at token {_shared(prompt, ids)} of {len(prompt)}), so what is trained would "
        "not be what is asked at inference. Use a template whose generation prompt is a prefix of the conversation"
    )


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
