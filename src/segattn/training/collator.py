"""Encoded samples as one batch, padded or joined, segment ids included."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from segattn.data import pad_rows
from segattn.segments import CAUSAL, IGNORED_LABEL
from segattn.training.packing import LENGTHS, flatten

__all__ = ["SegmentCollator"]


@dataclass(frozen=True)
class SegmentCollator:
    """Pads on the right: ids with the pad token, labels with -100, segment ids with -1. Packed rows are joined instead.

    Args:
        pad_token_id: the id of padding; nothing sees it, so any id will do.
        pad_to_multiple_of: round the length up to a multiple of this; None pads to the longest row.
        padding_free: join the rows into a single one, as packed rows always are.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    padding_free: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
        """Return input_ids, attention_mask, labels and segment_ids, int64, each (batch, length).

        Joined rows are (1, length), with position_ids in place of the attention mask; see
        `segattn.training.packing.flatten`.
        """
        multiple = self.pad_to_multiple_of or 1
        if self.padding_free or any(LENGTHS in row for row in rows):
            return flatten(rows, self.pad_token_id, multiple)
        ones = [[1] * len(row["input_ids"]) for row in rows]
        columns: dict[str, tuple[Sequence[Sequence[int]], int]] = {
            "input_ids": ([row["input_ids"] for row in rows], self.pad_token_id),
            "attention_mask": (ones, 0),
            "labels": ([row["labels"] for row in rows], IGNORED_LABEL),
            "segment_ids": ([row["segment_ids"] for row in rows], CAUSAL),
        }
        batch = {name: pad_rows(values, fill, multiple_of=multiple) for name, (values, fill) in columns.items()}
        if any(tensor.shape != batch["input_ids"].shape for tensor in batch.values()):
            raise ValueError(
                "the columns of a row differ in length: "
                f"{ {name: [len(row[name]) for row in rows] for name in ('input_ids', 'labels', 'segment_ids')} }"
            )
        return batch
