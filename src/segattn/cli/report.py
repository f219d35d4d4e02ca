"""Write the report of finished runs again."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["command"]

_RESULT_FILES = ("results.json", "training_result.json", "adapt_result.json")


def command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of `segattn reproduce`, `demo`, `train` or `adapt`, or result files of the latter."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="The page; default: report.html (reproduce, demo) or train_report.html in the run's folder. For one "
            "page only."
        ),
    ] = None,
    edges: Annotated[
        str | None,
        typer.Option(
            help="For sweeps: longest prompt of each stratum but the last, in tokens, e.g. 64,128,256; default: "
            "those of the sweep, or else quarters of the items."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print findings and tables of each page as JSON.")] = False,
) -> None:
    """Write the page of finished runs from their results; nothing is run again.

    Sweeps (`segattn reproduce`) that are given together become one page, in the folder of the first; demo, train and
    adapt get a page each.

    Example:  segattn report runs/sweep runs/more-seeds --output report.html
    """
    from segattn.reports.page import ReportError

    sweeps = [run for run in runs if _is_sweep(run)]
    others = [run for run in runs if run not in sweeps]
    pages = len(others) + bool(sweeps)
    if output is not None and pages > 1:
        raise ReportError(f"--output names one page, but these {len(runs)} runs make {pages}; leave it out")
    reports = [_write_sweeps(sweeps, output, edges)] if sweeps else []
    reports += [_write(run, output) for run in others]
    for report in reports:
        for note in report["notes"]:
            print(f"note: {note}", file=sys.stderr)
        if not as_json:
            print(report["page"])
    if as_json:
        print(json.dumps({"reports": reports}, indent=1))
    print(f"{pages} report{'s' if pages > 1 else ''} written", file=sys.stderr)


def _is_sweep(run: Path) -> bool:
    """Whether a folder has cells, or a place for cells and no other result."""
    from segattn.reproduction.finished_cells import cell_files

    if cell_files(run):
        return True
    return (run / "cells").is_dir() and not any((run / name).is_file() for name in _RESULT_FILES)


def _write_sweeps(sweeps: list[Path], output: Path | None, edges: str | None) -> dict[str, Any]:
    from segattn.reports.page import ReportError
    from segattn.reproduction.report import report_sweeps

    try:
        numbers = None if edges is None else [int(edge) for edge in edges.split(",")]
    except ValueError as error:
        raise ReportError(f"got --edges {edges}; expected numbers of tokens with commas, e.g. 64,128,256") from error
    return report_sweeps(sweeps, output or sweeps[0] / "report.html", numbers)


def _write(run: Path, output: Path | None) -> dict[str, Any]:
    file = run
    if run.is_dir():
        file = next((run / name for name in _RESULT_FILES if (run / name).is_file()), run / _RESULT_FILES[0])
    results = _read(file)
    if isinstance(results.get("result"), dict):
        from segattn.training.report import REPORT_FILE, findings, write_train_report

        page = write_train_report(results, output or file.with_name(REPORT_FILE))
        lines, tables = findings(results), {"result": results["result"]}
    else:
        from segattn.evaluation import report

        page = report.write_report(results, output or file.with_name("report.html"))
        lines, tables = report.findings(results), {name: results[name] for name in ("matrix", "comparisons")}
    return {"page": str(page), "runs": [str(run)], "notes": [], "findings": lines, "tables": tables}


def _read(file: Path) -> dict[str, Any]:
    from segattn.reports.page import ReportError

    expected = (
        f"expected a folder of `segattn reproduce` (cells/*.json) or the results of `segattn demo`, `train` or `adapt` "
        f"({', '.join(_RESULT_FILES)})"
    )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{file} cannot be read ({error}); {expected}") from error
    if not isinstance(content, dict):
        raise ReportError(f"{file} holds a {type(content).__name__}; {expected}")
    return content
