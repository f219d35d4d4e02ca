"""Write docs/opening.md and its pictures from the rows in results/: `python -m studies.opening.page`.

No figure on that page is typed by hand. `--check` writes nothing and fails where the page is out of date.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from studies.opening.arms import ARMS, TASKS
from studies.opening.cell import BATCH_SIZE, LEARNING_RATE

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "cells.jsonl"
PAGE = ROOT / "docs" / "opening.md"
PICTURE = ROOT / "docs" / "opening.png"

SEEDS = 3

Row = dict[str, Any]
Cells = dict[str, dict[str, dict[int, Row]]]
"""task -> arm -> seed -> row."""

HEAD = f"""# How segments are opened

Written by `python -m studies.opening.page` from `studies/opening/results/cells.jsonl`; edit neither by hand. The cells
were run with `python -m studies.opening --data DATA`.

SmolLM2-135M-Instruct, float32, LoRA of rank 32 on all linear layers, {BATCH_SIZE} samples a step, no dropout, rate
{LEARNING_RATE:g} falling linearly. Tasks: **stories** ({TASKS["stories"].steps} steps; "Where is Lucy?" after three
moves of two people, 6 places) and **banking77** ({TASKS["banking77"].steps} steps; a bank customer's message, one of 77
intents in words). {TASKS["stories"].items} held-out items each, answered greedily; right means the exact text. Arms of
one seed see the same samples in the same order and start from the same adapter. Where segments open, they do so over
the first half of the steps ([training](training.md#opening-segments-gradually)).

Intervals are 95 %, Student's t over seeds; with few seeds they are wide. "area" is the mean held-out answer loss over
the run, under the mask that the arm is for: low where an arm learns fast.
"""


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is out of date")
    parser.add_argument("--results", type=Path, default=RESULTS, help="cells.jsonl")
    chosen = parser.parse_args()
    cells = read(chosen.results)
    text = page(cells)
    if chosen.check:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit(f"{PAGE.relative_to(ROOT)} is not what the results say; run python -m studies.opening.page")
        return
    PAGE.write_text(text, encoding="utf-8")
    draw(cells)


def read(file: Path) -> Cells:
    """Read the rows, each seed of an arm once."""
    cells: Cells = defaultdict(lambda: defaultdict(dict))
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        cells[row["task"]][row["arm"]][row["seed"]] = row
    return cells


def page(cells: Cells) -> str:
    """Return the page."""
    done = sum(len(seeds) for arms in cells.values() for seeds in arms.values())
    planned = len(TASKS) * len(ARMS) * SEEDS
    parts = [HEAD]
    if done < planned:
        parts.append(f"**{done} of {planned} cells were run so far**; one seed of an arm shows nothing yet.\n")
    parts += ["![Held-out answer loss over the steps](opening.png)\n"]
    for task in (name for name in TASKS if name in cells):
        parts += [f"## {task}\n", outcomes(cells[task]), differences(cells[task])]
    parts += ["## Attention to the keys ahead\n", attention(cells)]
    return "\n".join(parts)


def own_mask(arm: str) -> str:
    """Return the mask that an arm is tuned for."""
    return str(ARMS[arm].get("attention", "segments"))


def area(row: Row) -> float:
    """Return the mean held-out loss over the run, the untuned start left out."""
    return fmean(point[1] for point in row["curve"][1:])


def loss_at(row: Row, share: float) -> float:
    """Return the held-out loss of the point that is nearest to a share of the steps."""
    return float(min(row["curve"], key=lambda point: abs(point[0] - share * row["steps"]))[1])


def right(row: Row, mask: str) -> float:
    """Return the share of items that were answered right."""
    return fmean(row["measured"][mask]["correct"])


def interval(values: list[float]) -> str:
    """Write a mean and how far its 95 % interval (Student's t) reaches to either side."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return f"{fmean(values):.3f} ± {half:.3f}"


def outcomes(arms: dict[str, dict[int, Row]]) -> str:
    """Return the table of what each arm reached."""
    lines = [
        "| arm | seeds | loss, half way | loss, end | area | right | right, run the other way |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in (name for name in ARMS if name in arms):
        rows, own = list(arms[arm].values()), own_mask(arm)
        other = "causal" if own == "segments" else "segments"
        columns = [
            interval([loss_at(row, 0.5) for row in rows]),
            interval([row["curve"][-1][1] for row in rows]),
            interval([area(row) for row in rows]),
            interval([right(row, own) for row in rows]),
            interval([right(row, other) for row in rows]),
        ]
        lines.append(f"| {arm} | {len(rows)} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def differences(arms: dict[str, dict[int, Row]]) -> str:
    """Return the table of differences from segments switched on hard, seed by seed."""
    lines = [
        "Difference from `hard`, seed by seed:\n",
        "| arm | seeds | area | loss, end | right |",
        "|---|---|---|---|---|",
    ]
    hard = arms.get("hard", {})
    for arm in (name for name in ARMS if name in arms and name != "hard"):
        pairs = [(arms[arm][seed], hard[seed]) for seed in sorted(arms[arm].keys() & hard.keys())]
        if not pairs:
            continue
        own = own_mask(arm)
        columns = [
            shown([area(row) - area(base) for row, base in pairs]),
            shown([row["curve"][-1][1] - base["curve"][-1][1] for row, base in pairs]),
            shown([right(row, own) - right(base, "segments") for row, base in pairs]),
        ]
        lines.append(f"| {arm} | {len(pairs)} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def shown(values: list[float]) -> str:
    """Write a difference with its interval; bold where the interval leaves 0 out."""
    text = interval(values)
    if len(values) < 2:
        return text
    mean, half = (float(part) for part in text.split(" ± "))
    return f"**{text}**" if abs(mean) > half else text


def attention(cells: Cells) -> str:
    """Return the table of how much attention goes ahead."""
    lines = [
        "The share of a prompt token's attention that goes to keys ahead: a mean over heads, layers and seeds, and "
        "that of the layers with least and most. Run causally (last column of the tables above) they are taken away.\n",
        "| task | arm | seeds | ahead | least layer | most layer |",
        "|---|---|---|---|---|---|",
    ]
    for task, arms in cells.items():
        for arm in (name for name in ARMS if name in arms):
            found = [row["ahead"] for row in arms[arm].values() if row["ahead"] is not None]
            if not found:
                continue
            layers = [fmean(fmean(row[layer]) for row in found) for layer in range(len(found[0]))]
            each = interval([fmean(fmean(layer) for layer in row) for row in found])
            lines.append(f"| {task} | {arm} | {len(found)} | {each} | {min(layers):.3f} | {max(layers):.3f} |")
    return "\n".join(lines) + "\n"


def draw(cells: Cells) -> None:
    """Draw the held-out loss over the steps, a panel for each task, a line for each arm with all its seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, max(len(cells), 1), figsize=(6 * max(len(cells), 1), 4), squeeze=False)
    for panel, (task, arms) in zip(panels[0], cells.items(), strict=False):
        for number, arm in enumerate(name for name in ARMS if name in arms):
            rows = list(arms[arm].values())
            steps = [point[0] for point in rows[0]["curve"]]
            by_step = [[row["curve"][place][1] for row in rows] for place in range(len(steps))]
            color = f"C{number % 10}"
            panel.plot(steps, [fmean(losses) for losses in by_step], color=color, label=f"{arm} ({len(rows)})")
            panel.fill_between(
                steps, [min(x) for x in by_step], [max(x) for x in by_step], color=color, alpha=0.12, lw=0
            )
        panel.set(title=task, xlabel="step", ylabel="held-out answer loss (nats per token)", yscale="log")
        panel.legend(frameon=False, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
