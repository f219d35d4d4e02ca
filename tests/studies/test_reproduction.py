"""The page of the reproduction says what its cells say, and its verdicts follow from known effects."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from studies.reproduction import page
from studies.reproduction.verdicts import verdicts

from reproduction.made_up_cells import made_up_sweep, write_cells
from segattn.reproduction.finished_cells import read_cells
from segattn.reproduction.summary import summarize

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_cells_say():
    done = subprocess.run(
        [sys.executable, "-m", "studies.reproduction.page", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def summary_of(folder, **effects):
    cells, _ = read_cells([write_cells(folder, made_up_sweep(items=300, **effects))])
    return summarize(cells)


@pytest.mark.parametrize(
    ("effect", "verdict"), [(1.5, "holds"), (-1.5, "does not hold"), (0.0, "cannot be told")], ids=str
)
def test_the_gain_over_causal(tmp_path, effect, verdict):
    found = verdicts(summary_of(tmp_path, effects={"segments": effect}), {})
    assert found[0].verdict == verdict
    assert found[-1].verdict == "not run yet"


def test_a_gain_here_and_a_loss_there_is_mixed(tmp_path):
    up = made_up_sweep(effects={"segments": 1.5}, items=300, data=("up",))
    down = made_up_sweep(effects={"segments": -1.5}, items=300, data=("down",))
    cells, _ = read_cells([write_cells(tmp_path, up + down)])
    gain = verdicts(summarize(cells), {})[0]
    assert gain.verdict == "mixed"
    assert "higher in 1, accuracy lower in 1 of 2 comparisons" in gain.measured


@pytest.mark.parametrize(
    ("after", "verdict"), [(1.1, "holds"), (3.9, "does not hold"), (2.0, "cannot be told")], ids=str
)
def test_fast_adaptation_is_most_of_the_mask_s_cost_made_up_early(tmp_path, after, verdict):
    """The mask costs 4 nats at step 0; causal training loses 1 at the next point."""
    cells = made_up_sweep(items=20)
    for number, cell in enumerate(cells):
        if cell["training"]:
            causal = cell["names"]["arm"] == "causal"
            then = 1.0 if causal else 1.0 + after + 0.05 * (number % 3)
            cell["training"]["curve"][:2] = [{"step": 0, "loss": 3.0 if causal else 7.0}, {"step": 20, "loss": then}]
    found = verdicts(summarize(read_cells([write_cells(tmp_path, cells)])[0]), {})[1]
    assert found.verdict == verdict
    assert "the mask costs 4.00 nats per token before training" in found.measured


def test_a_mismatch_in_one_direction(tmp_path):
    """In the made-up cells only the causal arm suffers under the other mask."""
    assert verdicts(summary_of(tmp_path), {})[2].verdict == "holds for causal models only"


def test_prompts_beyond_the_cut_off(tmp_path):
    summary = summary_of(tmp_path, effects={"segments": -2.0}, max_length=64)
    assert verdicts({}, summary)[4].verdict == "holds"
    assert verdicts({}, summary_of(tmp_path / "none", effects={"segments": 0.0}, max_length=64))[4].verdict in (
        "cannot be told",
    )


def test_nothing_was_run():
    assert {one.verdict for one in verdicts({}, {})} == {"not run yet"}


def test_a_curve_that_begins_late_says_so(tmp_path):
    cells = made_up_sweep(items=40)
    late = next(one for one in cells if one["names"]["arm"] == "segments")
    del late["training"]["accuracy_curve"][0]
    write_cells(tmp_path / "smollm2", cells)
    lines = [line for line in page.figures(tmp_path).splitlines() if "held-out accuracy | " in line]
    assert {
        arm: "from step 20: " in line for line in lines for arm in ("causal", "segments") if f"| {arm} |" in line
    } == {
        "causal": False,
        "segments": True,
    }


def test_figures_stand_between_the_marks(tmp_path):
    write_cells(tmp_path / "smollm2", made_up_sweep(items=40))
    write_cells(
        tmp_path / "long-prompts",
        made_up_sweep({"segments": 0.0, "mixed": 0.5}, items=60, data=("xquad",), max_length=64),
    )
    before = f"# Title\n{page.START}\nwhat stood here\n{page.END}\nafter\n"
    text = page.page(before, tmp_path)
    assert text.startswith("# Title\n")
    assert text.endswith("\nafter\n")
    assert "what stood here" not in text
    assert page.page(text, tmp_path) == text
    for name in ("causal", "segments", "mixed", "untuned"):
        assert f"| {name} |" in text
    long = [json.loads(file.read_text()) for file in (tmp_path / "long-prompts" / "cells").glob("*mixed*.json")]
    samples, tokens = (sum(one["training"][name] for one in long) / 3 for name in ("samples", "tokens"))
    assert f"| mixed | 3 | {samples:,.0f} | {tokens:,.0f} | " in text
    assert f"The longest prompt has {max(max(one['evaluations'][0]['lengths']) for one in long)} tokens." in text
    cell = json.loads((tmp_path / "smollm2" / "cells" / "smollm2-banking77-untuned-0.json").read_text())
    own = next(one for one in cell["evaluations"] if one["attention"] == "causal")
    share = sum(own["correct"]) / len(own["correct"])
    assert f"| banking77 | likelihood | untuned | 1 | 40 | 0.013 | {share:.3f} (" in text
