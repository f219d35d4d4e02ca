"""What the scripts share: their options, their result files, and the loop over cells."""

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segattn.bench.machine import DTYPES, folder_name, open_device, pick_dtype, provenance
from segattn.bench.results import Cell, Results, Row
from segattn.bench.timing import QUICK, Effort, Spread
from segattn.errors import SegmentAttentionError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = ROOT / "docs" / "benchmarks"

Plan = Iterable[tuple[Cell, Callable[[], Row]]]


@dataclass(frozen=True)
class Options:
    """What a script was called with."""

    quick: bool
    fresh: bool
    device: torch.device
    dtype: torch.dtype
    output: Path | None

    @property
    def results(self) -> Path:
        """The folder of this device's result files."""
        return (self.output or RESULTS) / folder_name(self.device)

    @property
    def pictures(self) -> Path:
        """The folder of this device's pictures: in docs, or beside results that lie elsewhere."""
        return (self.output or PICTURES) / folder_name(self.device)

    def effort(self, seconds: float = 5.0, *, least: int = 3, most: int = 30, warm_up: bool = True) -> Effort:
        """Return how long a cell is measured; very short with --quick."""
        return QUICK if self.quick else Effort(seconds, least, most, warm_up)


def run(claim: str, doc: str, plan: Callable[[Options], Plan], *, dtype: str = "auto") -> None:
    """Run a script: measure its cells, save each row as it is found, draw the picture.

    Args:
        claim: the name of the result file and of the picture.
        doc: the script's docstring, for --help.
        plan: the cells, each with what measures it, in the order in which they run.
        dtype: what "--dtype" defaults to on a CPU; on a GPU it is "auto".
    """
    try:
        options = read_options(doc, dtype)
        results = measure(claim, plan, options)
        # Here, because a process that measures memory must not hold a drawing library.
        from pictures import draw

        if picture := draw(results, options.pictures / f"{claim}.png"):
            tell(f"picture: {shown(picture)}")
    except SegmentAttentionError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        tell("stopped; what was measured is saved, and the same command goes on from there")
        raise SystemExit(130) from None


def read_options(doc: str, dtype: str) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test: small sizes, few rounds, into runs/bench")
    parser.add_argument("--fresh", action="store_true", help="measure anew what the result file holds")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 and so on")
    parser.add_argument("--dtype", help=f"auto, {', '.join(DTYPES)} (default: {dtype}; auto on a GPU)")
    parser.add_argument("--output", type=Path, help="folder of results and pictures, in place of the repository's own")
    given = parser.parse_args()
    device = open_device(given.device)
    chosen = given.dtype or (dtype if device.type == "cpu" else "auto")
    output = given.output or (ROOT / "runs" / "bench" if given.quick else None)
    return Options(given.quick, given.fresh, device, pick_dtype(chosen, device), output)


def measure(claim: str, plan: Callable[[Options], Plan], options: Options) -> Results:
    """Measure the cells that the result file does not hold yet."""
    settings: dict[str, Any] = {"quick": options.quick, "dtype": str(options.dtype).removeprefix("torch.")}
    path = options.results / f"{claim}.json"
    results = Results(path, claim, settings, provenance(options.device))
    if not options.fresh and (line := results.take_up()):
        tell(line.replace(str(path), shown(path)))
    for cell, measured in plan(options):
        if results.find(cell) is None:
            row = measured()
            results.add(row)
            tell(summary(row))
    results.finish()
    tell(f"results: {shown(path)}")
    return results


def summary(row: Row) -> str:
    """One line: the cell, and each contestant against the first base that there is."""
    base = next((name for name in row.bases if name in row.figures), None)
    cell = ", ".join(str(value) for value in row.cell.values())
    if base is None:
        return f"{cell}: " + ", ".join(f"{name} {row.figure(name).median:.4g}" for name in row.figures)
    rounds = len(row.figures[base])
    ratios = ", ".join(f"{name} {_ratio(row.ratio(name, base))}" for name in row.figures if name != base)
    return f"{cell}, {rounds} rounds, relative to {base}: {ratios}" if rounds > 1 else f"{cell}: {ratios} of {base}"


def _ratio(found: Spread) -> str:
    shown = f"{found.median:.3f}"
    return shown if found.rounds == 1 else f"{shown} ({found.low:.3f}-{found.high:.3f})"


def shown(path: Path) -> str:
    """A path from the repository's root, where it lies in there."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def tell(line: str) -> None:
    """Print a line for the user."""
    print(line, file=sys.stderr, flush=True)
