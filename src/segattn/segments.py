"""What `segment_ids` are: building them from spans, checking them, counting what they cost.

One int64 tensor of shape (batch, length) carries a segmentation. `segment_ids[b, i] = s >= 0` puts token i
of row b into prompt segment s; -1 makes it causal (answers, the generation prompt, padding, a leading BOS).
A segment is one contiguous run, and no id occurs twice in a row.
"""

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from segattn.errors import LabelLeakError, SegmentError

__all__ = [
    "CAUSAL",
    "IGNORED_LABEL",
    "as_rows",
    "attention_cost",
    "check_labels",
    "check_segment_ids",
    "pad_segment_ids",
    "spans_to_segment_ids",
]

CAUSAL = -1
"""The segment id of a token that belongs to no segment."""

IGNORED_LABEL = -100
"""The label that losses skip (torch.nn.functional.cross_entropy's default `ignore_index`)."""

Span = tuple[int, int]


def spans_to_segment_ids(spans: Sequence[Span] | Sequence[Sequence[Span]], length: int) -> Tensor:
    """Number the given spans 0, 1, 2, ... and mark every other token causal.

    Args:
        spans: pairs (start, end), end exclusive, in ascending order and disjoint; or one such list per row.
        length: the number of tokens of a row.

    Returns:
        int64, shape (length,) for one list of spans, (batch, length) for a list of lists.

    Raises:
        SegmentError: a span is empty, overlaps the one before it, or leaves the row.
    """
    if isinstance(length, bool) or not isinstance(length, int) or length < 0:
        raise SegmentError(f"length is {length!r}; expected the number of tokens of a row, an int >= 0")
    if _is_batch(spans):
        return torch.stack([_row_of_spans(row, length, where=f"row {b}, ") for b, row in enumerate(spans)])
    return _row_of_spans(spans, length, where="")  # type: ignore[arg-type]


def _is_batch(spans: Sequence[Any]) -> TypeGuard[Sequence[Sequence[Span]]]:
    """Whether `spans` holds one list of spans per row: its first item is a list that is not a pair of ints."""
    if len(spans) == 0:
        return False
    first = spans[0]
    if not isinstance(first, Sequence) or isinstance(first, str):
        return False
    return len(first) == 0 or not isinstance(first[0], int)


def _row_of_spans(spans: Sequence[Span], length: int, where: str) -> Tensor:
    ids = torch.full((length,), CAUSAL, dtype=torch.int64)
    previous_end = 0
    for number, span in enumerate(spans):
        try:
            start, end = (int(bound) for bound in span)
        except (TypeError, ValueError):
            raise SegmentError(
                f"{where}span {number} is {span!r}; expected a pair (start, end) of token positions"
            ) from None
        if not 0 <= start < end <= length:
            raise SegmentError(
                f"{where}span {number} is ({start}, {end}) in a row of {length} tokens; expected "
                f"0 <= start < end <= {length} (end is exclusive)"
            )
        if start < previous_end:
            raise SegmentError(
                f"{where}span {number} starts at {start}, but the span before it ends at {previous_end}; "
                "expected disjoint spans in ascending order"
            )
        ids[start:end] = number
        previous_end = end
    return ids


def as_rows(segment_ids: Tensor) -> Tensor:
    """Return segment ids as int64 of shape (batch, length); a single row (length,) becomes a batch of one.

    Raises:
        SegmentError: not a tensor, not an integer type, or neither 1-D nor 2-D.
    """
    if not isinstance(segment_ids, Tensor):
        raise SegmentError(
            f"segment_ids is a {type(segment_ids).__name__}; expected an int64 tensor of shape (batch, length). "
            "segattn.spans_to_segment_ids builds one from spans"
        )
    if segment_ids.layout != torch.strided or segment_ids.is_nested:
        raise SegmentError(
            f"segment_ids is a tensor of layout {segment_ids.layout}; expected a dense one (segment_ids.to_dense())"
        )
    if segment_ids.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64):  # unsigned types hold no -1
        raise SegmentError(
            f"segment_ids has dtype {segment_ids.dtype}; expected int64 (-1 causal, >= 0 the segment's number)"
        )
    if segment_ids.ndim not in (1, 2):
        raise SegmentError(
            f"segment_ids has shape {tuple(segment_ids.shape)}; expected (batch, length) or, for one row, (length,)"
        )
    return (segment_ids[None] if segment_ids.ndim == 1 else segment_ids).to(torch.int64)


def check_segment_ids(segment_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Check a segmentation and return it as int64 of shape (batch, length).

    Args:
        segment_ids: integer, shape (batch, length) or (length,).
        attention_mask: optional, shape (batch, length); 0 marks padding, which no segment may hold.

    Raises:
        SegmentError: wrong type or shape, an id below -1, an id used by two runs of a row, a segment over
            padding. The message names the row and the position.
    """
    ids = as_rows(segment_ids)
    if ids.numel() == 0:
        raise SegmentError(f"segment_ids has shape {tuple(ids.shape)}; expected at least one row and one token")
    if (ids < CAUSAL).any():
        row, position = _first(ids < CAUSAL)
        raise SegmentError(
            f"segment_ids[{row}, {position}] is {int(ids[row, position])}; expected -1 (causal) or an id >= 0"
        )
    _check_runs(ids)
    if attention_mask is not None:
        _check_padding(ids, attention_mask)
    return ids


def _first(where: Tensor) -> tuple[int, int]:
    row, position = where.nonzero()[0].tolist()
    return row, position


def _run_starts(ids: Tensor) -> Tensor:
    """Mark the first token of every segment, bool, shape of `ids`."""
    starts = ids >= 0
    starts[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    return starts


def _check_runs(ids: Tensor) -> None:
    starts = _run_starts(ids)
    # Sort the ids of the run starts row by row: an id that stands twice belongs to two runs.
    first_ids = torch.where(starts, ids, CAUSAL)
    ordered, position = first_ids.sort(dim=1, stable=True)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if repeated.any():
        row, column = _first(repeated)
        again = int(position[row, column + 1])
        raise SegmentError(
            f"segment_ids[{row}, {again}] opens segment {int(ids[row, again])} again: it already began at position "
            f"{int(position[row, column])}; expected each id in one contiguous run per row (packed documents too)"
        )


def _check_padding(ids: Tensor, attention_mask: Tensor) -> None:
    if attention_mask.shape != ids.shape:
        raise SegmentError(
            f"attention_mask has shape {tuple(attention_mask.shape)} and segment_ids {tuple(ids.shape)}; "
            "expected the same (batch, length)"
        )
    if attention_mask.device != ids.device:
        raise SegmentError(
            f"attention_mask is on {attention_mask.device} and segment_ids on {ids.device}; "
            "expected one device (move segment_ids with .to())"
        )
    padded_segment = (ids >= 0) & (attention_mask == 0)
    if padded_segment.any():
        row, position = _first(padded_segment)
        raise SegmentError(
            f"segment_ids[{row}, {position}] is {int(ids[row, position])} on a padding token "
            "(attention_mask 0); expected -1 there"
        )


def pad_segment_ids(segment_ids: Tensor, length: int) -> Tensor:
    """Extend segment ids (batch, n) with causal tokens up to (batch, length); the tail is generated text.

    Raises:
        SegmentError: `segment_ids` is longer than `length`.
    """
    missing = length - segment_ids.shape[1]
    if missing < 0:
        raise SegmentError(
            f"segment_ids covers {segment_ids.shape[1]} tokens, but there are only {length} (cached and new); "
            "expected at most that many"
        )
    return torch.nn.functional.pad(segment_ids, (0, missing), value=CAUSAL) if missing else segment_ids


def attention_cost(segment_ids: Tensor) -> dict[str, int]:
    """Count the attention scores (query-key pairs) of one head and one layer, summed over the rows.

    Args:
        segment_ids: integer, shape (batch, length) or (length,).

    Returns:
        `segments`: pairs that the segment rule allows, i.e. sum(s_k * e_k) over segments of length s_k that end
        at e_k, plus the triangle of the causal runs; `causal`: n (n + 1) / 2; `dense`: n^2.

    Raises:
        SegmentError: see `check_segment_ids`.
    """
    ids = check_segment_ids(segment_ids)
    batch, length = ids.shape
    causal = length * (length + 1) // 2
    # Beyond the causal triangle, a segment of s tokens adds its own upper triangle.
    ahead = 0
    for row in ids:
        _, sizes = row[row >= 0].unique(return_counts=True)
        ahead += int((sizes * (sizes - 1) // 2).sum())
    return {"segments": batch * causal + ahead, "causal": batch * causal, "dense": batch * length * length}


def check_labels(segment_ids: Tensor, labels: Tensor) -> None:
    """Refuse labels on tokens that the token before them can already see.

    The logits at i - 1 predict the label at i. Inside a segment, token i - 1 attends to token i, so such a
    label teaches copying and its loss is meaningless. The first token of a segment may carry a label.

    Args:
        segment_ids: integer, shape (batch, length) or (length,).
        labels: integer, the same shape; -100 marks tokens without a label.

    Raises:
        LabelLeakError: names the first row and position that leak, and how many there are.
        SegmentError: shapes differ, or see `check_segment_ids`.
    """
    ids = check_segment_ids(segment_ids)
    rows = labels[None] if labels.ndim == 1 else labels
    if rows.shape != ids.shape:
        raise SegmentError(
            f"labels has shape {tuple(labels.shape)} and segment_ids {tuple(segment_ids.shape)}; expected the same"
        )
    leaks = (ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] >= 0) & (rows[:, 1:] != IGNORED_LABEL)
    if leaks.any():
        row, before = _first(leaks)
        raise LabelLeakError(
            f"row {row}, position {before + 1}: the label {int(rows[row, before + 1])} lies inside segment "
            f"{int(ids[row, before + 1])}, where the token before it already sees it ({int(leaks.sum())} such labels "
            "in all). Set these labels to -100, or make the tokens causal (segment id -1)"
        )
