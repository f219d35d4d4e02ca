"""The results as tables and as a picture of learning curves."""

import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from .arms import ARMS
from .tables import COPIES, HOPS, Item, answers_by_ruling_out, split_items

__all__ = ["RATE", "draw_curves", "report"]

Row = dict[str, Any]
RATE = 3e-3
COLORS = dict(zip(ARMS, ("#3b7dd8", "#e8912d", "#3a9d5d", "#9056c4"), strict=True))


def report(rows: Sequence[Row], rate: float = RATE) -> str:
    """Return the tables of a results file, in Markdown.

    Accuracies are the share of answer entries that are right: the mean over seeds with a 95 % t-interval over seeds.

    Args:
        rows: of the results file.
        rate: the learning rate of the comparison; other rates have a table of their own.
    """
    main = [row for row in rows if row["cell"]["learning_rate"] == rate]
    parts = [_accuracy_table(main), _difference_table(main), _mask_table(main), _rate_table(rows)]
    return "\n\n".join(part for part in parts if part)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return a mean and the half width of its 95 % t-interval; nan for a single value."""
    from scipy.stats import t

    count = len(values)
    if count < 2:
        return fmean(values), math.nan
    return fmean(values), float(t.ppf(0.975, count - 1)) * stdev(values) / math.sqrt(count)


def _shown(values: Sequence[float], sign: str = "") -> str:
    mean, half = interval(values)
    return f"{mean:{sign}.3f}" if math.isnan(half) else f"{mean:{sign}.3f} ± {half:.3f}"


def _lines(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    header, lines = list(header), [list(line) for line in lines]
    if not lines:
        return ""
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *lines))


def _groups(rows: Sequence[Row]) -> Iterable[tuple[str, str, list[Row]]]:
    for task in COPIES:
        for arm in ARMS:
            group = [row for row in rows if (row["cell"]["task"], row["cell"]["arm"]) == (task, arm)]
            if group:
                yield task, arm, sorted(group, key=lambda row: row["cell"]["seed"])


def _final(row: Row, hops: str, mask: str | None = None, figure: str = "accuracy") -> float:
    return float(row["final"][mask or ARMS[row["cell"]["arm"]].policy][hops][figure])


def _accuracy_table(rows: Sequence[Row]) -> str:
    lines = [
        [task, arm, str(len(group)), *(_shown([_final(row, hops) for row in group]) for hops in HOPS.values())]
        for task, arm, group in _groups(rows)
    ]
    if lines:
        lines.append(["", "by ruling out", "", *(f"{_chance(number):.3f}" for number in HOPS)])
    return _lines(["table", "arm", "seeds", *HOPS.values()], lines)


@cache
def _chance(hops: int) -> float:
    """What ruling out gives, from 10,000 draws."""
    held_out = split_items(0, 400)[1]
    items = [item for item in held_out if item.hops == hops]
    return answers_by_ruling_out([Item(item.table, hops) for item in items] * 25)


def _difference_table(rows: Sequence[Row]) -> str:
    """Each arm minus the causal one, seed by seed."""
    groups = {(task, arm): {row["cell"]["seed"]: row for row in group} for task, arm, group in _groups(rows)}
    lines = []
    for (task, arm), group in groups.items():
        causal = groups.get((task, "causal"), {})
        seeds = sorted(set(group) & set(causal))
        if arm != "causal" and seeds:
            pairs = [(group[seed], causal[seed]) for seed in seeds]
            differences = ([_final(a, hops) - _final(b, hops) for a, b in pairs] for hops in HOPS.values())
            lines.append([task, arm, str(len(seeds)), *(_shown(values, "+") for values in differences)])
    return _lines(["table", "arm, minus causal", "pairs", *HOPS.values()], lines)


def _mask_table(rows: Sequence[Row]) -> str:
    """Thrice, under each mask that a model can be run with."""
    masks = {"run causally": "causal", "run with segments": "turns", "run with one segment": "prefix"}
    lines = [
        [task, arm, *(_shown([_final(row, "thrice", mask) for row in group]) for mask in masks.values())]
        for task, arm, group in _groups(rows)
    ]
    return _lines(["table", "trained", *(f"thrice, {name}" for name in masks)], lines)


def _rate_table(rows: Sequence[Row]) -> str:
    """Seed 0 with each learning rate: answer loss over all numbers of steps."""
    chosen = [row for row in rows if row["cell"]["seed"] == 0 and row["cell"]["task"] == "shown once"]
    rates = sorted({row["cell"]["learning_rate"] for row in chosen})
    if len(rates) < 2:
        return ""
    lines = []
    for arm in ARMS:
        found = {row["cell"]["learning_rate"]: row for row in chosen if row["cell"]["arm"] == arm}
        cells = [f"{_final(found[rate], 'thrice'):.3f}" if rate in found else "" for rate in rates]
        if any(cells):
            lines.append([arm, *cells])
    return _lines(["arm, thrice", *(f"rate {rate:g}" for rate in rates)], lines)


def draw_curves(rows: Sequence[Row], path: Path, rate: float = RATE) -> None:
    """Draw held-out accuracy against steps: a row of panels per task, a column per number of steps asked for.

    Lines are means over seeds, bands reach from the lowest to the highest seed.
    """
    from matplotlib.figure import Figure

    groups = list(_groups([row for row in rows if row["cell"]["learning_rate"] == rate]))
    tasks = [task for task in COPIES if any(task == found for found, _, _ in groups)]
    if not tasks:
        return
    figure = Figure(figsize=(9, 0.6 + 2.4 * len(tasks)), layout="constrained", facecolor="white")
    panels = figure.subplots(len(tasks), len(HOPS), sharex=True, sharey=True, squeeze=False)
    for line, task in zip(panels, tasks, strict=True):
        for (number, hops), axes in zip(HOPS.items(), line, strict=True):
            for _, arm, group in (found for found in groups if found[0] == task):
                steps = [point["step"] for point in group[0]["curve"]]
                points = list(zip(*([p[hops]["accuracy"] for p in row["curve"]] for row in group), strict=True))
                axes.plot(steps, [fmean(at) for at in points], color=COLORS[arm], label=arm, lw=1.6)
                low, high = [min(at) for at in points], [max(at) for at in points]
                axes.fill_between(steps, low, high, color=COLORS[arm], alpha=0.15, lw=0)
            axes.axhline(_chance(number), color="#888888", lw=0.8, ls="--")
            axes.set_title(f"{hops}, table {task}", fontsize=9)
            axes.set_ylim(0, 1.03)
        line[0].set_ylabel("entries right")
    for axes in panels[-1]:
        axes.set_xlabel("optimizer steps")
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(ARMS), frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
