"""Rows of different length as one batch."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

__all__ = ["pad_rows"]


def pad_rows(
    rows: Sequence[Sequence[int]], fill: int, *, side: Literal["left", "right"] = "right", multiple_of: int = 1
) -> Tensor:
    """Stack rows of token ids, labels or segment ids, padded with `fill` to the longest.

    Args:
        rows: at least one.
        fill: the value of padding.
        side: where padding goes.
        multiple_of: the length is rounded up to a multiple of this.

    Returns:
        int64, shape (len(rows), length).
    """
    longest = max(len(row) for row in rows)
    length = -(-longest // multiple_of) * multiple_of
    padded = torch.full((len(rows), length), fill, dtype=torch.int64)
    for number, row in enumerate(rows):
        start = length - len(row) if side == "left" else 0
        padded[number, start : start + len(row)] = torch.as_tensor(row, dtype=torch.int64)
    return padded
