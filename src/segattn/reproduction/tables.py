"""The tables of a sweep's page: rows of a summary as texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from segattn.reports.numbers import interval_text
from segattn.reproduction.findings import each_seed_texts, p_text, place_text
from segattn.reproduction.length_strata import stratum_text
from segattn.reproduction.pairing import BASELINE

__all__ = [
    "Table",
    "accuracy_table",
    "ahead_table",
    "curve_table",
    "difference_table",
    "mismatch_table",
    "scoring_table",
    "settings_table",
    "step_table",
    "strata_table",
    "times_table",
]

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Table:
    """A table as the page shows it: the first `texts` columns are row headers, the others numbers."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    texts: int = 2

    def groups(self) -> list[tuple[str, list[list[str]]]]:
        """Return the rows whose first column says the same together, without that column."""
        return [(name, [row[1:] for row in rows]) for name, rows in groupby(self.rows, lambda row: row[0])]


def accuracy_table(rows: Rows) -> Table:
    """What each arm reaches, run its own way."""
    return Table(
        "Accuracy of each arm, run the way it was tuned, over its seeds and items; answer loss in nats per token; 95 % "
        "intervals. Chance is what guessing gets.",
        ["task", "arm", "run", "seeds", "items", "accuracy", "answer loss", "chance"],
        [
            [
                place_text(row), row["arm"], row["attention"], str(row["seeds"]), _items(row),
                interval_text(row["accuracy"]), interval_text(row["loss"]), _number(row["chance"]),
            ]
            for row in rows
        ],
    )  # fmt: skip


def difference_table(rows: Rows) -> Table:
    """How each arm differs from causal training."""
    return Table(
        f"Arm minus {BASELINE}, each run its own way, on the same items and seeds; 95 % intervals over seeds and items "
        f"(one seed: items only). p: corrected for all {len(rows)} comparisons of this table (Holm). Detectable: the "
        "smallest true difference of accuracy that would be shown with 80 % power if it were the only comparison; "
        "empty where even 1 would not.",
        ["task", "arm", "seeds", "items", "accuracy", "each seed", "p", "verdict", "detectable", "answer loss"],
        [
            [
                place_text(row), row["arm"], _seeds(row), _items(row), interval_text(row["difference"], sign="+"),
                _each_seed(row), p_text(row["p_corrected"]), row["verdict"],
                _number(row["detectable"]), interval_text(row["loss"], sign="+"),
            ]
            for row in rows
        ],
    )  # fmt: skip


def mismatch_table(rows: Rows) -> Table:
    """Each arm under both masks."""
    return Table(
        "Accuracy of each arm under both masks; the last columns: run the other way minus its own way, on the same "
        "items and seeds, p corrected for this table (Holm). 95 % intervals. An asterisk: that one model differs on "
        "the items (exact McNemar test, corrected for all models of this table).",
        ["task", "trained", "run causally", "run with segments", "other - own", "p", "verdict", "each seed"],
        [
            [
                place_text(row), row["arm"], interval_text(row["causal"]), interval_text(row["segments"]),
                *_verdict(row), _each_seed(row["comparison"]),
            ]
            for row in rows
        ],
    )  # fmt: skip


def _verdict(row: Mapping[str, Any], decimals: int = 3) -> list[str]:
    found = row["comparison"]
    if found is None:
        return ["", "", ""]
    return [interval_text(found["difference"], decimals, "+"), p_text(found["p_corrected"]), found["verdict"]]


def curve_table(rows: Rows, measure: str, decimals: int) -> Table:
    """How an arm learned: the end of its curve, the mean over the run, and the difference of that from causal."""
    shares = [interval_text(row["made_up"] and row["made_up"]["share"], 2) for row in rows]
    made_up = (
        " Made up: the share of the loss above causal training at step 0, which is the mask's, that is gone at the "
        "next point of the curve."
    )
    return Table(
        f"{measure}, mean over the seeds (range): at the last step, and over the run (mean over the steps after the "
        f"first point). The difference of the latter from {BASELINE} with its 95 % interval; p: corrected for this "
        f"table.{made_up if any(shares) else ''}",
        [
            "data", "arm", "seeds", "last step", "at the end", "over the run", f"arm - {BASELINE}", "p", "verdict",
            *(["made up"] if any(shares) else []),
        ],
        [
            [
                f"{row['model']}, {row['data']}", row["arm"], str(row["seeds"]), str(row["steps"][-1]),
                f"{row['mean'][-1]:.{decimals}f} ({row['low'][-1]:.{decimals}f} to {row['high'][-1]:.{decimals}f})",
                f"{row['over_run']:.{decimals}f}", *_verdict(row, decimals), *([share] if any(shares) else []),
            ]
            for row, share in zip(rows, shares, strict=True)
        ],
    )  # fmt: skip


def step_table(rows: Rows, measure: str, decimals: int) -> Table:
    """The curves of one study in numbers, a column for each arm."""
    by_arm = {row["arm"]: dict(zip(row["steps"], row["mean"], strict=True)) for row in rows}
    steps = sorted({step for means in by_arm.values() for step in means})
    return Table(
        f"{measure}, mean over the seeds.",
        ["step", *by_arm],
        [[str(step), *(_number(means.get(step), decimals) for means in by_arm.values())] for step in steps],
        texts=1,
    )


def strata_table(rows: Rows) -> Table:
    """Accuracy and difference of the arms (columns) in the strata of prompt length (rows) of one question."""
    arms = list(rows[0]["arms"])
    cuts = rows[0]["cut_offs"]
    cut = f" Training samples were cut at {' or '.join(map(str, cuts))} tokens." if cuts else ""
    return Table(
        f"{place_text(rows[0])}: accuracy by prompt length in tokens, and below it the difference from {BASELINE}; "
        f"95 % intervals, not corrected for their number.{cut}",
        ["tokens", "items", *arms],
        [
            [stratum_text(row).replace(" ", "\u00a0"), str(row["items"]), *(_stratum(row["arms"][arm]) for arm in arms)]
            for row in rows
        ],
        texts=1,
    )  # fmt: skip


def _stratum(one: Mapping[str, Any]) -> str:
    return "\n".join(filter(None, [interval_text(one["accuracy"]), interval_text(one["difference"], sign="+")]))


def scoring_table(accuracies: Rows, differences: Rows) -> Table | None:
    """Likelihood and generation side by side; None where nothing was scored both ways."""
    key = ("model", "data", "task", "arm")
    both = {
        name: {tuple(row[part] for part in key): row for row in accuracies if row["scoring"] == name}
        for name in ("likelihood", "generation")
    }
    apart = {
        name: {tuple(row[part] for part in key): row["difference"] for row in differences if row["scoring"] == name}
        for name in both
    }
    shared = [name for name in both["likelihood"] if name in both["generation"]]
    if not shared:
        return None
    return Table(
        f"The same models, scored by the likelihood of the given answers and by what they write; arm minus {BASELINE} "
        "beside each. 95 % intervals.",
        ["task", "arm", "likelihood", "generation", f"likelihood, arm - {BASELINE}", f"generation, arm - {BASELINE}"],
        [
            [
                place_text({**both["likelihood"][name], "scoring": ""}), name[-1],
                *(interval_text(both[way][name]["accuracy"]) for way in both),
                *(interval_text(apart[way].get(name), sign="+") for way in both),
            ]
            for name in shared
        ],
    )  # fmt: skip


def ahead_table(rows: Rows) -> Table:
    """How much attention goes ahead."""
    return Table(
        "The share of a prompt token's attention that goes to keys ahead when the model is run with segments, whatever "
        "it was tuned for: mean over heads, layers, prompts and seeds, and of the layers with least and most.",
        ["data", "arm", "seeds", "prompts", "mean", "least layer", "most layer"],
        [
            [
                f"{row['model']}, {row['data']}", row["arm"], str(row["seeds"]), _text(row["items"]),
                *(_number(row[name]) for name in ("mean", "least", "most")),
            ]
            for row in rows
        ],
    )  # fmt: skip


def settings_table(settings: Mapping[str, Any]) -> Table:
    """What differs between the arms."""
    different = settings["different"]
    arms = list(next(iter(different.values()), {}))
    return Table(
        "What differs between the arms; what the arms share is below.",
        ["setting", *arms],
        [[name, *(by_arm[arm] for arm in arms)] for name, by_arm in different.items()],
        texts=1,
    )


def times_table(rows: Rows) -> Table:
    """What each cell took, and where it lies."""
    counts = ("steps", "samples", "dropped", "cut", "tokens", "answer_tokens")
    seconds = ("training_seconds", "evaluation_seconds", "seconds")
    return Table(
        "Each cell: what it was trained on, seconds of training, of evaluation and in all, and its file.",
        ["cell", *(name.replace("_", " ") for name in counts), "training", "evaluation", "all", "file"],
        [
            [
                f"{row['model']}, {row['data']}, {row['arm']}, seed {row['seed']}",
                *(_text(row[name]) for name in counts), *(_number(row[name], 1) for name in seconds), row["file"],
            ]
            for row in rows
        ],
        texts=1,
    )  # fmt: skip


def _each_seed(comparison: Mapping[str, Any] | None) -> str:
    """The difference of each seed, three a line."""
    every = each_seed_texts(comparison)
    return "\n".join(" ".join(every[place : place + 3]) for place in range(0, len(every), 3))


def _items(row: Mapping[str, Any]) -> str:
    """How many items, and how many were left out because not every seed and arm has them."""
    left = row["items_left_out"]
    return f"{row['items']} ({left} left out)" if left else str(row["items"])


def _seeds(row: Mapping[str, Any]) -> str:
    left = row["seeds_left_out"]
    return f"{row['seeds']} (without {', '.join(map(str, left))})" if left else str(row["seeds"])


def _number(value: float | None, decimals: int = 3) -> str:
    return "" if value is None else f"{value:.{decimals}f}"


def _text(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
