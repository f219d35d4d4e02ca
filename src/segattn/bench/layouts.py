"""How the prompts that are measured fall into segments."""

import re
from itertools import pairwise

import torch
from torch import Tensor

from segattn.bench.errors import BenchError
from segattn.segments import Span, spans_to_segment_ids

__all__ = ["LAYOUTS", "layout_ids"]

LAYOUTS = {
    "25/70/5": "a system segment of 25 % of the tokens, a user segment of 70 %, a causal tail of 5 %",
    "ten turns": "ten times a user segment and a causal answer of the same length",
    "one 95 %": "one segment of 95 % of the tokens, a causal tail of 5 %",
}
"""Name -> what it is. "7 turns" and so on are understood too."""


def layout_ids(layout: str, length: int, device: torch.device | None = None) -> Tensor:
    """Return the segment ids of one row, int64 (1, length).

    Args:
        layout: a name of `LAYOUTS`, or a number of turns: "7 turns".
        length: 20 or more, so that no part is empty.
        device: where to.

    Raises:
        BenchError: an unknown layout, or too few tokens.
    """
    if length < 20:
        raise BenchError(f"the length is {length}; expected 20 tokens or more, so that every part of a layout has some")
    if layout == "25/70/5":
        spans = [(0, length // 4), (length // 4, length * 19 // 20)]
    elif layout == "one 95 %":
        spans = [(0, length * 19 // 20)]
    elif layout == "ten turns":
        spans = _turns(length, 10)
    elif found := re.fullmatch(r"(\d+) turns?", layout):
        spans = _turns(length, int(found[1]))
    else:
        raise BenchError(f"the layout is {layout!r}; expected one of {', '.join(LAYOUTS)}, or a number: 7 turns")
    return spans_to_segment_ids(spans, length)[None].to(device or "cpu")


def _turns(length: int, turns: int) -> list[Span]:
    if not 1 <= turns <= length // 2:
        raise BenchError(f"{turns} turns do not fit in {length} tokens; expected 1 to {length // 2}")
    starts = [length * turn // turns for turn in range(turns + 1)]
    return [(start, (start + end) // 2) for start, end in pairwise(starts)]
