"""Plain text of which the caller knows the segments: spans of characters become segments of tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segattn.data.encoding import EncodedSample
from segattn.data.samples import DataError
from segattn.segments import CAUSAL, IGNORED_LABEL

__all__ = ["SpanText", "encode_text", "is_text_row", "read_text_row"]

Span = tuple[int, int]


@dataclass(frozen=True)
class SpanText:
    """A text with the spans of its characters that are segments.

    Attributes:
        text: not empty.
        spans: (start, end) in characters, end exclusive, ascending and disjoint; each becomes one segment.
        loss_spans: where the loss is; None for everything outside of `spans`.
        task: the name that results are grouped by.
        id: unique within a task.
    """

    text: str
    spans: tuple[Span, ...]
    loss_spans: tuple[Span, ...] | None = None
    task: str = "data"
    id: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text:
            raise DataError(f"text is {self.text!r}; expected a text that is not empty")
        object.__setattr__(self, "spans", _checked(self.spans, "spans", len(self.text)))
        if self.loss_spans is not None:
            object.__setattr__(self, "loss_spans", _checked(self.loss_spans, "loss_spans", len(self.text)))


def _checked(spans: Any, name: str, length: int) -> tuple[Span, ...]:
    if isinstance(spans, str) or not isinstance(spans, Sequence):
        raise DataError(f"{name} is {spans!r}; expected a list of [start, end], in characters, end exclusive")
    checked: list[Span] = []
    for number, span in enumerate(spans):
        try:
            start, end = (int(bound) for bound in span)
        except (TypeError, ValueError):
            raise DataError(f"{name}[{number}] is {span!r}; expected [start, end] in characters") from None
        least = checked[-1][1] if checked else 0
        if not least <= start < end <= length:
            raise DataError(
                f"{name}[{number}] is [{start}, {end}]; expected {least} <= start < end <= {length} (ascending and "
                f"disjoint spans of the text's {length} characters, end exclusive)"
            )
        checked.append((start, end))
    return tuple(checked)


def is_text_row(row: Any) -> bool:
    """Tell whether a row is plain text with spans: it has the fields text and spans, and no intent."""
    return isinstance(row, Mapping) and "text" in row and "spans" in row and "intent" not in row


def read_text_row(row: Mapping[str, Any], task: str, sample_id: str) -> SpanText:
    """Read a row with the fields text, spans and optionally loss_spans, task and id.

    Raises:
        DataError: contents that cannot be used.
    """
    return SpanText(
        text=row["text"],
        spans=row["spans"],
        loss_spans=row.get("loss_spans"),
        task=str(row.get("task", task)),
        id=str(row.get("id", sample_id)),
    )


def encode_text(sample: SpanText, tokenizer: Any, *, causal: bool = False) -> EncodedSample:
    """Encode a text as the tokenizer does, with an end-of-text token after it.

    A token belongs to the span that holds its last character. The end-of-text token is learned where the last token of
    the text is. A token that begins the row carries no label: nothing predicts it.

    Args:
        sample: the text and its spans.
        tokenizer: a fast tokenizer of transformers.
        causal: make no segments; the labels stay.

    Raises:
        DataError: a span holds no token, or the tokenizer tells no offsets.
    """
    ids, offsets = _tokens(sample, tokenizer)
    segment_of = _numbers(sample.spans, offsets)
    for name, spans, found in (
        ("spans", sample.spans, segment_of),
        ("loss_spans", sample.loss_spans or (), _numbers(sample.loss_spans or (), offsets)),
    ):
        missing = set(range(len(spans))) - set(found)
        if missing:
            number = min(missing)
            raise DataError(
                f"sample {sample.id!r} of {sample.task!r}: {name}[{number}] {list(spans[number])} holds no whole token "
                f"({sample.text[slice(*spans[number])]!r}); expected spans of at least one token"
            )
    if sample.loss_spans is None:
        learned = [number == CAUSAL and end > start for number, (start, end) in zip(segment_of, offsets, strict=True)]
    else:
        learned = [number != CAUSAL for number in _numbers(sample.loss_spans, offsets)]
    end = tokenizer.eos_token_id
    if end is not None and ids[-1] != end:
        ids, segment_of, learned = [*ids, int(end)], [*segment_of, CAUSAL], [*learned, learned[-1]]
    elif ids[-1] == end and offsets[-1] == (0, 0) and len(ids) > 1:
        learned[-1] = learned[-2]  # the tokenizer itself has put it there
    learned[0] = False
    labels = [token if wanted else IGNORED_LABEL for token, wanted in zip(ids, learned, strict=True)]
    return EncodedSample(ids, labels, [CAUSAL] * len(ids) if causal else segment_of)


def _tokens(sample: SpanText, tokenizer: Any) -> tuple[list[int], list[Span]]:
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"{type(tokenizer).__name__} tells no offsets; text with spans needs a fast tokenizer")
    bos = tokenizer.bos_token
    begun = bool(bos) and sample.text.startswith(bos)
    encoded = tokenizer(sample.text, return_offsets_mapping=True, add_special_tokens=not begun)
    ids = [int(token) for token in encoded["input_ids"]]
    if not ids:
        raise DataError(f"sample {sample.id!r} of {sample.task!r}: the text {sample.text!r:.80} has no tokens")
    return ids, [(int(start), int(end)) for start, end in encoded["offset_mapping"]]


def _numbers(spans: Sequence[Span], offsets: Sequence[Span]) -> list[int]:
    """For each token the number of the span that holds its last character, -1 for none."""
    numbers, current = [], 0
    for start, end in offsets:
        while current < len(spans) and end > start and spans[current][1] < end:
            current += 1
        inside = current < len(spans) and end > start and spans[current][0] < end <= spans[current][1]
        numbers.append(current if inside else CAUSAL)
    return numbers
