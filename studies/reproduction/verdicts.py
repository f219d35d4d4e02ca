"""Which of the paper's findings a sweep shows, which it does not, and which it cannot tell: rules, not opinions.

Each rule looks at comparisons that `segattn.reproduction.summary` has corrected for their number. A finding "holds" if
at least one comparison shows it and none shows its opposite, "does not hold" the other way round, and otherwise it
cannot be told.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from segattn.reports.numbers import interval_text
from segattn.reproduction.findings import (
    at_chance_text,
    capitalized,
    counts_text,
    made_up_text,
    models_text,
    range_text,
)
from segattn.reproduction.length_strata import stratum_text

HOLDS, FAILS, MIXED, UNKNOWN = "holds", "does not hold", "mixed", "cannot be told"
NOT_RUN = "not run yet"

Rows = Sequence[Mapping[str, Any]]
Summary = Mapping[str, Any]


class Verdict(NamedTuple):
    """One finding: what the paper says, what the sweep says of it, and the figures."""

    finding: str
    verdict: str
    measured: str


def verdicts(main_sweep: Summary, long_prompts: Summary) -> list[Verdict]:
    """Return the verdict on each of the five findings.

    Args:
        main_sweep: from `summarize`, of the sweep `smollm2`; empty where there is none.
        long_prompts: the same of the sweep `long-prompts`.
    """
    return [
        Verdict("segments gain over causal training", *_gain(main_sweep)),
        Verdict("fast adaptation: a few steps are enough", *_learning(main_sweep.get("loss_curves", []))),
        Verdict("run the wrong way, a model is badly wrong", *_mismatch(main_sweep.get("mismatch", []))),
        Verdict("attention takes the shape of the blocks", *_ahead(main_sweep.get("shares_ahead", []))),
        Verdict("segments are weaker on long prompts", *_long(long_prompts.get("strata", []))),
    ]


def _of_segments(rows: Rows) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["arm"] == "segments"]


def _judge(rows: Rows, wanted: str, opposite: str) -> str:
    if not rows:
        return NOT_RUN
    return _verdict(*(any(row["verdict"] == word for row in rows) for word in (wanted, opposite)))


def _verdict(there: bool, against: bool) -> str:
    if there and against:
        return MIXED
    return HOLDS if there else FAILS if against else UNKNOWN


def _gain(sweep: Summary) -> tuple[str, str]:
    rows = _of_segments(sweep.get("differences", []))
    if not rows:
        return NOT_RUN, ""
    each = "; ".join(
        f"{row['task'] if row['task'].startswith('all ') else row['data']}: "
        f"{interval_text(row['difference'], sign='+')}"
        for row in rows if row["task"].startswith("all ") or row["task"] == row["data"] or _only_task(row, rows)
    )  # fmt: skip
    measured = [f"{capitalized(counts_text(rows, 'accuracy'))}. {each}.", *at_chance_text(sweep["accuracies"])]
    return _judge(rows, "higher", "lower"), " ".join(measured)


def _only_task(row: Mapping[str, Any], rows: Rows) -> bool:
    return len({other["task"] for other in rows if other["data"] == row["data"]}) == 1


def _learning(curves: Rows) -> tuple[str, str]:
    """Fast means that most of what the mask costs at first is made up by the first point of the learning curve."""
    rows = [row for row in _of_segments(curves) if row["made_up"]]
    if not rows:
        return NOT_RUN, ""
    shares = [row["made_up"]["share"] for row in rows]
    verdict = _verdict(any(one["low"] > 0.5 for one in shares), any(one["high"] < 0.5 for one in shares))
    parts = [f"{row['data']}: {made_up_text(row['made_up'])}" for row in rows]
    compared = [row["comparison"] for row in rows if row["comparison"]]
    return verdict, (
        f"{'; '.join(parts)}. Mean held-out loss over the run, against causal training: {counts_text(compared)}."
    )


def _mismatch(rows: Rows) -> tuple[str, str]:
    parts, found = [], {}
    for arm, how in (("causal", "with segments"), ("segments", "causally")):
        compared = [row["comparison"] for row in rows if row["arm"] == arm and row["comparison"]]
        if not compared:
            return NOT_RUN, ""
        found[arm] = _judge(compared, "lower", "higher")
        parts.append(
            f"Tuned as {arm}, run {how}: {counts_text(compared, 'accuracy')} ({range_text(compared)}); "
            f"{models_text(compared)}"
        )
    each = set(found.values())
    if each == {HOLDS}:
        verdict = "holds in both directions"
    elif HOLDS in each and len(each) == 2:
        verdict = f"holds for {next(arm for arm in found if found[arm] == HOLDS)} models only"
    else:
        verdict = each.pop() if len(each) == 1 else MIXED
    return verdict, ". ".join(parts) + "."


def _ahead(rows: Rows) -> tuple[str, str]:
    tuned = _of_segments(rows)
    if not tuned:
        return NOT_RUN, ""
    text = "; ".join(
        f"{row['data']}: {row['mean']:.3f} of a prompt token's attention goes ahead "
        f"(layers {row['least']:.3f} to {row['most']:.3f})"
        for row in tuned
    )
    return "see the pictures", f"{text}. A share, not a test: what the tokens ahead are worth is the line above."


def _long(strata: Rows) -> tuple[str, str]:
    beyond = [row for row in strata if row["cut_offs"] and (row["from"] or 0) > min(row["cut_offs"])]
    found = [
        (row, row["arms"]["segments"]["difference"])
        for row in beyond
        if row["arms"].get("segments", {}).get("difference")
    ]
    if not found:
        return NOT_RUN, ""
    verdict = _verdict(any(one["high"] < 0 for _, one in found), any(one["low"] > 0 for _, one in found))
    text = "; ".join(
        f"prompts of {stratum_text(row)} tokens ({row['items']} items): {interval_text(one, sign='+')}"
        for row, one in found
    )
    return verdict, f"Segments - causal, both cut at {min(beyond[0]['cut_offs'])} in training: {text}"
