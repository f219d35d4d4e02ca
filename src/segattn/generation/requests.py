"""One request to a prefix cache: the rows that it asks for, and what is kept of them afterwards."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segattn.errors import UnsupportedModelError
from segattn.generation.pieces import Piece, Row, pieces_of
from segattn.generation.prefix_tree import Match
from segattn.modeling.generation import prompt_segment_ids
from segattn.segments import as_rows, check_segment_ids, pad_segment_ids

__all__ = ["PrefixRequest", "end_tokens", "known_lengths", "settled_ids", "with_answer"]


@dataclass(frozen=True)
class PrefixRequest:
    """A batch that is about to be computed.

    Attributes:
        past_key_values: a DynamicCache that holds its first `columns`, for `generate` or a forward pass to go on from.
        columns: how many columns are in it, the padding of shorter rows included.
        reused: per row, how many of its tokens were known.
    """

    past_key_values: Any
    columns: int
    reused: list[int]
    rows: list[Row]
    setting: tuple[Any, ...]
    weights: tuple[Any, ...]


def settled_ids(state: Any, input_ids: Tensor, segment_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
    """Settle the segment ids of a batch, int64 (batch, length), as the model's `generate` does.

    Args:
        state: of an enabled model, None for one that is not.
        input_ids: int64 (batch, length).
        segment_ids: int64 (batch, up to length); None derives them.
        attention_mask: (batch, length), 0 marks padding.

    Raises:
        SegmentError: ids that are missing, malformed or do not fit.
        UnsupportedModelError: segments for a model that is not enabled.
    """
    if state is None and segment_ids is not None and bool((as_rows(segment_ids) >= 0).any()):
        raise UnsupportedModelError(
            "segment_ids for a model that is not enabled: it runs causally; call segattn.enable(model) first"
        )
    if state is None or state.is_causal:
        return torch.full_like(input_ids, -1)
    given = {"input_ids": input_ids, "segment_ids": segment_ids, "attention_mask": attention_mask}
    ids = prompt_segment_ids(state, given)
    return check_segment_ids(pad_segment_ids(ids, input_ids.shape[1]), attention_mask)


def known_lengths(rows: list[Row], matches: list[list[Match]]) -> list[int]:
    """Return how many tokens of each row are known, so that no segment is cut."""
    found = (sum(match.count for match in row_matches) for row_matches in matches)
    return [row.cut_at_most(count) for row, count in zip(rows, found, strict=True)]


def with_answer(row: Row, tokens: list[int], ends: set[int]) -> list[Piece]:
    """Return the pieces of a row and of what was generated after it, up to its end token.

    Args:
        row: of a prompt.
        tokens: the row with its padding, and what was generated.
        ends: token ids that end an answer.
    """
    answer = tokens[row.padding + row.length :]
    end = next((place + 1 for place, token in enumerate(answer) if token in ends), len(answer))
    return pieces_of([*row.tokens, *answer[:end]], [*row.segment_ids, *[-1] * end])


def end_tokens(model: Any) -> set[int]:
    """Return the token ids that end an answer of a model."""
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list | tuple) else {ends}
