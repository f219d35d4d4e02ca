"""The segments of what the harness runs: prompts, rows of a prompt and a continuation, cut on the left if too long.

The tokens are the harness's own; only their segments are found here. Segments are found in the whole prompt, and cut as
the tokens are cut: what is left of a segment is one shorter segment, also where its header is gone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from segattn.errors import SegmentError
from segattn.segments import CAUSAL
from segattn.templates.markers import MarkerTable

__all__ = ["PlainContext", "PromptSegments", "RowTable", "ScoredRow", "check_plain_context", "scored_row", "tables"]

PlainContext = Literal["refuse", "segment", "causal"]

_SHOWN = 80


def check_plain_context(wanted: str) -> None:
    """Refuse what is no way of running a prompt without markers.

    Raises:
        SegmentError: anything but "refuse", "segment" and "causal".
    """
    if wanted not in get_args(PlainContext):
        raise SegmentError(f"plain_context is {wanted!r}; expected one of {', '.join(get_args(PlainContext))}")


class PromptSegments:
    """Finds the segments of a whole prompt.

    Args:
        segmenter: a `segattn.Segmenter`; None where every prompt is plain.
        plain: what a prompt without markers is: "refuse", one "segment", or "causal".
        bos: the token that may begin a plain prompt and is causal, None if there is none.
    """

    def __init__(self, segmenter: Any, plain: PlainContext = "refuse", bos: int | None = None) -> None:
        self.segmenter = segmenter
        self.plain = plain
        self.bos = bos
        self._markers = None if segmenter is None else MarkerTable.from_dict(segmenter.to_dict())

    def __call__(self, ids: Sequence[int], text: str) -> list[int]:
        """Return the segment id of each token of a prompt.

        Args:
            ids: the whole prompt, not cut, without padding.
            text: the same, for messages.

        Raises:
            SegmentError: a prompt without markers, where plain prompts are refused.
        """
        if self._in_template(ids):
            segments: list[int] = self.segmenter.segment_ids(list(ids)).tolist()
            return segments
        if self.plain == "causal":
            return [CAUSAL] * len(ids)
        if self.plain == "segment":
            first = 1 if ids and ids[0] == self.bos else 0
            return [CAUSAL] * first + [0] * (len(ids) - first)
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        raise SegmentError(
            f"the prompt {shown!r} holds no marker of the chat template, so it has no segments and would run causally. "
            "Add --apply_chat_template. If plain prompts are meant, say how they run: plain_context=segment (the whole "
            "prompt is one segment) or plain_context=causal in --model_args; or attention=causal"
        )

    def _in_template(self, ids: Sequence[int]) -> bool:
        # Markers and not segments: a template's messages may all be causal, by its roles.
        return self._markers is not None and any(event.marker.kind != "bos" for event in self._markers.events(ids))


@dataclass(frozen=True)
class ScoredRow:
    """A row as the model gets it: tokens, their segments, and how many predictions at its end are scored."""

    tokens: tuple[int, ...]
    segments: tuple[int, ...]
    scored: int


def scored_row(
    prompt: Sequence[int],
    prompt_segments: Sequence[int],
    context: Sequence[int],
    continuation: Sequence[int],
    most: int,
) -> ScoredRow:
    """Put the segments of a prompt on the row in which the harness scores a continuation.

    Args:
        prompt: tokens of the whole prompt.
        prompt_segments: a segment id for each.
        context: the prompt as the harness runs it: whitespace at its end has moved to the continuation.
        continuation: is causal.
        most: tokens that a row may have; what is more is cut on the left.

    Returns:
        The last `most` tokens before the last one, which predicts nothing.

    Raises:
        SegmentError: the context's tokens cannot be placed in the prompt.
    """
    segments = _of_context(prompt, prompt_segments, context) + [CAUSAL] * len(continuation)
    tokens = [*context, *continuation]
    kept = slice(max(0, len(tokens) - most - 1), len(tokens) - 1)
    return ScoredRow(tuple(tokens[kept]), tuple(segments[kept]), len(continuation))


def _of_context(prompt: Sequence[int], segments: Sequence[int], context: Sequence[int]) -> list[int]:
    """The segment ids of a context that is the prompt without the whitespace at its end."""
    pairs = zip(prompt, context, strict=False)
    shared = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(prompt), len(context)))
    if shared == len(context):
        return list(segments[:shared])
    # The whitespace had merged with the text before it.
    rest = set(segments[shared:] or segments[-1:])
    if len(rest) != 1:
        raise SegmentError(
            f"without the whitespace at its end the prompt has other tokens from position {shared} on, over the border "
            "of a segment; expected a template whose prompts end with a marker. Score with attention=causal, or name "
            "the markers with Segmenter.from_markers and save the checkpoint again"
        )
    return [*segments[:shared], *[segments[-1]] * (len(context) - shared)]


class RowTable:
    """Which segments belong to which row of tokens: the harness hands rows on without saying whose they are.

    A row is told by its tokens, without the zeros that it is padded with. So a table holds no two rows of the same
    tokens with other segments, or other scored tokens: the harness runs rows of the same tokens once.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[int, ...], tuple[tuple[int, ...], int]] = {}

    def take(self, row: ScoredRow) -> bool:
        """Take a row in; False where it stands against one that is here."""
        entry = (_without(row.segments, CAUSAL), row.scored)
        return self._rows.setdefault(_without(row.tokens, 0), entry) == entry

    def segment_ids(self, tokens: Tensor) -> Tensor:
        """Return the segments of rows, int64 (batch, length), the shape and device of `tokens`.

        Raises:
            SegmentError: a row that was not taken in.
        """
        found = torch.full(tokens.shape, CAUSAL, dtype=torch.int64)
        for number, row in enumerate(tokens.tolist()):
            entry = self._rows.get(_without(row, 0))
            if entry is None:
                raise SegmentError(
                    f"the harness runs a row of {len(row)} tokens that is none of its requests, so its segments are "
                    "not known; lm_eval 0.4.13 does not do that, this release does: install 0.4.13, and report it"
                )
            found[number, : len(entry[0])] = torch.tensor(entry[0], dtype=torch.int64)
        return found.to(tokens.device)


def tables(rows: Sequence[ScoredRow]) -> list[tuple[RowTable, list[int]]]:
    """Share rows out among as few tables as they need, mostly one; returns each with the places of its rows."""
    shared: list[tuple[RowTable, list[int]]] = []
    for place, row in enumerate(rows):
        for table, places in shared:
            if table.take(row):
                places.append(place)
                break
        else:
            table = RowTable()
            table.take(row)
            shared.append((table, [place]))
    return shared


def _without(values: Iterable[int], last: int) -> tuple[int, ...]:
    """The values without those at the end that equal `last`."""
    kept = list(values)
    while kept and kept[-1] == last:
        kept.pop()
    return tuple(kept)
