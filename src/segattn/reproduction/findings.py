"""What a sweep shows, in words, whichever arm it favors; where nothing is shown, the words say that."""

from collections.abc import Mapping, Sequence
from typing import Any

from segattn.evaluation.statistics import CONFIDENCE
from segattn.reports.numbers import interval_text
from segattn.reproduction.length_strata import stratum_text
from segattn.reproduction.pairing import BASELINE, NO_DIFFERENCE, NOT_TESTED

__all__ = [
    "at_chance_text",
    "capitalized",
    "counts_text",
    "each_seed_texts",
    "findings",
    "made_up_text",
    "models_text",
    "p_text",
    "place_text",
    "range_text",
    "task_text",
]

# Beyond this many comparisons only what is shown is spelled out; the table has the rest.
_MOST_SPELLED = 16
_FEW = 4


def findings(summary: Mapping[str, Any]) -> dict[str, list[str]]:
    """Say what the comparisons of a summary show.

    Args:
        summary: from `segattn.reproduction.summary.summarize`.

    Returns:
        Subject -> sentences: counts for each arm, then single comparisons where there are few or something is shown.
    """
    found = {
        "Accuracy, each arm run its own way": _against_causal(summary["differences"]),
        "Run the other way": _wrong_mask(summary["mismatch"]),
        "Learning": [
            *_made_up(summary["loss_curves"]),
            *_learning(summary["loss_curves"], "mean held-out loss over the training run", 4),
            *_learning(summary["accuracy_curves"], "mean accuracy over the training run", 3),
        ],
        "Prompts longer than the training cut-off": _beyond_cut_off(summary["strata"]),
        "What the intervals leave out": [*_limits(summary["differences"]), *at_chance_text(summary["accuracies"])],
    }
    return {subject: lines for subject, lines in found.items() if lines}


def _against_causal(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return [f"No arm can be compared with {BASELINE} training: no two arms share a task, a seed and an item."]
    lines = [
        f"{capitalized(arm)} against {BASELINE} training: {counts_text(own, 'accuracy')}." for arm, own in _by_arm(rows)
    ]
    told = rows if len(rows) <= _MOST_SPELLED else [row for row in rows if row["shown"]]
    return lines + [_difference(row, len(rows)) for row in told]


def _by_arm(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    return [(arm, [row for row in rows if row["arm"] == arm]) for arm in dict.fromkeys(row["arm"] for row in rows)]


def capitalized(text: str) -> str:
    """Begin a sentence with a text, whose other letters stay as they are."""
    return f"{text[0].upper()}{text[1:]}"


def counts_text(rows: Sequence[Mapping[str, Any]], measure: str = "") -> str:
    """Count verdicts: "accuracy higher in 1, no difference shown in 3 of 4 comparisons"."""
    total = len(rows)
    counts = {
        f"{measure} higher".strip(): sum(row["verdict"] == "higher" for row in rows),
        f"{measure} lower".strip(): sum(row["verdict"] == "lower" for row in rows),
        NO_DIFFERENCE: sum(row["verdict"] == NO_DIFFERENCE for row in rows),
        "not tested (one seed)": sum(row["verdict"] == NOT_TESTED for row in rows),
    }
    counts = {text: count for text, count in counts.items() if count}
    if len(counts) == 1:
        text = next(iter(counts))
        every = "any" if text == NO_DIFFERENCE else "each"
        return f"{text} in {f'{every} of {total} comparisons' if total > 1 else 'the one comparison'}"
    return ", ".join(f"{text} in {count}" for text, count in counts.items()) + f" of {total} comparisons"


def range_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the least and the largest difference of comparisons; one value where there is one comparison."""
    values = [row["difference"]["value"] for row in rows]
    return f"{min(values):+.3f}" if len(values) == 1 else f"{min(values):+.3f} to {max(values):+.3f}"


def _difference(row: Mapping[str, Any], family: int) -> str:
    where = f"{place_text(row)}, {row['arm']} - {row['baseline']}"
    text = f"{where}: {interval_text(row['difference'], sign='+')}, {_verdict(row, family)} ({_basis(row)})."
    if row["shown"] or _shown_alone(row):
        return text
    if row["detectable"] is None:
        return f"{text} No difference of any size could have been shown reliably with so few seeds or items."
    return f"{text} A true difference of {row['detectable']:.3f} would, tested alone, be shown four times of five."


def _verdict(row: Mapping[str, Any], family: int) -> str:
    if row["shown"]:
        return f"{row['verdict']}, corrected p {p_text(row['p_corrected'])}"
    if _shown_alone(row):
        alone, corrected = p_text(row["p"]), p_text(row["p_corrected"])
        return f"{NO_DIFFERENCE}: p {alone} alone, {corrected} corrected for {family} comparisons"
    return NO_DIFFERENCE


def _shown_alone(row: Mapping[str, Any]) -> bool:
    """Whether it is only the correction for the number of comparisons that keeps a difference from being shown."""
    apart = row["difference"]["low"] > 0 or row["difference"]["high"] < 0
    return bool(not row["shown"] and apart and row["p"] is not None and row["p"] < 1 - CONFIDENCE)


def p_text(value: float | None) -> str:
    """Write a p-value; nothing where there was no test."""
    if value is None:
        return ""
    return "< .0001" if value < 1e-4 else f"{value:.2g}"


def _basis(row: Mapping[str, Any]) -> str:
    return f"{_seeds(row)}, {row['items']} items"


def _seeds(row: Mapping[str, Any]) -> str:
    return "1 seed" if row["seeds"] == 1 else f"{row['seeds']} seeds"


def place_text(row: Mapping[str, Any]) -> str:
    """Name what a row is about: the model, the data (and the task, where it is another one), how it was scored."""
    return ", ".join(filter(None, [row["model"], task_text(row), row["scoring"]]))


def task_text(row: Mapping[str, Any]) -> str:
    """Name the data of a row, and the task where that is another one."""
    return str(row["data"]) if row["task"] == row["data"] else f"{row['data']} / {row['task']}"


def _wrong_mask(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for arm, own in _by_arm([row for row in rows if row["comparison"]]):
        other = "with segments" if own[0]["own"] == "causal" else "causally"
        found = [row["comparison"] for row in own]
        lines.append(
            f"{capitalized(arm)}, run {other}: {counts_text(found, 'accuracy')} ({range_text(found)}); "
            f"{models_text(found)}."
        )
    return lines


def models_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Count the single models, a seed each, that are shown to differ on the items of their tasks.

    Args:
        rows: comparisons that `segattn.reproduction.pairing.correct_for_models` has seen.
    """
    each = [pair for row in rows for pair in zip(row["of_each_seed"], row["models_shown"], strict=True)]
    lower = sum(shown and value < 0 for value, shown in each)
    higher = sum(shown and value > 0 for value, shown in each)
    return f"one model and task at a time: lower in {lower}, higher in {higher} of {len(each)}"


def each_seed_texts(comparison: Mapping[str, Any] | None) -> list[str]:
    """Write the difference of each seed, with an asterisk where that one model is shown to differ."""
    if comparison is None:
        return []
    shown = comparison.get("models_shown", [False] * comparison["seeds"])
    return [
        f"{value:+.3f}{'*' if apart else ''}" for value, apart in zip(comparison["of_each_seed"], shown, strict=True)
    ]


def _made_up(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [(row, row["made_up"]) for row in rows if row["made_up"]]
    return [
        f"{row['model']}, {row['data']}, {row['arm']}: {made_up_text(one)}."
        for row, one in (found if len(found) <= _MOST_SPELLED else [])
    ]


def made_up_text(found: Mapping[str, Any]) -> str:
    """Say how much of the mask's cost is made up, of a row's "made_up"."""
    return (
        f"the mask costs {found['before']:.2f} nats per token before training, {found['after']:.2f} after "
        f"{found['step']} steps: the share {interval_text(found['share'], 2)} is made up"
    )


def _learning(rows: Sequence[Mapping[str, Any]], measure: str, decimals: int) -> list[str]:
    """Compare how arms learn; a lower mean loss over the run, or a higher mean accuracy, is faster."""
    compared = [row for row in rows if row["comparison"]]
    lines = [
        f"{capitalized(arm)} against {BASELINE} training, {measure}: {counts_text([row['comparison'] for row in own])}."
        for arm, own in _by_arm(compared)
    ]
    for row in compared if len(compared) <= _FEW else []:
        found = row["comparison"]
        verdict = _verdict(found, len(compared)) if found["p"] is not None else found["verdict"]
        where = f"{row['model']}, {row['data']}, {row['arm']} - {BASELINE}"
        size = interval_text(found["difference"], decimals, "+")
        lines.append(f"{where}, {measure}: {size}, {verdict} ({_seeds(found)}).")
    return lines


def _beyond_cut_off(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tell of strata above the smallest cut-off; arms that were cut later, or not at all, may be remedies."""
    lines = []
    for row in rows:
        if not row["cut_offs"] or (row["from"] or 0) <= min(row["cut_offs"]):
            continue
        arms = {arm: one["difference"] for arm, one in row["arms"].items() if one["difference"] is not None}
        parts = "; ".join(f"{arm} {interval_text(one, sign='+')}" for arm, one in arms.items())
        if parts:
            where = f"{place_text(row)}, prompts of {stratum_text(row)} tokens ({row['items']} items)"
            lines.append(f"{where}, accuracy - {BASELINE}, not corrected: {parts}.")
    return lines


def at_chance_text(accuracies: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name where no arm is above chance, in one sentence or none: there a comparison of arms tells nothing.

    Args:
        accuracies: rows of `segattn.reproduction.summary.accuracies`.
    """
    places: dict[str, bool] = {}
    for row in accuracies:
        if row["chance"] is not None:
            place = place_text(row)
            places[place] = places.get(place, False) or row["accuracy"]["low"] > row["chance"]
    found = [place for place, above in places.items() if not above]
    if not found:
        return []
    return [f"No arm is shown to be above chance, so that comparing arms tells nothing: {'; '.join(found)}."]


def _limits(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    seeds = [row["seeds"] for row in rows]
    if max(seeds) == 1:
        return ["One seed of each arm: the intervals speak of other items, not of other seeds."]
    if min(seeds) == 1:
        return ["Where there is one seed, the interval speaks of other items only; the others also of other seeds."]
    return []
