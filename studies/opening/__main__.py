"""Run the cells of the study that are missing: `python -m studies.opening --data DATA`.

Each finished cell is a row of results/cells.jsonl. Several processes may run at once, on one thread each: a cell that
another one has begun is skipped.
"""

import argparse
import fcntl
import itertools
import json
from pathlib import Path

from studies.opening.arms import ARMS, TASKS, task_samples
from studies.opening.cell import BATCH_SIZE, run_cell

from segattn.pretrained import resolve_model

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run cells, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds banking77/")
    parser.add_argument("--model", default="smollm2", help="a folder, a hub id, or smollm2 (default)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of cells.jsonl")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    chosen = parser.parse_args()
    chosen.output.mkdir(parents=True, exist_ok=True)
    model = resolve_model(chosen.model)
    for seed, arm, name in itertools.product(chosen.seeds, chosen.arms, chosen.tasks):
        _run_if_missing(name, arm, seed, model, chosen.data, chosen.output / "cells.jsonl")


def _run_if_missing(name: str, arm: str, seed: int, model: str, data: Path, file: Path) -> None:
    names = {"task": name, "arm": arm, "seed": seed}
    with (file.parent / f".{name}-{arm}-{seed}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another process is at it
        if _is_done(names, file):
            return
        print(names, flush=True)
        train_samples, items = task_samples(TASKS[name], seed, BATCH_SIZE, data)
        row = run_cell(arm, TASKS[name], seed, model, train_samples, items)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({**names, **row}) + "\n")


def _is_done(names: dict[str, object], file: Path) -> bool:
    if not file.exists():
        return False
    rows = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    return any(all(row[key] == value for key, value in names.items()) for row in rows)


if __name__ == "__main__":
    main()
