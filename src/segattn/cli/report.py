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
        list[Path], typer.Argument(help="Folders of `segattn demo`, `train` or `adapt`, or their result files.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="The page; default: report.html (demo) or train_report.html in the run's folder. For one run only."
        ),
    ] = None,
) -> None:
    """Write the page of finished runs of demo, train or adapt from their results, one each; nothing is run again.

    Example:  segattn report runs/demo runs/train
    """
    from segattn.reports.page import ReportError

    if output is not None and len(runs) > 1:
        raise ReportError(f"--output names one page, but there are {len(runs)} runs; leave it out")
    for run in runs:
        print(_write(run, output))
    print(f"{len(runs)} report{'s' if len(runs) > 1 else ''} written", file=sys.stderr)


def _write(run: Path, output: Path | None) -> Path:
    file = run
    if run.is_dir():
        file = next((run / name for name in _RESULT_FILES if (run / name).is_file()), run / _RESULT_FILES[0])
    results = _read(file)
    if isinstance(results.get("result"), dict):
        from segattn.training.report import REPORT_FILE, write_train_report

        return write_train_report(results, output or file.with_name(REPORT_FILE))
    from segattn.evaluation.report import write_report

    return write_report(results, output or file.with_name("report.html"))


def _read(file: Path) -> dict[str, Any]:
    from segattn.reports.page import ReportError

    expected = f"expected the results of `segattn demo`, `train` or `adapt` ({', '.join(_RESULT_FILES)})"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{file} cannot be read ({error}); {expected}") from error
    if not isinstance(content, dict):
        raise ReportError(f"{file} holds a {type(content).__name__}; {expected}")
    return content
