"""Result files: rows with every round, medians, ratios and where they come from. Each row is saved as it is found.

A file looks so (figures are seconds; those of claim "memory" are bytes):

    {"claim": "attention", "settings": {...}, "provenance": {...}, "finished": "2026-01-01 12:00:00 UTC" or null,
     "rows": [{"cell": {"length": 4096, ...}, "facts": {...},
               "contestants": {"causal": {"median": .., "low": .., "high": .., "rounds": [..], "error": ..}, ...},
               "ratios": {"sliced / causal": {"median": .., "low": .., "high": .., "rounds": 9}, ...}}]}
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from segattn.bench.errors import BenchError
from segattn.bench.machine import now
from segattn.bench.timing import Spread, spread

__all__ = ["Cell", "Results", "Row", "read_results", "write_text"]

Cell = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """What was found in one cell.

    Attributes:
        cell: what was measured; tells rows apart.
        figures: contestant -> one figure per round. Rounds of the same number belong together.
        bases: the contestants that the others are compared with.
        errors: contestant -> its largest error against the reference, as a share of the reference's largest number.
        facts: what else a reader needs.
    """

    cell: Cell
    figures: dict[str, list[float]]
    bases: Sequence[str]
    errors: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def ratio(self, contestant: str, base: str) -> Spread:
        """Return the ratios of two contestants, taken round by round."""
        pairs = zip(self.figures[contestant], self.figures[base], strict=True)
        return spread([mine / theirs for mine, theirs in pairs])

    def figure(self, contestant: str) -> Spread:
        """Return a contestant's own figure."""
        return spread(self.figures[contestant])

    def to_dict(self) -> dict[str, Any]:
        """Return the row as it stands in a file: rounded first, so that reading it derives the same figures."""
        short = replace(self, figures={name: [_short(one) for one in found] for name, found in self.figures.items()})
        contestants: dict[str, Any] = {}
        for name, figures in short.figures.items():
            contestants[name] = {**_rounded(short.figure(name).to_dict()), "rounds": figures}
            if name in self.errors:
                contestants[name]["error"] = _short(self.errors[name])
        ratios = {
            f"{name} / {base}": _rounded(short.ratio(name, base).to_dict())
            for base in self.bases
            for name in self.figures
            if base in self.figures and name != base
        }
        return {"cell": self.cell, "facts": self.facts, "contestants": contestants, "ratios": ratios}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Row":
        """Return the row of a file; what is derived is derived again."""
        contestants = content["contestants"]
        return cls(
            cell=content["cell"],
            figures={name: found["rounds"] for name, found in contestants.items()},
            bases=list(dict.fromkeys(name.partition(" / ")[2] for name in content["ratios"])),
            errors={name: found["error"] for name, found in contestants.items() if "error" in found},
            facts=content["facts"],
        )


def _short(number: float) -> float:
    return float(f"{number:.5g}")


def _rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: value if name == "rounds" else _short(value) for name, value in figures.items()}


@dataclass
class Results:
    """The rows of one claim, in a file that is written anew with each row.

    Attributes:
        path: None keeps them in memory.
    """

    path: Path | None
    claim: str
    settings: dict[str, Any]
    provenance: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    finished: str | None = None

    def find(self, cell: Cell) -> Row | None:
        """Return the row of a cell, None if it was not measured."""
        return next((row for row in self.rows if row.cell == cell), None)

    def add(self, row: Row) -> None:
        """Add a row, and save."""
        self.rows.append(row)
        self.save()

    def finish(self) -> None:
        """Say that nothing is missing, and save."""
        self.finished = self.finished or now()
        self.save()

    def save(self) -> None:
        """Write the file, all or nothing."""
        if self.path is not None:
            write_text(self.path, json.dumps(self.to_dict(), indent=1) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """Return what stands in the file."""
        return {
            "claim": self.claim,
            "settings": self.settings,
            "provenance": self.provenance,
            "finished": self.finished,
            "rows": [row.to_dict() for row in self.rows],
        }

    def take_up(self) -> str | None:
        """Take over the rows of a run that was cut off, if they come from the same code, machine and settings.

        Returns:
            A line for the user; None where there is no file.
        """
        if self.path is None or not self.path.exists():
            return None
        before = read_results(self.path)
        if _comparable(before) != _comparable(self):
            return f"{self.path} comes from other code, settings or another machine; measuring anew"
        self.rows, self.provenance, self.finished = before.rows, before.provenance, before.finished
        return f"{self.path} holds {len(self.rows)} rows of this code and machine; they stay (--fresh discards them)"


def _comparable(results: Results) -> str:
    facts = {name: results.provenance.get(name) for name in ("device", "environment", "code")}
    return json.dumps({"claim": results.claim, "settings": results.settings, **facts}, sort_keys=True)


def read_results(path: Path) -> Results:
    """Read a result file.

    Raises:
        BenchError: no such file, or not a result file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row.from_dict(row) for row in content["rows"]]
        return Results(path, content["claim"], content["settings"], content["provenance"], rows, content["finished"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(
            f"{path} cannot be read ({type(error).__name__}: {error}); expected the results of a benchmark. "
            "Remove it, or name another file"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a file under another name and rename it, so that it is complete whenever it is there.

    Raises:
        BenchError: the place cannot be written to.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise BenchError(f"{path} cannot be written ({error}); name a file in a folder of yours") from error
