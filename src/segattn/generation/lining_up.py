"""Bring the rows of a batch up to one column, each from its own prefix.

A cache is rectangular: all rows of a batch go on from the same column. Rows of different lengths are padded on the
left, so what they share ends in different columns. Here every row begins at column 0 behind what is known of it; rows
of which equally much is known run together, padded on the right, where no token looks.
"""

from typing import Any

import torch
from torch import Tensor

from segattn.generation.assembly import assemble, states_between
from segattn.generation.pieces import Row
from segattn.generation.prefix_tree import Match
from segattn.modeling.prefill import AUTOMATIC_CHUNK, chunk_ends

__all__ = ["complete_rows"]


def complete_rows(
    model: Any, rows: list[Row], matches: list[list[Match]], lengths: list[int], known: list[int]
) -> list[list[Match]]:
    """Compute what is missing of each row up to a length.

    Args:
        model: a transformers model.
        rows: of a batch.
        matches: what is known of each row.
        lengths: per row, how many of its tokens are wanted; no segment is cut there.
        known: per row, how many tokens of it to take from `matches`; no segment is cut there.

    Returns:
        per row, keys and values of its first `lengths` tokens.
    """
    complete = [[Match(*part) for part in _first(found, count)] for found, count in zip(matches, known, strict=True)]
    missing = [number for number, length in enumerate(lengths) if known[number] < length]
    for start in sorted({known[number] for number in missing}):
        group = [number for number in missing if known[number] == start]
        cache = _computed(
            model,
            [rows[number] for number in group],
            [complete[number] for number in group],
            start,
            [lengths[number] for number in group],
        )
        for place, number in enumerate(group):
            states = states_between(cache, place, start, lengths[number])
            complete[number].append(Match(states, lengths[number] - start))
    return complete


def _first(found: list[Match], count: int) -> list[tuple[Any, int]]:
    """The parts of some matches that make up the first tokens."""
    parts = []
    for match in found:
        if count > 0:
            parts.append((match.states, min(match.count, count)))
            count -= match.count
    return parts


def _computed(model: Any, rows: list[Row], matches: list[list[Match]], start: int, lengths: list[int]) -> Any:
    """Run some rows, behind the same number of known tokens; returns the cache."""
    width = max(lengths)
    ids, segment_ids, mask = (torch.full((len(rows), width), value, dtype=torch.int64) for value in (0, -1, 0))
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        ids[number, :length] = torch.tensor(row.tokens[:length])
        segment_ids[number, :length] = torch.tensor(row.segment_ids[:length])
        mask[number, :length] = 1
    past = assemble(model.config, [(0, found) for found in matches], start)
    _run(model, past, start, *(tensor.to(model.device) for tensor in (ids, segment_ids, mask)))
    return past


@torch.no_grad()
def _run(model: Any, past: Any, start: int, ids: Tensor, segment_ids: Tensor, mask: Tensor) -> None:
    """Prefill a cache, chunk by chunk."""
    options: dict[str, Any] = {"past_key_values": past, "use_cache": True, "is_first_iteration": True}
    if "_segattn_state" in vars(model):
        options["segment_ids"] = segment_ids
    if model._supports_logits_to_keep():
        options["logits_to_keep"] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for end in chunk_ends(segment_ids, start, AUTOMATIC_CHUNK):
        inputs = model.prepare_inputs_for_generation(
            ids[:, start:end], attention_mask=mask[:, :end], position_ids=positions[:, start:end], **options
        )
        model(**inputs)
        start = end
