"""Run a sweep: models, data sets, arms and seeds, cell by cell."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["command"]


def command(
    config: Annotated[
        str,
        typer.Option(help="A YAML file, or a sweep that is shipped: paper, smollm2, long-prompts."),
    ],
    data_folder: Annotated[
        Path | None, typer.Option(help="Where the relative paths of data sets in the file are looked up.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The folder of the sweep. Default: runs/reproduce/ and the name of the file.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Only these models of the file, or other ones: a folder or a hub id.")
    ] = None,
    data: Annotated[list[str] | None, typer.Option(help="Only these data sets of the file; may be repeated.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Only these arms of the file; may be repeated.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="These seeds in place of the file's; may be repeated.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="List the cells and which are missing; run nothing.")] = False,
    ray: Annotated[
        str | None, typer.Option(help="Run the cells on a Ray cluster: its address, auto, or local to start one here.")
    ] = None,
    cpus: Annotated[float, typer.Option(min=0.1, help="CPUs of a cell on Ray.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of a cell on Ray.")] = 0,
) -> None:
    """Train and score every model, data set, arm and seed of a sweep, and write its report.

    Each finished cell is a file under OUTPUT/cells; a sweep that was stopped goes on with what is missing. Start the
    command several times (with one GPU each, say) and the processes share the cells; under `accelerate launch -m
    segattn reproduce` they train each cell together; `--ray auto` spreads cells over a cluster.

    Example:  segattn reproduce --config smollm2 --data-folder data --data banking77 --seed 0 --seed 1
    """
    from segattn.reproduction.settings import load_sweep
    from segattn.reproduction.sweep import missing_cells, run_on_ray, run_sweep
    from segattn.reproduction.sweep import plan as cells_of

    sweep = load_sweep(config, {"models": model, "data": data, "arms": arm, "seeds": seed})
    target = output or Path("runs/reproduce") / Path(config).stem
    if plan:
        _list(cells_of(sweep), missing_cells(sweep, target))
        return
    options: dict[str, Any] = {"data_folder": data_folder, "tell": _tell}
    if ray is None:
        missing = run_sweep(sweep, target, **options)
    else:
        address = None if ray == "local" else ray
        missing = run_on_ray(sweep, target, cpus=cpus, gpus=gpus, address=address, **options)
    if os.environ.get("RANK", "0") != "0":
        return
    if missing:
        _tell(f"{len(missing)} cells are being run by other processes; segattn report {target} writes the page of all")
    if any((target / "cells").glob("*.json")):
        from segattn.reproduction.report import report_sweeps

        report_sweeps([target], target / "report.html")
        print(target / "report.html")


def _tell(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)


def _list(cells: list[Any], missing: list[Any]) -> None:
    for names in cells:
        print("missing " if names in missing else "finished", ", ".join(map(str, names)))
    print(f"{len(cells) - len(missing)} of {len(cells)} cells are finished", file=sys.stderr)
