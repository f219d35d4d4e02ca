"""Write the figures of docs/reproduction.md and the reports beside it: `python -m studies.reproduction.page`.

Everything between the two marks of that page comes from the cells in results/; nothing there is typed by hand. What
stands before the first mark is. `--check` writes nothing and fails where the page is out of date.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from studies.reproduction.verdicts import verdicts

from segattn.reports.numbers import interval_text
from segattn.reproduction.findings import each_seed_texts, task_text
from segattn.reproduction.finished_cells import Cell, cell_files, read_cells
from segattn.reproduction.length_strata import stratum_text
from segattn.reproduction.report import report_sweeps
from segattn.reproduction.settings import load_sweep
from segattn.reproduction.summary import summarize
from segattn.reproduction.sweep import plan

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "reproduction.md"
REPORTS = ROOT / "docs" / "reproduction"
SWEEPS = ("smollm2", "long-prompts")
START, END = "<!-- figures: start -->", "<!-- figures: end -->"

Rows = Sequence[Mapping[str, Any]]


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is out of date")
    chosen = parser.parse_args()
    text = page(PAGE.read_text(encoding="utf-8"), RESULTS)
    if chosen.check:
        if PAGE.read_text(encoding="utf-8") != text:
            sys.exit("docs/reproduction.md is not what the cells say; run python -m studies.reproduction.page")
        return
    PAGE.write_text(text, encoding="utf-8")
    REPORTS.mkdir(exist_ok=True)
    for name in _sweeps(RESULTS):
        # Relative: a report names the folders that it was made from.
        report_sweeps([Path(os.path.relpath(RESULTS / name))], REPORTS / f"{name}.html")


def page(text: str, results: Path) -> str:
    """Return the page with the figures of some results in place of those that it has.

    Args:
        text: of the page; both marks stand in it, once each.
        results: the folder with a folder for each sweep.
    """
    before, rest = text.split(START)
    after = rest.split(END)[1]
    return f"{before}{START}\n{figures(results)}\n{END}{after}"


def figures(results: Path) -> str:
    """Return everything that the cells say, as Markdown."""
    summaries = {}
    parts = []
    for name in _sweeps(results):
        cells, notes = read_cells([results / name])
        summaries[name] = summarize(cells)
        parts += [_progress(name, cells, len(notes))]
    both = [summaries.get(name, {}) for name in SWEEPS]
    blocks = ["\n".join(parts), "## The paper's five findings", _findings(*both)]
    if both[0]:
        blocks += ["## Accuracy", _accuracy(both[0]), "## Trained one way, run the other", _mismatch(both[0])]
        blocks += ["## Learning", _learning(both[0]), "## Where the attention goes", _ahead(both[0])]
        blocks += ["## Length of the prompt", _strata(both[0])]
    if both[1]:
        blocks += ["## Remedies for long prompts", _remedies(both[1])]
    return "\n\n".join(blocks)


def _sweeps(results: Path) -> list[str]:
    return [name for name in SWEEPS if cell_files(results / name)]


def _progress(name: str, cells: Sequence[Cell], notes: int) -> str:
    planned = plan(load_sweep(name))
    done = sum(tuple(cell.names) in {tuple(names) for names in planned} for cell in cells)
    hours = sum(cell.seconds or 0 for cell in cells) / 3600
    steps = sum((cell.training or {}).get("steps", 0) for cell in cells)
    run = f"all {done}" if done == len(planned) else f"{done} of the {len(planned)}"
    left_out = f" {notes} notes on what was left out are in its report." if notes else ""
    return (
        f"- **{name}**: {run} cells of its file were run, {steps:,} training steps, "
        f"{hours:.1f} hours of one thread each, pauses included."
        f"{left_out} [Its report](reproduction/{name}.html), `segattn report` of "
        f"`studies/reproduction/results/{name}`."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _findings(main_sweep: Mapping[str, Any], long_prompts: Mapping[str, Any]) -> str:
    rows = [[one.finding, one.verdict, one.measured] for one in verdicts(main_sweep, long_prompts)]
    return _table(["the paper", "at this size", "measured"], rows)


def _accuracy(summary: Mapping[str, Any]) -> str:
    differences = {(task_text(row), row["scoring"], row["arm"]): row for row in summary["differences"]}
    rows = []
    for row in summary["accuracies"]:
        found = differences.get((task_text(row), row["scoring"], row["arm"]))
        rows.append(
            [
                task_text(row), row["scoring"], row["arm"], str(row["seeds"]), str(row["items"]),
                "" if row["chance"] is None else f"{row['chance']:.3f}", interval_text(row["accuracy"]),
                "" if found is None else interval_text(found["difference"], sign="+"),
                "" if found is None else str(found["verdict"]),
                "" if found is None or found["detectable"] is None else f"{found['detectable']:.3f}",
            ]
        )  # fmt: skip
    head = ["task", "scoring", "arm", "seeds", "items", "chance", "accuracy", "- causal", "verdict", "detectable"]
    return _table(head, rows)


def _mismatch(summary: Mapping[str, Any]) -> str:
    rows = []
    for row in summary["mismatch"]:
        found = row["comparison"]
        rows.append(
            [
                task_text(row), row["arm"], *(interval_text(row[mask]) for mask in ("causal", "segments")),
                "" if found is None else interval_text(found["difference"], sign="+"),
                "" if found is None else str(found["verdict"]),
                " ".join(each_seed_texts(found)),
            ]
        )  # fmt: skip
    head = ["task", "tuned as", "run causally", "run with segments", "other - own", "verdict", "each seed"]
    return _table(head, rows)


def _learning(summary: Mapping[str, Any]) -> str:
    rows = []
    for kind, name in (("loss", "loss_curves"), ("accuracy", "accuracy_curves")):
        for row in summary[name]:
            found = row["comparison"]
            rows.append(
                [
                    row["data"], f"held-out {kind}", row["arm"], str(row["seeds"]), f"{row['over_run']:.3f}",
                    f"{_first_step(row)}{', '.join(f'{value:.2f}' for value in row['mean'])}",
                    "" if found is None else interval_text(found["difference"], sign="+"),
                    "" if found is None else str(found["verdict"]),
                ]
            )  # fmt: skip
    head = ["data", "measure", "arm", "seeds", "mean over the run", "at each point, from step 0", "- causal", "verdict"]
    return _table(head, rows)


def _first_step(row: Mapping[str, Any]) -> str:
    """Where a curve begins, unless at step 0: a seed lacks the points before, and the mean is of what all have."""
    return f"from step {row['steps'][0]}: " if row["steps"][0] else ""


def _ahead(summary: Mapping[str, Any]) -> str:
    rows = [
        [row["data"], row["arm"], str(row["seeds"]), *(f"{row[name]:.3f}" for name in ("mean", "least", "most"))]
        for row in summary["shares_ahead"]
    ]
    text = (
        "The share of a prompt token's attention that goes to keys ahead when the model is run with segments, whatever "
        "it was tuned for."
    )
    return f"{text}\n\n{_table(['data', 'arm', 'seeds', 'share ahead', 'lowest layer', 'highest layer'], rows)}"


def _strata(summary: Mapping[str, Any]) -> str:
    rows = [
        [
            task_text(row), f"{stratum_text(row)} ({row['items']} items)",
            *(interval_text(row["arms"].get(arm, {}).get("accuracy")) for arm in ("causal", "segments")),
            interval_text(row["arms"].get("segments", {}).get("difference"), sign="+"),
        ]
        for row in summary["strata"] if len(row["arms"]) > 1 and _has_strata(row, summary["strata"])
    ]  # fmt: skip
    if not rows:
        return "No two arms have been run on prompts of several lengths yet."
    return _table(["task", "prompt tokens", "causal", "segments", "segments - causal, not corrected"], rows)


def _has_strata(row: Mapping[str, Any], rows: Rows) -> bool:
    return sum(task_text(other) == task_text(row) for other in rows) > 1


def _remedies(summary: Mapping[str, Any]) -> str:
    strata = summary["strata"]
    arms = list(dict.fromkeys(arm for row in strata for arm in row["arms"]))
    rows = []
    for arm in arms:
        cells = []
        for row in strata:
            found = row["arms"].get(arm, {})
            difference = interval_text(found.get("difference"), sign="+")
            accuracy = interval_text(found.get("accuracy"))
            cells.append(f"{accuracy}<br>{difference}" if difference else accuracy)
        rows.append([arm, *_trained_on(arm, summary["times"]), *cells])
    head = ["arm", "seeds", "samples", "tokens"]
    head += [f"{stratum_text(row)} tokens ({row['items']} items)" for row in strata]
    return (
        "Accuracy, and below it the difference from causal training cut at 256; intervals are not corrected for their "
        f"number, and where there is one seed they speak of items only. The longest prompt has "
        f"{max(row['longest'] for row in strata)} tokens. Samples and tokens: what an arm was trained on, mean of its "
        f"seeds.\n\n{_table(head, rows)}"
    )


def _trained_on(arm: str, times: Rows) -> list[str]:
    """How many seeds an arm has; samples and tokens of its training, mean over them."""
    own = [row for row in times if row["arm"] == arm]
    counts = [
        "" if own[0][name] is None else f"{fmean(row[name] for row in own):,.0f}" for name in ("samples", "tokens")
    ]
    return [str(len(own)), *counts]


if __name__ == "__main__":
    main()
