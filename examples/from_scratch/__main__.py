"""Train small decoders from zero on pointer tables, causally and under segments, and compare them.

What is finished stays in the results file, and a run that was cut off goes on with the next model. Several runs may
share a file, each with other models: --task, --arm and --rate choose them.

Example: python -m examples.from_scratch --quick
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from .arms import ARMS
from .report import RATE, draw_curves, report
from .results import add_row, has_row, read_rows
from .tables import COPIES
from .training import FULL, QUICK, Cell, run_cell

FOLDER = Path(__file__).parent / "results"
QUICK_FOLDER = Path("runs/from_scratch")
OTHER_RATES = (1e-3, 6e-3)


def plan(seeds: int, check_rates: bool) -> Iterator[Cell]:
    """Yield the cells of the comparison, a seed after the other; then those that check the learning rate."""
    for seed in range(seeds):
        for task in COPIES:
            for arm in ARMS:
                yield Cell(task, arm, RATE, seed)
    for rate in OTHER_RATES if check_rates else ():
        for arm in ARMS:
            yield Cell("shown once", arm, rate, 0)


def main(arguments: list[str] | None = None) -> None:
    options = read_options(arguments)
    effort = QUICK if options.quick else FULL
    name = "quick" if options.quick else "full"
    folder = options.results or (QUICK_FOLDER if options.quick else FOLDER)
    file = folder / f"{name}.jsonl"
    torch.set_num_threads(options.threads)
    seeds = 1 if options.quick else options.seeds
    left = options.most
    for cell in plan(seeds, check_rates=not options.quick):
        if cell.task not in options.task or cell.arm not in options.arm or has_row(file, cell, effort):
            continue
        if options.rate and cell.learning_rate not in options.rate:
            continue
        if left == 0:
            break
        left -= 1
        row = run_cell(cell, effort)
        add_row(file, row)
        mask = ARMS[cell.arm].policy
        found = ", ".join(f"{hops} {score['accuracy']:.3f}" for hops, score in row["final"][mask].items())
        print(f"{cell.task}, {cell.arm}, rate {cell.learning_rate}, seed {cell.seed}: {found}", file=sys.stderr)
    rows = [row for row in read_rows(file) if row["effort"] == asdict(effort)]
    print(report(rows))
    draw_curves(rows, folder / f"{name}.png")


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    doc = (__doc__ or "").strip()
    parser = argparse.ArgumentParser(
        prog="python -m examples.from_scratch", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, few steps: shows that it runs (default: off)")
    parser.add_argument("--seeds", type=int, default=5, help="train this many models per arm (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: 1)")
    parser.add_argument("--task", nargs="+", choices=COPIES, default=list(COPIES), help="only these (default: all)")
    parser.add_argument("--arm", nargs="+", choices=ARMS, default=list(ARMS), help="only these (default: all)")
    parser.add_argument("--rate", nargs="+", type=float, help="only these learning rates (default: all)")
    parser.add_argument("--most", type=int, default=-1, help="stop after this many models (default: -1, no limit)")
    parser.add_argument(
        "--results",
        type=Path,
        help="folder of the results (default: results/ of the example; runs/from_scratch with --quick)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
