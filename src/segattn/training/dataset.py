"""Samples as the data set that the trainer reads: cut to length, checked for leaking labels."""

import logging
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from segattn.data import (
    DataError,
    EncodedSample,
    Encoder,
    Sample,
    SpanText,
    encode_text,
    has_split,
    load_training_samples,
)
from segattn.errors import LabelLeakError
from segattn.segments import CAUSAL, IGNORED_LABEL, check_labels
from segattn.training.cutting import TooLong, cut_chat, cut_text

if TYPE_CHECKING:
    from segattn.templates import Segmenter

__all__ = ["EncodedData", "encode_dataset", "held_out_samples"]

logger = logging.getLogger(__name__)


class EncodedData(NamedTuple):
    """A data set to train on, and what was done to fit max_length.

    Attributes:
        dataset: a datasets.Dataset with the columns input_ids, labels and segment_ids.
        dropped: samples left out.
        cut: samples of which a part was cut away.
        removed_tokens: how many tokens were cut away from these.
        tokens: of all rows, before they are packed.
        answer_tokens: those of them that carry a label.
    """

    dataset: Any
    dropped: int
    cut: int
    removed_tokens: int
    tokens: int = 0
    answer_tokens: int = 0

    def tell(self, which: str, max_length: int | None) -> None:
        """Say how many samples were cut and left out, if any were."""
        of = len(self.dataset) + self.dropped
        if self.cut:
            logger.warning(
                "cut %d of %d %s samples to %s tokens (%d tokens removed)",
                self.cut, of, which, max_length, self.removed_tokens,
            )  # fmt: skip
        if self.dropped:
            logger.warning("left out %d of %d %s samples longer than %s tokens", self.dropped, of, which, max_length)


def encode_dataset(
    samples: Sequence[Sample | SpanText],
    segmenter: "Segmenter | None",
    *,
    max_length: int | None,
    too_long: TooLong,
    tokenizer: Any = None,
) -> EncodedData:
    """Encode samples for `SegmentSFTTrainer`.

    Args:
        samples: at least one.
        segmenter: its policy decides what is a segment. Plain text with spans needs none, but the policy "causal"
            leaves its spans out.
        max_length: the most tokens of a row; None for any number.
        too_long: "error" refuses longer samples, "drop" leaves them out, "cut_left" and "cut_longest_segment" cut them
            (see `segattn.training.cutting`) and leave out those whose answer leaves no room.
        tokenizer: the segmenter's by default.

    Raises:
        DataError: no samples, some over max_length, or none left.
        LabelLeakError: a label inside a segment; names the sample and the token.
    """
    from datasets import Dataset

    if not samples:
        raise DataError("there are no samples to train on")
    rows = _Rows(segmenter, tokenizer, max_length, too_long)
    kept = [row for sample in samples if (row := rows.encode(sample)) is not None]
    rows.check(len(samples), len(kept))
    columns = ("input_ids", "labels", "segment_ids")
    dataset = Dataset.from_dict({name: [getattr(row, name) for row in kept] for name in columns})
    tokens = sum(len(row.labels) for row in kept)
    answer_tokens = tokens - sum(row.labels.count(IGNORED_LABEL) for row in kept)
    return EncodedData(
        dataset, len(samples) - len(kept), rows.cut, rows.removed_tokens, tokens=tokens, answer_tokens=answer_tokens
    )


class _Rows:
    """Encodes one sample after the other, and counts what did not fit."""

    def __init__(
        self, segmenter: "Segmenter | None", tokenizer: Any, max_length: int | None, too_long: TooLong
    ) -> None:
        self.encoder = None if segmenter is None or segmenter.tokenizer is None else Encoder(segmenter)
        self.tokenizer = tokenizer if tokenizer is not None or self.encoder is None else self.encoder.tokenizer
        self.causal = segmenter is not None and segmenter.policy == "causal"
        self.max_length = max_length
        self.too_long = too_long
        self.cut = self.removed_tokens = self.over = self.longest = 0
        self.first_over: Sample | SpanText | None = None

    def encode(self, sample: Sample | SpanText) -> EncodedSample | None:
        """A row that fits; None for a sample that is left out."""
        row = encode_text(sample, self.tokenizer) if isinstance(sample, SpanText) else self._chats.encode(sample)
        size = len(row.input_ids)
        if self.max_length is not None and size > self.max_length:
            self.over, self.longest = self.over + 1, max(self.longest, size)
            self.first_over = self.first_over or sample
            shorter = self._shortened(sample, row, self.max_length)
            if shorter is None:
                return None
            row = shorter
            self.cut += 1
            self.removed_tokens += size - len(row.input_ids)
        if self.causal:
            row = replace(row, segment_ids=[CAUSAL] * len(row.input_ids))
        self._check_labels(sample, row)
        return row

    def _shortened(self, sample: Sample | SpanText, row: EncodedSample, most: int) -> EncodedSample | None:
        if self.too_long not in ("cut_left", "cut_longest_segment"):
            return None
        if isinstance(sample, SpanText):
            return cut_text(row, most, self.too_long)
        return cut_chat(self._chats, sample, row, most, self.too_long)

    @property
    def _chats(self) -> Encoder:
        if self.encoder is None:
            raise DataError("chats need a segmenter with a tokenizer; pass Segmenter.from_tokenizer(tokenizer)")
        return self.encoder

    def _check_labels(self, sample: Sample | SpanText, row: EncodedSample) -> None:
        try:
            check_labels(torch.tensor(row.segment_ids), torch.tensor(row.labels))
        except LabelLeakError as error:
            place = next(
                place
                for place in range(1, len(row.labels))
                if row.labels[place] != IGNORED_LABEL and row.segment_ids[place - 1] == row.segment_ids[place] > CAUSAL
            )
            token = self.tokenizer.decode([row.input_ids[place]])
            raise LabelLeakError(
                f"sample {sample.id!r} of {sample.task!r}, token {place} {token!r}: {error}"
            ) from error

    def check(self, given: int, kept: int) -> None:
        """Refuse data that does not fit where nothing may be left out, or of which nothing is left."""
        if self.over and self.first_over and (self.too_long == "error" or not kept):
            raise DataError(
                f"{self.over} of {given} samples are longer than max_length {self.max_length} (longest {self.longest} "
                f"tokens, first {self.first_over.task} {self.first_over.id}); raise --max_length, leave them out with "
                "--too_long drop, or cut them with --too_long cut_left or cut_longest_segment"
            )
        if self.encoder is not None and self.encoder.rewritten:
            logger.warning(
                "the chat template begins %d answers otherwise than its generation prompt does (a thinking block that "
                "earlier answers lose?); their loss begins at the first token that differs",
                self.encoder.rewritten,
            )


def held_out_samples(
    source: str | None, data: str | os.PathLike[str] | None, *, limit: int, seed: int
) -> list[Sample | SpanText]:
    """Load the held-out samples of a run.

    Args:
        source: where they are; None takes the dev split of `data`, where it has one.
        data: the training data.
        limit: at most this many, drawn with `seed`; 0 for none.
        seed: decides which.

    Raises:
        DataError: `source` cannot be read.
    """
    if source is None and data is not None and has_split(data, "dev"):
        source = os.fspath(data)
    if limit == 0 or source is None:
        return []
    samples = load_training_samples(source, "dev")
    return samples if len(samples) <= limit else random.Random(seed).sample(samples, limit)
