"""What the agreement of students with their teacher allows to say: 95 % intervals, and paired comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from segattn.errors import SegmentAttentionError
from segattn.evaluation.statistics import compare, compare_means, mean_interval, wilson_interval

__all__ = ["MEASURES", "agreement_report"]

MEASURES = ("kl", "top1", "loss", "prefix")
"""Numbers of a held-out prompt whose mean over prompts is reported; `exact` is a proportion."""

Row = Mapping[str, Any]


def agreement_report(
    held_out: Mapping[str, Sequence[Row]], pairs: Sequence[tuple[str, str]] = ()
) -> dict[str, dict[str, Any]]:
    """Sum up held-out measurements.

    Args:
        held_out: name of a student -> per prompt {"kl", "top1", "loss", "exact", "prefix", "tokens"}.
        pairs: names of students to compare, the first minus the second; pairs that were not measured are left out.

    Returns:
        "students": name -> {"prompts", "tokens", each measure as {"value", "low", "high"}}: means over prompts with
        bootstrap intervals, `exact` with a Wilson interval. "comparisons": "first - second" -> measure ->
        {"value", "low", "high", "shown"}: paired bootstrap intervals.

    Raises:
        SegmentAttentionError: a student without prompts, or two with different numbers of them.
    """
    return {
        "students": {name: _student(name, rows) for name, rows in held_out.items()},
        "comparisons": {
            f"{first} - {second}": _comparison(held_out[first], held_out[second])
            for first, second in pairs
            if first in held_out and second in held_out
        },
    }


def _student(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    if not rows:
        raise SegmentAttentionError(f"{name!r} was measured on no prompts; expected at least one")
    exact = wilson_interval(sum(bool(row["exact"]) for row in rows), len(rows))
    means = {measure: asdict(mean_interval([float(row[measure]) for row in rows])) for measure in MEASURES}
    return {"prompts": len(rows), "tokens": sum(row["tokens"] for row in rows), **means, "exact": asdict(exact)}


def _comparison(first: Sequence[Row], second: Sequence[Row]) -> dict[str, Any]:
    found = {
        measure: compare_means([row[measure] for row in first], [row[measure] for row in second])
        for measure in MEASURES
    }
    found["exact"] = compare([row["exact"] for row in first], [row["exact"] for row in second])
    return {name: {**asdict(one.difference), "shown": one.shown} for name, one in found.items()}
