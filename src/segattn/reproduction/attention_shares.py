"""Where the attention of prompt tokens goes in the tuned models: to keys ahead, layer by layer and head by head."""

from collections.abc import Sequence
from typing import Any

from segattn.reproduction.finished_cells import Cell
from segattn.reproduction.pairing import BASELINE, Study, arms_of, studies_of

__all__ = ["attention_maps", "shares_ahead"]


def shares_ahead(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return the share of a prompt query's attention that goes to keys ahead, mean over the seeds of each arm.

    Each row has "ahead" (a row for each layer, a number for each head), its "mean", the mean of the layer with the
    least and with the most, and over how many "items" and "seeds".
    """
    rows = []
    for study in studies_of(cells):
        for arm in arms_of(cells, study):
            patterns = [cell.attention_pattern for cell in _cells(cells, study, arm) if cell.attention_pattern]
            shapes = {(len(one["ahead"]), len(one["ahead"][0])) for one in patterns}
            if len(shapes) != 1:
                continue
            layers, heads = shapes.pop()
            ahead = [
                [sum(one["ahead"][layer][head] for one in patterns) / len(patterns) for head in range(heads)]
                for layer in range(layers)
            ]
            means = [sum(layer) / heads for layer in ahead]
            rows.append(
                {
                    **study._asdict(), "arm": arm, "seeds": len(patterns), "items": patterns[0].get("items"),
                    "ahead": ahead, "mean": sum(means) / layers, "least": min(means), "most": max(means),
                }
            )  # fmt: skip
    return rows


def attention_maps(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return the attention of one prompt under several arms, each under its own mask, for every study that has it.

    Each row has "arms" (name -> square map, rows are queries), "tokens" and "segment_ids" (None where they were not
    kept). Arms whose map is of another prompt than that of the causal arm (or the first one) are left out.
    """
    rows = []
    for study in studies_of(cells):
        found: dict[str, dict[str, Any]] = {}
        for arm in arms_of(cells, study):
            for cell in _cells(cells, study, arm):
                pattern = cell.attention_pattern or {}
                if cell.own_mask in (pattern.get("maps") or {}) and arm not in found:
                    found[arm] = {"map": pattern["maps"][cell.own_mask], **pattern}
        if not found:
            continue
        first = found.get(BASELINE) or next(iter(found.values()))
        same = {arm: one["map"] for arm, one in found.items() if _prompt(one) == _prompt(first)}
        rows.append(
            {
                **study._asdict(), "arms": same,
                "tokens": first.get("tokens"), "segment_ids": first.get("segment_ids"),
            }
        )  # fmt: skip
    return rows


def _cells(cells: Sequence[Cell], study: Study, arm: str) -> list[Cell]:
    found = [cell for cell in cells if cell.names[:3] == (*study, arm)]
    return sorted(found, key=lambda cell: cell.names.seed)


def _prompt(pattern: dict[str, Any]) -> Any:
    """What tells prompts apart: the tokens, or where they were not kept the length."""
    return pattern.get("tokens") or len(pattern["map"])
