"""The numbers of a sweep, from its cells alone: accuracies, differences, and what happens under the other mask."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segattn.evaluation.seeds import (
    accuracy_over_seeds,
    compare_over_seeds,
    compare_values_over_seeds,
    mean_over_seeds,
)
from segattn.reproduction.attention_shares import attention_maps, shares_ahead
from segattn.reproduction.finished_cells import UNTUNED, Cell
from segattn.reproduction.learning import accuracy_curves, loss_curves
from segattn.reproduction.length_strata import strata
from segattn.reproduction.pairing import (
    BASELINE,
    BySeed,
    Study,
    arms_of,
    by_seed,
    common_ids,
    comparison_row,
    correct_for_models,
    correct_for_number,
    questions_of,
    rows_of,
    single_models,
)

__all__ = ["accuracies", "differences", "environments", "mismatch", "settings", "summarize", "times"]

_MASKS = ("causal", "segments")


def summarize(cells: Sequence[Cell], edges: Sequence[int] | None = None) -> dict[str, Any]:
    """Return every table of the report as JSON types.

    Args:
        cells: of one sweep or several.
        edges: of the strata of prompt length, in tokens; None as `segattn.reproduction.length_strata.strata` has it.

    Returns:
        Name -> rows: "accuracies", "differences", "mismatch", "loss_curves", "accuracy_curves", "strata",
        "shares_ahead", "attention_maps", "settings", "environments" and "times".

    Raises:
        ReportError: edges that do not rise.
    """
    return {
        "accuracies": accuracies(cells),
        "differences": differences(cells),
        "mismatch": mismatch(cells),
        "loss_curves": loss_curves(cells),
        "accuracy_curves": accuracy_curves(cells),
        "strata": strata(cells, edges),
        "shares_ahead": shares_ahead(cells),
        "attention_maps": attention_maps(cells),
        "settings": settings(cells),
        "environments": environments(cells),
        "times": times(cells),
    }


def accuracies(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return what each arm reaches, run the way it was tuned: accuracy and answer loss over its seeds and items."""
    rows = []
    for question in questions_of(cells):
        for arm in arms_of(cells, question.study):
            group = by_seed(cells, question, arm)
            ids = common_ids(group)
            if not ids:
                continue
            one = next(iter(group.values()))
            losses = rows_of(group, ids, measure="losses") if _have_losses(group) else None
            rows.append(
                {
                    **question._asdict(), "arm": arm, "attention": one.attention,
                    "seeds": len(group), "items": len(ids), "items_left_out": _left_out(ids, group),
                    "accuracy": asdict(accuracy_over_seeds(rows_of(group, ids))),
                    "loss": None if losses is None else asdict(mean_over_seeds(losses)), "chance": one.chance,
                }
            )  # fmt: skip
    return rows


def differences(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return how each arm differs from causal training, both run their own way, on the same items and seeds.

    All rows are one family: their p-values are corrected together (Holm).
    """
    rows = []
    for question in questions_of(cells):
        base = by_seed(cells, question, BASELINE)
        for arm in arms_of(cells, question.study):
            group = by_seed(cells, question, arm)
            row = None if arm in (BASELINE, UNTUNED) else _difference(group, base)
            if row is not None:
                rows.append({**question._asdict(), "arm": arm, "baseline": BASELINE, **row})
    correct_for_number(rows)
    return rows


def _difference(group: BySeed, base: BySeed) -> dict[str, Any] | None:
    """Compare two groups on what they share; None where that is nothing."""
    seeds = [seed for seed in group if seed in base]
    one, two = ({seed: side[seed] for seed in seeds} for side in (group, base))
    ids = common_ids(one, two)
    if not ids:
        return None
    loss = None
    if _have_losses(one) and _have_losses(two):
        first, second = (rows_of(side, ids, seeds, "losses") for side in (one, two))
        loss = asdict(compare_values_over_seeds(first, second).difference)
    right = rows_of(one, ids, seeds), rows_of(two, ids, seeds)
    return {
        **comparison_row(compare_over_seeds(*right)),
        "p_of_each_seed": single_models(*right),
        "loss": loss,
        "items_left_out": _left_out(ids, one, two),
        "seeds_left_out": sorted({*group, *base} - set(seeds)),
    }


def mismatch(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return the accuracy of each arm under both masks, and its loss when it is run the other way.

    The comparisons over seeds are one family, those of single models on the items another.
    """
    rows, compared = [], []
    for question in questions_of(cells):
        for arm in arms_of(cells, question.study):
            groups = {mask: by_seed(cells, question, arm, mask) for mask in _MASKS}
            own = next(iter(by_seed(cells, question, arm).values()), None)
            if not any(groups.values()):
                continue
            accuracy = {
                mask: asdict(accuracy_over_seeds(rows_of(group, common_ids(group)))) if common_ids(group) else None
                for mask, group in groups.items()
            }
            row = {**question._asdict(), "arm": arm, "own": own and own.attention, **accuracy, "comparison": None}
            if own is not None and arm != UNTUNED:
                other = "causal" if own.attention == "segments" else "segments"
                row["comparison"] = _difference(groups[other], groups[own.attention])
                compared += [row["comparison"]] if row["comparison"] else []
            rows.append(row)
    correct_for_number(compared)
    correct_for_models(compared)
    return rows


def settings(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return what the arms were trained with: "shared" (name -> text) and "different" (name -> arm -> text).

    A setting whose value depends on the study names it beside each value.
    """
    tuned = [cell for cell in cells if cell.names.arm != UNTUNED]
    names = dict.fromkeys(name for cell in tuned for name in cell.settings if name != "seed")
    texts = {name: {arm: _setting(tuned, arm, name) for arm in arms_of(tuned)} for name in names}
    shared = {name: next(iter(by_arm.values())) for name, by_arm in texts.items() if len(set(by_arm.values())) == 1}
    return {"shared": shared, "different": {name: by_arm for name, by_arm in texts.items() if name not in shared}}


def _setting(cells: Sequence[Cell], arm: str, name: str) -> str:
    values: dict[str, list[str]] = {}
    for cell in cells:
        if cell.names.arm == arm:
            studies = values.setdefault(_text(cell.settings.get(name)), [])
            studies += [] if str(Study(*cell.names[:2])) in studies else [str(Study(*cell.names[:2]))]
    if len(values) == 1:
        return next(iter(values))
    return "; ".join(f"{value} ({' and '.join(studies)})" for value, studies in values.items())


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name  # a folder of this machine is nobody's business
    return "none" if value is None else str(value)


def environments(cells: Sequence[Cell]) -> dict[str, str]:
    """Return versions and machines, name -> text; several values with the number of cells of each."""
    names = dict.fromkeys(name for cell in cells for name in cell.environment)
    rows = {}
    for name in names:
        values = [_text(cell.environment.get(name)) for cell in cells]
        counts = {value: values.count(value) for value in dict.fromkeys(values)}
        rows[name] = values[0] if len(counts) == 1 else "; ".join(f"{one} ({count})" for one, count in counts.items())
    return rows


def times(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return what each cell took and what it was trained on: seconds, steps, samples, tokens, and its file."""
    counts = ("steps", "samples", "dropped", "cut", "tokens", "answer_tokens")
    return [
        {
            **cell.names._asdict(), "file": str(cell.file), "seconds": cell.seconds,
            "training_seconds": (cell.training or {}).get("seconds"),
            "evaluation_seconds": sum(one.seconds or 0 for one in cell.evaluations),
            **{name: (cell.training or {}).get(name) for name in counts},
        }
        for cell in cells
    ]  # fmt: skip


def _have_losses(group: BySeed) -> bool:
    """Whether every item has a loss that is a number."""
    return all(one.losses is not None and all(map(math.isfinite, one.losses)) for one in group.values())


def _left_out(ids: Sequence[str], *groups: BySeed) -> int:
    """How many items some seed or arm has and another lacks."""
    return len({name for group in groups for one in group.values() for name in one.ids}) - len(ids)
