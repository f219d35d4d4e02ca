"""How fast the arms learn: held-out loss and accuracy during training, means over seeds and their ranges."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from segattn.evaluation.seeds import compare_values_over_seeds, mean_over_seeds
from segattn.reproduction.finished_cells import UNTUNED, Cell
from segattn.reproduction.pairing import (
    BASELINE,
    Study,
    arms_of,
    comparison_row,
    correct_for_number,
    studies_of,
)

__all__ = ["accuracy_curves", "loss_curves"]

Points = dict[float, list[float]]
"""Step -> the numbers there: one loss, or the answers to each item."""


def loss_curves(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return the held-out answer loss of each arm (nats per token, under its own mask).

    Each row has "steps" (those that all its seeds have; no row where there are none), "mean", "low" and "high" (range
    over the seeds), and "over_run": the mean from the first of them after step 0 to the last (trapezoids), which is low
    where an arm learns fast. "comparison" is the difference of that from causal training, Student's t over seeds; None
    with one seed, where the steps after 0 differ, or where training samples were cut at another length: then the
    held-out ones are cut so too, and are others. "made_up": see `_made_up`; None for arms that are tuned causally.
    """
    return _curves(cells, _losses)


def accuracy_curves(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return the accuracy of each arm during training, on one set of items under its own mask.

    As `loss_curves`; the comparison is over seeds and items, one seed over items.
    """
    return _curves(cells, _answers)


def _losses(cell: Cell) -> Points:
    points = (cell.training or {}).get("curve") or []
    return {point["step"]: [float(point["loss"])] for point in points if math.isfinite(point["loss"])}


def _answers(cell: Cell) -> Points:
    points = (cell.training or {}).get("accuracy_curve") or []
    return {point["step"]: [float(right) for right in point["correct"]] for point in points if point["correct"]}


def _curves(cells: Sequence[Cell], read: Any) -> list[dict[str, Any]]:
    rows, compared = [], []
    for study in studies_of(cells):
        curves = {arm: _by_seed(cells, study, arm, read) for arm in arms_of(cells, study) if arm != UNTUNED}
        for arm, seeds in curves.items():
            steps = _shared_steps(seeds)
            if not steps:
                continue
            row = {
                "model": study.model,
                "data": study.data,
                "arm": arm,
                **_mean_curve(seeds, steps),
                "comparison": None,
                "made_up": None,
            }
            base = curves.get(BASELINE) or {}
            alike = read is _answers or _cut(cells, study, arm) == _cut(cells, study, BASELINE)
            if arm != BASELINE and base and alike:
                row["comparison"] = _compare(seeds, base)
                row["made_up"] = _made_up(seeds, base) if _for_segments(cells, study, arm) else None
            rows.append(row)
            compared += [row["comparison"]] if row["comparison"] else []
    correct_for_number(compared)
    return rows


def _cut(cells: Sequence[Cell], study: Study, arm: str) -> set[Any]:
    """The lengths at which samples of an arm were cut."""
    return {cell.settings.get("max_length") for cell in cells if cell.names[:3] == (*study, arm)}


def _for_segments(cells: Sequence[Cell], study: Study, arm: str) -> bool:
    return all(cell.own_mask == "segments" for cell in cells if cell.names[:3] == (*study, arm))


def _by_seed(cells: Sequence[Cell], study: Study, arm: str, read: Any) -> dict[int, Points]:
    found = {cell.names.seed: read(cell) for cell in cells if cell.names[:3] == (*study, arm)}
    return {seed: points for seed, points in sorted(found.items()) if points}


def _shared_steps(seeds: dict[int, Points]) -> list[float]:
    return sorted(set.intersection(*(set(points) for points in seeds.values()))) if seeds else []


def _mean_curve(seeds: dict[int, Points], steps: Sequence[float]) -> dict[str, Any]:
    means = [[sum(points[step]) / len(points[step]) for points in seeds.values()] for step in steps]
    shared = [{step: points[step] for step in steps} for points in seeds.values()]
    return {
        "seeds": len(seeds),
        "steps": steps,
        "mean": [sum(values) / len(values) for values in means],
        "low": [min(values) for values in means],
        "high": [max(values) for values in means],
        "over_run": sum(_mean(_over_run(points)) for points in shared) / len(seeds),
    }


def _over_run(points: Points) -> list[float]:
    """The mean over the run of each number, the untuned start left out."""
    from scipy.integrate import trapezoid

    steps = _tuned_steps(points)
    if len(steps) == 1:
        return points[steps[0]]
    area = trapezoid([points[step] for step in steps], x=steps, axis=0)
    return [float(value) / (steps[-1] - steps[0]) for value in area]


def _tuned_steps(points: Points) -> list[float]:
    return sorted(step for step in points if step > 0) or sorted(points)


def _compare(seeds: dict[int, Points], base: dict[int, Points]) -> dict[str, Any] | None:
    shared = [seed for seed in seeds if seed in base]
    first, second = ([_over_run(group[seed]) for seed in shared] for group in (seeds, base))
    same_steps = all(_tuned_steps(seeds[seed]) == _tuned_steps(base[seed]) for seed in shared)
    if not shared or not same_steps or len({len(row) for row in [*first, *second]}) != 1:
        return None
    # One number of one seed has no interval.
    if len(shared) == 1 and len(first[0]) == 1:
        return None
    return comparison_row(compare_values_over_seeds(first, second))


def _made_up(seeds: dict[int, Points], base: dict[int, Points]) -> dict[str, Any] | None:
    """How much of the loss that the mask costs before the first step is made up at the curve's next point.

    Returns:
        "step", "share" (1: no more loss than causal training has then; mean over seeds with Student's t interval),
        "before" and "after" (mean loss above that of causal training); None for fewer than two seeds, for answers in
        place of losses, and where the mask costs nothing at the start.
    """
    gaps = []
    for seed in seeds:
        arm, causal = seeds[seed], base.get(seed, {})
        steps = sorted(arm)[:2]
        if len(steps) < 2 or steps[0] != 0 or steps != sorted(causal)[:2] or any(len(arm[step]) > 1 for step in steps):
            continue
        gaps.append((steps[1], *(arm[step][0] - causal[step][0] for step in steps)))
    if len(gaps) < 2 or len({step for step, _, _ in gaps}) > 1 or any(before <= 0 for _, before, _ in gaps):
        return None
    return {
        "step": gaps[0][0],
        "share": asdict(mean_over_seeds([[1 - after / before] for _, before, after in gaps])),
        "before": _mean([before for _, before, _ in gaps]),
        "after": _mean([after for _, _, after in gaps]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
