"""The main job in small: tune, compare, report."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["command"]


def command(
    model: Annotated[str | None, typer.Option(help="smollm2 (the default), a folder or a hub id.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="A folder or hub data set whose rows have choices, in place of the story worlds."),
    ] = None,
    difficulty: Annotated[str | None, typer.Option(help="Of the story worlds: easy, medium or hard.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps of each arm.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples a step.")] = None,
    opening_steps: Annotated[
        int | None, typer.Option(min=0, help="Open the segments over this many steps. Default: half of --steps.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=2, help="Held-out samples of the matrix.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the stories, their order and the adapters.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="bfloat16 or float32. Default: bfloat16, unless the processor only emulates it."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of results, adapters and report.html.")] = Path("runs/demo"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew, whatever the folder holds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Tune a small model twice, causally and with segments, and compare both under both masks.

    The two arms see the same samples in the same order. The base model, the causally tuned and the segment-tuned one
    are each run under both masks; tables, learning curves and the mask of one example go to report.html. A run that was
    cut off goes on where it was.

    Example:  segattn demo

    Example:  segattn demo --data data/banking77 --steps 200 --output runs/banking77
    """
    from segattn.demo.experiment import run_experiment
    from segattn.demo.settings import DemoSettings
    from segattn.evaluation.report import write_report

    given = {
        "model": model,
        "data": data,
        "difficulty": difficulty,
        "steps": steps,
        "batch_size": batch_size,
        "matrix_samples": samples,
        "seed": seed,
        "dtype": dtype,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    halfway = chosen.get("steps", DemoSettings.steps) // 2
    settings = DemoSettings(**chosen, opening_steps=halfway if opening_steps is None else opening_steps)
    # Trainers print to stdout, which belongs to the result.
    with contextlib.redirect_stdout(sys.stderr):
        results = run_experiment(settings, output, fresh=fresh, tell=_tell)
        page = write_report(results, output / "report.html")
    if as_json:
        print(json.dumps(results, indent=1))
    else:
        _print_summary(results)
    _tell(f"report: {page}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_summary(results: dict[str, Any]) -> None:
    """The mismatch matrix, and what the comparison of the two arms allows to say."""
    from rich.console import Console
    from rich.table import Table

    from segattn.evaluation.report import findings

    size = len(results["matrix"]["base"]["causal"]["correct"])
    table = Table(title=f"accuracy on {size} held-out samples, 95 % interval (chance {results['chance']:.2f})")
    for heading in ("model", "run causally", "run with segments"):
        table.add_column(heading)
    for tuned, row in results["matrix"].items():
        name = "not tuned" if tuned == "base" else f"tuned {'causally' if tuned == 'causal' else 'with segments'}"
        table.add_row(name, *(_accuracy(row[attention]["accuracy"]) for attention in ("causal", "segments")))
    console = Console()
    console.print(table)
    for line in findings(results)[:2]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{results['seconds']['total']:.0f} seconds in all", highlight=False)


def _accuracy(interval: dict[str, float]) -> str:
    return f"{interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"
