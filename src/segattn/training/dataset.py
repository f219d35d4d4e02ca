"""Samples as the data set that the trainer reads: checked for length and for leaking labels."""

import os
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from segattn.data import DataError, EncodedSample, Encoder, Sample, has_split, load_samples
from segattn.errors import LabelLeakError
from segattn.segments import check_labels

if TYPE_CHECKING:
    from segattn.templates import Segmenter

__all__ = ["encode_dataset", "held_out_samples"]


def encode_dataset(
    samples: Sequence[Sample], segmenter: "Segmenter", *, max_length: int | None, too_long: Literal["error", "drop"]
) -> tuple[Any, int]:
    """Encode samples for `SegmentSFTTrainer`.

    Args:
        samples: at least one.
        segmenter: its policy decides what is a segment.
        max_length: the most tokens of a row; None for any number.
        too_long: "error" refuses longer samples, "drop" leaves them out. None is ever cut.

    Returns:
        (a datasets.Dataset with the columns input_ids, labels and segment_ids, the number of dropped samples).

    Raises:
        DataError: no samples, or some over max_length.
        LabelLeakError: a label inside a segment.
    """
    from datasets import Dataset

    if not samples:
        raise DataError("there are no samples to train on")
    encoder = Encoder(segmenter)
    encoded = [encoder.encode(sample) for sample in samples]
    kept = [row for row in encoded if max_length is None or len(row.input_ids) <= max_length]
    dropped = len(encoded) - len(kept)
    if dropped and (too_long == "error" or not kept):
        longest = max(len(row.input_ids) for row in encoded)
        over = (len(row.input_ids) > (max_length or longest) for row in encoded)
        first = next(sample for sample, long in zip(samples, over, strict=True) if long)
        raise DataError(
            f"{dropped} of {len(encoded)} samples are longer than max_length {max_length} (longest {longest} tokens, "
            f"first {first.task} {first.id}); raise --max_length, or leave them out with --too_long drop"
        )
    for sample, row in zip(samples, encoded, strict=True):
        _check_leaks(sample, row)
    columns = ("input_ids", "labels", "segment_ids")
    return Dataset.from_dict({name: [getattr(row, name) for row in kept] for name in columns}), dropped


def _check_leaks(sample: Sample, row: EncodedSample) -> None:
    try:
        check_labels(torch.tensor(row.segment_ids), torch.tensor(row.labels))
    except LabelLeakError as error:
        raise LabelLeakError(f"sample {sample.id!r} of {sample.task!r}: {error}") from error


def held_out_samples(source: str | None, data: str | os.PathLike[str] | None, *, limit: int, seed: int) -> list[Sample]:
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
    samples = load_samples(source, "dev")
    return samples if len(samples) <= limit else random.Random(seed).sample(samples, limit)
