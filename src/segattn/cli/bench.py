"""Measure segments against a causal and a dense mask on this machine."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["command"]


def command(
    length: Annotated[
        list[int] | None, typer.Option(help="Tokens, 20 or more; may be repeated. Default: 512, 1024, 2048 and 4096.")
    ] = None,
    layout: Annotated[
        list[str] | None,
        typer.Option(
            help="25/70/5 (the default: system, user, causal tail), 'one 95 %' or '7 turns'; may be repeated."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Also the prefill of this model: smollm2, a folder or a hub id.")
    ] = None,
    backward: Annotated[bool, typer.Option("--backward", help="Attention forward and backward, too.")] = False,
    heads: Annotated[int, typer.Option(help="Heads of the query, for attention alone.")] = 8,
    kv_heads: Annotated[int, typer.Option(help="Heads of key and value; divides --heads.")] = 2,
    head_size: Annotated[int, typer.Option(help="Numbers per head.")] = 64,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1 and so on.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="auto (bfloat16 where the device computes it), float32, bfloat16, float16 or float64.")
    ] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="256 tokens, few rounds: shows that it runs.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="Save each row here (JSON); a run that was cut off goes on from it.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure anew what the output file holds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Time attention, and a model's prefill, with segments: sliced, under a dense mask, and causal beside them.

    The contestants take turns in this process; each is checked against the formula before it is timed. Figures are
    medians, ratios are taken round by round with their quartiles in brackets. The bound is what the scores that the
    rule allows would take at the speed of attention without a mask; for a model, the causal prefill and the scores that
    segments add to it. Nothing else should run meanwhile.

    Example:  segattn bench --length 1024 --length 4096

    Example:  segattn bench --model smollm2 --length 1024 --output bench.json
    """
    from segattn.bench.command import BenchSettings, run_bench

    settings = BenchSettings(
        tuple(length or ()), tuple(layout or ("25/70/5",)), model, backward, quick, device, dtype,
        heads, kv_heads, head_size,
    )  # fmt: skip
    with _progress() as progress:
        results = run_bench(settings, output, fresh=fresh, tell=_tell, progress=progress)
    if as_json:
        print(json.dumps(results.to_dict(), indent=1))
    else:
        _print_tables(results)
        if output is not None:
            _tell(f"results: {output}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class _Lines:
    """A line for each cell, for pipes."""

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to take back."""

    def __call__(self, done: int, total: int, following: str) -> None:
        if done < total:
            _tell(f"{done + 1} of {total}: {following}")


class _Bar:
    """A progress bar that names the cell, for terminals."""

    def __enter__(self) -> "_Bar":
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.progress.add_task("starting", total=None)
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, done: int, total: int, following: str) -> None:
        self.progress.update(self.task, completed=done, total=total, description=following)


def _progress() -> Any:
    return _Bar() if sys.stderr.isatty() else _Lines()


def _print_tables(results: Any) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120)
    where = f"{results.provenance['device']}, {results.settings['dtype']}"
    attention = [row for row in results.rows if "pass" in row.cell]
    for direction in dict.fromkeys(row.cell["pass"] for row in attention):
        rows = [row for row in attention if row.cell["pass"] == direction]
        console.print(_table(f"attention, {direction}, ms ({where})", rows, "sliced"))
    if prefill := [row for row in results.rows if "model" in row.cell]:
        console.print(_table(f"prefill of {prefill[0].cell['model']}, ms ({where})", prefill, "segments"))
    console.print("in brackets: quartiles of the ratios, taken round by round", highlight=False)
    if results.settings["quick"]:
        console.print("--quick: too few rounds to conclude anything", highlight=False)


def _table(title: str, rows: list[Any], ours: str) -> Any:
    from rich.table import Table

    table = Table(title=title)
    names = [name for name in ("causal", "dense", ours, "bound") if name in rows[0].figures]
    headings = ["tokens", "layout", *names, *(f"{ours} / {base}" for base in names if base != ours)]
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "layout" else "right")
    for row in rows:
        figures = [f"{1000 * row.figure(name).median:.1f}" for name in names]
        ratios = [_ratio(row.ratio(ours, base)) for base in names if base != ours]
        table.add_row(str(row.cell["length"]), row.cell["layout"], *figures, *ratios)
    return table


def _ratio(found: Any) -> str:
    return f"{found.median:.2f} ({found.low:.2f}-{found.high:.2f})"
