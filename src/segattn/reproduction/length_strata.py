"""Accuracy against the length of the prompt: items in strata of their number of tokens."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from statistics import median
from typing import Any

from segattn.evaluation.seeds import accuracy_over_seeds, compare_over_seeds
from segattn.reports.page import ReportError
from segattn.reproduction.finished_cells import UNTUNED, Cell
from segattn.reproduction.pairing import (
    BASELINE,
    BySeed,
    Question,
    Study,
    arms_of,
    by_seed,
    common_ids,
    questions_of,
    rows_of,
)

__all__ = ["check_edges", "cut_offs", "quantile_edges", "strata", "stratum_text"]

_STRATA = 4
_FEWEST = 20


def strata(cells: Sequence[Cell], edges: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """Return the accuracy of each arm, run its own way, and its difference from causal training, by prompt length.

    Only items that all arms were asked count. Intervals are 95 %, over seeds and items, not corrected for their number.

    Args:
        cells: of the sweep.
        edges: the longest prompt of each stratum but the last, in tokens; None for those that the sweep was given for
            its data ("strata" in the settings), or else quarters of the items, with each training cut-off as an edge
            of its own.

    Returns:
        A row for each question and stratum: "from" and "to" (tokens; None: open), "median", "longest", "items",
        "cut_offs" and "arms": name -> "accuracy" and "difference" (None for the causal arm, the untuned model, and
        arms that share no seed with the causal one).

    Raises:
        ReportError: edges that do not rise.
    """
    given = None if edges is None else check_edges(edges)
    rows: list[dict[str, Any]] = []
    for question in questions_of(cells):
        found = {arm: by_seed(cells, question, arm) for arm in arms_of(cells, question.study)}
        groups = {arm: group for arm, group in found.items() if group}
        ids = common_ids(*groups.values())
        if not ids:
            continue
        lengths = dict(zip(ids, map(int, rows_of(next(iter(groups.values())), ids, measure="lengths")[0]), strict=True))
        cuts = cut_offs(cells, question.study)
        limits = given or _planned(cells, question.study) or quantile_edges(list(lengths.values()), cuts)
        for low, high in pairwise([None, *limits, None]):
            inside = [name for name in ids if _within(lengths[name], low, high)]
            if inside:
                rows.append(_row(question, groups, inside, [lengths[name] for name in inside], low, high, cuts))
    return rows


def check_edges(edges: Sequence[int]) -> list[int]:
    """Return the edges of strata.

    Raises:
        ReportError: they do not rise, or are not positive.
    """
    if not edges or any(edge < 1 for edge in edges) or any(one >= other for one, other in pairwise(edges)):
        raise ReportError(f"got the edges {list(edges)}; expected rising numbers of tokens, e.g. 64,128,256")
    return list(edges)


def _planned(cells: Sequence[Cell], study: Study) -> list[int]:
    """The edges that the sweep was given for this data; the first, where runs were given different ones."""
    found = (cell.settings.get("strata") for cell in cells if cell.names[:2] == study)
    return sorted(int(edge) for edge in next(filter(None, found), []))


def cut_offs(cells: Sequence[Cell], study: Study) -> list[int]:
    """Return the lengths at which training samples were cut in a study, over its arms."""
    found = {cell.settings.get("max_length") for cell in cells if cell.names[:2] == study}
    return sorted(int(length) for length in found if length is not None)


def quantile_edges(lengths: Sequence[int], cuts: Sequence[int] = ()) -> list[int]:
    """Return edges that part the items into quarters, and at each cut-off that lies within.

    Args:
        lengths: of the items, in tokens.
        cuts: lengths that are edges in any case; quarters that would leave a stratum of fewer than 20 items beside
            them are left out.
    """
    ordered = sorted(lengths)
    parts = max(1, min(_STRATA, len(ordered) // _FEWEST))
    fixed = {cut for cut in cuts if ordered[0] <= cut < ordered[-1]}
    quarters = {ordered[-(-len(ordered) * part // parts) - 1] for part in range(1, parts)} - {ordered[-1]}
    kept = sorted(fixed | quarters)
    for edge in sorted(quarters - fixed):
        place = kept.index(edge)
        below, above = ([None, *kept][place], [*kept, None][place + 1])
        sizes = Counter("below" if length <= edge else "above" for length in ordered if _within(length, below, above))
        if min(sizes["below"], sizes["above"]) < _FEWEST:
            kept.remove(edge)
    return kept


def stratum_text(row: Mapping[str, Any]) -> str:
    """Name the lengths of a row of `strata`: "up to 64", "65 to 128", "129 and more", "all"."""
    low, high = row["from"], row["to"]
    if low is None:
        return "all" if high is None else f"up to {high}"
    return f"{low} and more" if high is None else f"{low} to {high}"


def _within(length: int, low: int | None, high: int | None) -> bool:
    return (low is None or length > low) and (high is None or length <= high)


def _row(
    question: Question,
    groups: Mapping[str, BySeed],
    ids: list[str],
    lengths: list[int],
    low: int | None,
    high: int | None,
    cuts: list[int],
) -> dict[str, Any]:
    return {
        **question._asdict(),
        "from": None if low is None else low + 1,
        "to": high,
        "median": median(lengths),
        "longest": max(lengths),
        "items": len(ids),
        "cut_offs": cuts,
        "arms": {arm: _arm(group, groups.get(BASELINE, {}), ids, arm) for arm, group in groups.items()},
    }


def _arm(group: BySeed, base: BySeed, ids: list[str], arm: str) -> dict[str, Any]:
    shared = [seed for seed in group if seed in base]
    difference = None
    if shared and arm not in (BASELINE, UNTUNED):
        found = compare_over_seeds(rows_of(group, ids, shared), rows_of(base, ids, shared))
        difference = asdict(found.difference)
    return {"accuracy": asdict(accuracy_over_seeds(rows_of(group, ids))), "difference": difference}
