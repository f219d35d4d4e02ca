"""One self-contained HTML page from the results of the two-arm experiment (`segattn.demo.experiment`)."""

import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segattn.reports.numbers import interval_text
from segattn.reports.page import ReportError, write_page
from segattn.reports.pictures import draw_learning_curves, draw_mask, draw_mismatch_matrix, svg

__all__ = ["ReportError", "findings", "write_report"]

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_MASKS = ("causal", "segments")
# Losses of tuned models are small.
_DECIMALS = {"accuracy": 3, "loss": 4}
_NEEDED = ("settings", "arms", "matrix", "comparisons", "chance", "example", "environment", "seconds")


def write_report(results: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the page; it appears when it is complete. Pictures are inline, nothing is loaded from elsewhere.

    Args:
        results: what `segattn.demo.experiment.run_experiment` returns.
        path: the HTML file.

    Returns:
        The path.

    Raises:
        ReportError: the results are not complete.
    """
    missing = [name for name in _NEEDED if name not in results]
    if missing:
        raise ReportError(
            f"the results lack {', '.join(missing)}; expected those of a finished run. Run `segattn demo` again: it "
            "goes on where it was"
        )
    return write_page(_TEMPLATE, _content(results), path)


def _content(results: Mapping[str, Any]) -> dict[str, Any]:
    from markupsafe import Markup

    settings, matrix = results["settings"], results["matrix"]
    example, curves = results["example"], {arm: results["arms"][arm]["curve"] for arm in results["arms"]}
    accuracies = {name: {mask: row[mask]["accuracy"]["value"] for mask in _MASKS} for name, row in matrix.items()}
    task = f"stories, {settings['difficulty']}" if settings["data"] is None else Path(settings["data"]).name
    return {
        "title": "Causal against segment attention",
        "subtitle": f"{settings['model']}, {task}, {settings['steps']} steps of {settings['batch_size']} samples, "
        f"seed {settings['seed']}: one run of each arm",
        "findings": findings(results),
        "size": len(matrix["base"]["causal"]["correct"]),
        "chance": results["chance"],
        "matrix": [_matrix_row(name, row) for name, row in matrix.items()],
        "matrix_picture": Markup(svg(draw_mismatch_matrix(accuracies), "The accuracies of the table above as colors")),
        "comparisons": [_comparison_row(one) for one in results["comparisons"]],
        "baselines": results.get("baselines"),
        "arms": list(curves),
        "curve_rows": _curve_rows(curves),
        "curves_picture": Markup(svg(draw_learning_curves(curves), "Held-out loss against steps, in numbers below")),
        "mask_picture": Markup(
            svg(draw_mask(example["segment_ids"], example["tokens"]), "Which token of the example may attend to which")
        ),
        "reading": _reading(settings),
        "settings": {name: "story worlds" if value is None else value for name, value in settings.items()},
        "environment": results["environment"],
        "seconds": results["seconds"],
        "command": shlex.join(["segattn", "demo", *_flags(settings)]),
    }


def _flags(settings: Mapping[str, Any]) -> list[str]:
    """The options of `segattn demo` that give these settings (those it has; the others have their defaults)."""
    names = {
        "model": "model", "data": "data", "difficulty": "difficulty", "steps": "steps", "batch-size": "batch_size",
        "opening-steps": "opening_steps", "samples": "matrix_samples", "seed": "seed", "dtype": "dtype",
    }  # fmt: skip
    given = {flag: settings[name] for flag, name in names.items() if settings.get(name) is not None}
    return [word for flag, value in given.items() for word in (f"--{flag}", str(value))]


def _matrix_row(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    cells = [
        {"text": interval_text(row[mask][measure], _DECIMALS[measure]), "own": name == mask}
        for measure in ("accuracy", "loss")
        for mask in _MASKS
    ]
    return {"name": "not tuned" if name == "base" else f"tuned {name}", "cells": cells}


def _comparison_row(comparison: Mapping[str, Any]) -> dict[str, str]:
    difference, p_value = comparison["difference"], comparison["p_value"]
    return {
        **{name: comparison[name] for name in ("first", "second", "measure", "verdict")},
        "difference": interval_text(difference, _DECIMALS[comparison["measure"]], "+"),
        "p": "" if p_value is None else f"{p_value:.2g}",
    }


def _curve_rows(curves: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    by_step = {arm: {point["step"]: point["loss"] for point in points} for arm, points in curves.items()}
    steps = sorted({step for points in by_step.values() for step in points})
    return [
        {"step": step, "losses": [f"{losses.get(step, math.nan):.4f}" for losses in by_step.values()]} for step in steps
    ]


def findings(results: Mapping[str, Any]) -> list[str]:
    """Say in words what the comparisons show, whichever arm it favors; the first two compare the arms.

    Args:
        results: what `segattn.demo.experiment.run_experiment` returns.

    Returns:
        One sentence per comparison.
    """
    lines = []
    for comparison in results["comparisons"]:
        difference = comparison["difference"]
        size = interval_text(difference, _DECIMALS[comparison["measure"]], "+")
        higher_is_better = comparison["measure"] == "accuracy"
        better = (difference["value"] > 0) == higher_is_better
        verdict = f"{'better' if better else 'worse'} by" if comparison["shown"] else "no difference shown,"
        measure = comparison["measure"].capitalize()
        pair = f"[{comparison['first']}] against [{comparison['second']}]"
        lines.append(f"{measure}, {pair}: {verdict} {size}.{_width(comparison)}")
    return lines


def _width(comparison: Mapping[str, Any]) -> str:
    """Say what an interval without width hides: two models that agree on every sample are not proven equal."""
    difference = comparison["difference"]
    if comparison["measure"] != "accuracy" or not difference["low"] == difference["high"] == 0:
        return ""
    # Rule of three: what was not seen once in n samples has a 95 % upper bound of about 3 / n.
    unseen = min(1.0, 3 / comparison["samples"])
    return (
        f" Both are right and wrong on the same {comparison['samples']} samples, so the interval has no width; samples "
        f"on which they differ could still be up to about {100 * unseen:.1f} % of all."
    )


def _reading(settings: Mapping[str, Any]) -> str:
    return (
        f"One run of each arm, one seed, {settings['steps']} steps: the intervals speak of other samples of the same "
        "kind, not of other seeds, and two runs that differ only in their seed can lie further apart than the two arms "
        "do here. A small model, tuned for minutes on one narrow task, can show that it learns under either mask, how "
        "fast, and what happens when it is run under the mask it was not tuned for. It cannot show whether segment "
        "attention helps a larger model on tasks of general knowledge; the method's authors report gains for models of "
        "1B parameters and more (arXiv 2412.18487)."
    )
