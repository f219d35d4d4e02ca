"""What of a sweep can be compared: the same question put to several arms, on the same items, over the same seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, TypeAlias

from segattn.evaluation.power import holm
from segattn.evaluation.seeds import SeedComparison, Table
from segattn.evaluation.statistics import CONFIDENCE, mcnemar
from segattn.reproduction.finished_cells import UNTUNED, Cell, Evaluated

__all__ = [
    "BASELINE",
    "NOT_TESTED",
    "NO_DIFFERENCE",
    "Question",
    "Study",
    "arms_of",
    "by_seed",
    "common_ids",
    "comparison_row",
    "correct_for_models",
    "correct_for_number",
    "questions_of",
    "rows_of",
    "single_models",
    "studies_of",
]

BASELINE = "causal"
NO_DIFFERENCE = "no difference shown"
NOT_TESTED = "one seed: not tested"
_FIRST_ARMS = (UNTUNED, BASELINE, "segments")

BySeed: TypeAlias = Mapping[int, Evaluated]


class Study(NamedTuple):
    """What arms share that are trained alike: the model and the data."""

    model: str
    data: str

    def __str__(self) -> str:
        return f"{self.model}, {self.data}"


class Question(NamedTuple):
    """What several arms were asked: a task, scored one way."""

    model: str
    data: str
    task: str
    scoring: str

    @property
    def study(self) -> Study:
        """The model and the data."""
        return Study(self.model, self.data)


def studies_of(cells: Iterable[Cell]) -> list[Study]:
    """Return models and data sets in the order in which they come."""
    return list(dict.fromkeys(Study(cell.names.model, cell.names.data) for cell in cells))


def questions_of(cells: Iterable[Cell]) -> list[Question]:
    """Return what was asked, in the order in which it comes; likelihood before generation."""
    found = dict.fromkeys(
        Question(cell.names.model, cell.names.data, one.task, one.scoring) for cell in cells for one in cell.evaluations
    )
    tasks = list(dict.fromkeys(question[:3] for question in found))
    return sorted(found, key=lambda question: (tasks.index(question[:3]), question.scoring != "likelihood"))


def arms_of(cells: Iterable[Cell], study: Study | None = None) -> list[str]:
    """Return the arms, of one study or of all: untuned, causal and segments first, the others as they come."""
    found = dict.fromkeys(cell.names.arm for cell in cells if study in (None, Study(*cell.names[:2])))
    return [arm for arm in _FIRST_ARMS if arm in found] + [arm for arm in found if arm not in _FIRST_ARMS]


def by_seed(cells: Iterable[Cell], question: Question, arm: str, mask: str | None = None) -> dict[int, Evaluated]:
    """Return an arm's evaluations of a question, seed by seed.

    Args:
        cells: of the sweep.
        question: what was asked.
        arm: its name.
        mask: "segments" or "causal"; None for the mask that each cell is tuned for.
    """
    found: dict[int, Evaluated] = {}
    for cell in cells:
        if (cell.names.model, cell.names.data, cell.names.arm) != (*question.study, arm):
            continue
        for one in cell.evaluations:
            if (one.task, one.scoring, one.attention) == (question.task, question.scoring, mask or cell.own_mask):
                found[cell.names.seed] = one
    return dict(sorted(found.items()))


def common_ids(*groups: BySeed) -> list[str]:
    """Return the items that every seed of every group has, in the order of the first."""
    every = [one for group in groups for one in group.values()]
    shared = set.intersection(*(set(one.ids) for one in every)) if every else set()
    return [name for name in every[0].ids if name in shared] if every else []


def rows_of(
    group: BySeed, ids: Sequence[str], seeds: Iterable[int] | None = None, measure: str = "correct"
) -> list[list[float]]:
    """Return a row for each seed with a number for each item: what `segattn.evaluation.seeds` compares.

    Args:
        group: from `by_seed`.
        ids: which items, in this order.
        seeds: which seeds; None for all.
        measure: "correct", "losses" or "lengths".
    """
    rows = []
    for seed in group if seeds is None else seeds:
        values = dict(zip(group[seed].ids, getattr(group[seed], measure), strict=True))
        rows.append([float(values[name]) for name in ids])
    return rows


def comparison_row(found: SeedComparison) -> dict[str, Any]:
    """Return a comparison as JSON types; `correct_for_number` adds the verdict."""
    return {
        "difference": asdict(found.difference),
        "p": found.p_value,
        "seeds": found.seeds,
        "items": found.items,
        "of_each_seed": list(found.of_each_seed),
        "detectable": found.detectable,
    }


def correct_for_number(rows: Sequence[dict[str, Any]]) -> None:
    """Add to rows from `comparison_row` what all of them together allow to say of each.

    "p_corrected" (Holm, over all rows that have a p), "shown" (the interval leaves out 0, and the corrected p is below
    .05) and "verdict". A row without a test shows nothing.
    """
    tested = [row for row in rows if row["p"] is not None]
    for row, p_value in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_corrected"] = p_value
    for row in rows:
        difference, corrected = row["difference"], row.setdefault("p_corrected", None)
        apart = difference["low"] > 0 or difference["high"] < 0
        row["shown"] = bool(apart and corrected is not None and corrected < 1 - CONFIDENCE)
        if row["shown"]:
            row["verdict"] = "higher" if difference["value"] > 0 else "lower"
        else:
            row["verdict"] = NO_DIFFERENCE if corrected is not None else NOT_TESTED


def single_models(first: Table, second: Table) -> list[float]:
    """Return the p-value of the exact McNemar test of each seed: whether that one model differs, on other items.

    Args:
        first: a row for each seed, a column for each item; 1 is right.
        second: the same seeds and items.
    """
    pairs = zip(first, second, strict=True)
    return [mcnemar([value == 1 for value in one], [value == 1 for value in two]) for one, two in pairs]


def correct_for_models(rows: Sequence[dict[str, Any]]) -> None:
    """Add "models_shown" to rows with "p_of_each_seed": of each seed, whether its own model is shown to differ.

    Corrected (Holm) over all models of all rows. It speaks of these models on other items, not of other seeds.
    """
    corrected = iter(holm([value for row in rows for value in row["p_of_each_seed"]]))
    for row in rows:
        row["models_shown"] = [next(corrected) < 1 - CONFIDENCE for _ in row["p_of_each_seed"]]
