"""Write the report of finished runs again."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["command"]


def command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of `segattn demo`, or their results.json files.")],
    output: Annotated[
        Path | None, typer.Option(help="The page; default: report.html in the run's folder. For one run only.")
    ] = None,
) -> None:
    """Write report.html from the results of finished demo runs, one page each; nothing is run again.

    Example:  segattn report runs/demo
    """
    from segattn.evaluation.report import ReportError, write_report

    if output is not None and len(runs) > 1:
        raise ReportError(f"--output names one page, but there are {len(runs)} runs; leave it out")
    for run in runs:
        file = run / "results.json" if run.is_dir() else run
        page = write_report(_read(file), output or file.with_name("report.html"))
        print(page)
    print(f"{len(runs)} report{'s' if len(runs) > 1 else ''} written", file=sys.stderr)


def _read(file: Path) -> dict[str, Any]:
    from segattn.evaluation.report import ReportError

    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{file} cannot be read ({error}); expected the results of `segattn demo`") from error
    if not isinstance(content, dict):
        raise ReportError(f"{file} holds a {type(content).__name__}; expected the results of `segattn demo`")
    return content
