"""The results file: one JSON line per trained model, on disk as soon as it is there."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .training import Cell, Effort

__all__ = ["add_row", "has_row", "read_rows"]

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file, none if there is no file; a line that a crash cut off is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def has_row(path: Path, cell: Cell, effort: Effort) -> bool:
    """Whether a cell was finished with this effort."""
    wanted = {"cell": asdict(cell), "effort": asdict(effort)}
    return any({name: row[name] for name in wanted} == wanted for row in read_rows(path))


def add_row(path: Path, row: Row) -> None:
    """Add a row in one write, so that several processes may work on one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("ab", buffering=0) as file:
        file.write((torn * "\n" + json.dumps(row) + "\n").encode())
