"""One self-contained HTML page from the finished cells of a sweep, or of several."""

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from segattn.reports.page import write_page
from segattn.reports.pictures import draw_mismatch_matrix, svg
from segattn.reports.sweep_pictures import draw_attention_maps, draw_bands, draw_head_shares, draw_lengths
from segattn.reproduction import tables
from segattn.reproduction.findings import findings, place_text
from segattn.reproduction.finished_cells import Cell, read_cells
from segattn.reproduction.pairing import BASELINE, Study
from segattn.reproduction.summary import summarize

__all__ = ["report_sweeps"]

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_MASKS = ("causal", "segments")
_LOSS, _ACCURACY = "Held-out answer loss, nats per token", "Accuracy during training"

Rows = Sequence[Mapping[str, Any]]


def report_sweeps(
    runs: Sequence[Path], path: str | os.PathLike[str], edges: Sequence[int] | None = None
) -> dict[str, Any]:
    """Write one page from all cells of some sweeps; it appears when it is complete, and loads nothing from elsewhere.

    Args:
        runs: folders with cells/*.json; the same cell in two of them counts once.
        path: the HTML file.
        edges: of the strata of prompt length, in tokens; None as `segattn.reproduction.length_strata.strata` has it.

    Returns:
        What the page says, as JSON types: "page", "runs", "notes" (what was left out or is odd), "findings", "tables".

    Raises:
        ReportError: no cell can be read, or edges that do not rise.
    """
    cells, notes = read_cells(runs)
    summary = summarize(cells, edges)
    lines = findings(summary)
    page = write_page(_TEMPLATE, _content(runs, cells, notes, summary, lines), path)
    return {
        "page": str(page),
        "runs": [str(run) for run in runs],
        "notes": notes,
        "findings": [line for part in lines.values() for line in part],
        "tables": summary,
    }


def _content(
    runs: Sequence[Path],
    cells: Sequence[Cell],
    notes: Sequence[str],
    summary: Mapping[str, Any],
    lines: Mapping[str, list[str]],
) -> dict[str, Any]:
    arms = list(dict.fromkeys(row["arm"] for row in summary["times"]))
    mismatch = [row for row in summary["mismatch"] if row["causal"] and row["segments"]]
    return {
        "title": "Segment attention against causal attention",
        "subtitle": _subtitle(cells),
        "notes": notes,
        "findings": lines,
        "accuracies": tables.accuracy_table(summary["accuracies"]),
        "differences": tables.difference_table(summary["differences"]) if summary["differences"] else None,
        "mismatch": tables.mismatch_table(mismatch) if mismatch else None,
        "mismatch_pictures": [
            _picture(_mismatch_picture(rows), name, "the accuracies of the table as colors")
            for name, rows in _grouped(mismatch, place_text)
        ],
        "curves": [
            one
            for one in (
                _curves(summary["loss_curves"], _LOSS, 4, arms, logarithmic=True),
                _curves(summary["accuracy_curves"], _ACCURACY, 3, arms, logarithmic=False),
            )
            if one is not None
        ],
        "strata": [_strata(name, rows, arms) for name, rows in _grouped(summary["strata"], place_text)],
        "scoring": tables.scoring_table(summary["accuracies"], summary["differences"]),
        "ahead": tables.ahead_table(summary["shares_ahead"]) if summary["shares_ahead"] else None,
        "ahead_pictures": [
            _picture(
                draw_head_shares({row["arm"]: row["ahead"] for row in rows}), name,
                "share of attention ahead when run with segments, layer by head, one scale for all arms",
            )
            for name, rows in _grouped(summary["shares_ahead"], _study_text)
        ],
        "map_pictures": [
            _picture(
                _maps_picture(row), _study_text(row),
                "mean attention of one prompt, each arm under its own mask; rows are queries, columns keys",
            )
            for row in summary["attention_maps"]
        ],
        "settings": summary["settings"]["shared"],
        "setting_differences": tables.settings_table(summary["settings"]) if summary["settings"]["different"] else None,
        "environment": summary["environments"],
        "times": tables.times_table(summary["times"]),
        "hours": f"{sum(row['seconds'] or 0 for row in summary['times']) / 3600:.2f}",
        "runs": [str(run) for run in runs],
    }  # fmt: skip


def _subtitle(cells: Sequence[Cell]) -> str:
    studies = dict.fromkeys(Study(*cell.names[:2]) for cell in cells)
    seeds = {cell.names.seed for cell in cells}
    arms = {cell.names.arm for cell in cells}
    counted = [("cell", len(cells)), ("arm", len(arms)), ("seed", len(seeds))]
    counts = ", ".join(f"{count} {name}{'s' if count != 1 else ''}" for name, count in counted)
    return f"{'; '.join(map(str, studies))}: {counts}"


def _study_text(row: Mapping[str, Any]) -> str:
    return str(Study(row["model"], row["data"]))


def _grouped(rows: Rows, name: Callable[[Mapping[str, Any]], str]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    return [(key, list(group)) for key, group in groupby(rows, name)]


def _picture(figure: Any, name: str, what: str) -> dict[str, Any]:
    from markupsafe import Markup

    return {"picture": Markup(svg(figure, f"{name}: {what}")), "caption": f"{name}: {what}."}


def _mismatch_picture(rows: Rows) -> Any:
    return draw_mismatch_matrix({row["arm"]: {mask: row[mask]["value"] for mask in _MASKS} for row in rows})


def _maps_picture(row: Mapping[str, Any]) -> Any:
    """Causal beside segments; of other arms the first two, for more would be too small to read."""
    maps = row["arms"]
    pair = [arm for arm in (BASELINE, "segments") if arm in maps]
    return draw_attention_maps({arm: maps[arm] for arm in (pair if len(pair) == 2 else list(maps)[:2])}, row["tokens"])


def _curves(rows: Rows, measure: str, decimals: int, arms: Sequence[str], logarithmic: bool) -> dict[str, Any] | None:
    if not rows:
        return None
    label = f"{measure[0].lower()}{measure[1:]}"
    studies = [
        {
            **_picture(
                draw_bands({row["arm"]: row for row in group}, label, arms, logarithmic), name,
                f"{label}, mean over the seeds in a band from the lowest to the highest",
            ),
            "numbers": tables.step_table(group, f"{name}: {label}", decimals),
        }
        for name, group in _grouped(rows, _study_text)
    ]  # fmt: skip
    return {"title": measure, "table": tables.curve_table(rows, measure, decimals), "studies": studies}


def _strata(name: str, rows: Rows, arms: Sequence[str]) -> dict[str, Any]:
    def lines(measure: str) -> dict[str, list[tuple[float, Mapping[str, float]]]]:
        found = {
            arm: [(row["median"], row["arms"][arm][measure]) for row in rows if row["arms"][arm][measure]]
            for arm in rows[0]["arms"]
        }
        return {arm: points for arm, points in found.items() if points}

    what = "accuracy, and its difference from causal training, at the median prompt length of each stratum"
    cuts = rows[0]["cut_offs"]
    drawn = _picture(draw_lengths(lines("accuracy"), lines("difference"), cuts, arms), name, what)
    return {**drawn, "table": tables.strata_table(rows)}
