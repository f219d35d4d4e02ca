"""Effects that were planted are found, and none is claimed where there is none."""

import pytest

from reproduction.made_up_cells import made_up_sweep, write_cells
from segattn.reproduction.findings import at_chance_text, findings
from segattn.reproduction.finished_cells import read_cells
from segattn.reproduction.summary import summarize


def found_in(tmp_path, **arguments):
    cells, _ = read_cells([write_cells(tmp_path, made_up_sweep(**arguments))])
    return findings(summarize(cells))


def accuracy(found):
    return found["Accuracy, each arm run its own way"]


@pytest.mark.parametrize(("effect", "verdict"), [(1.2, "higher"), (-1.2, "lower")])
def test_a_planted_difference_is_shown_with_its_direction(tmp_path, effect, verdict):
    lines = accuracy(found_in(tmp_path, effects={"segments": effect}, seeds=(0, 1, 2, 3, 4), items=200))
    assert lines[0] == f"Segments against causal training: accuracy {verdict} in the one comparison."
    assert f"{verdict}, corrected p" in lines[1]
    assert "(5 seeds, 200 items)" in lines[1]


def test_no_difference_is_claimed_where_there_is_none(tmp_path):
    lines = accuracy(found_in(tmp_path, effects={"segments": 0.0}, items=200, generator=1))
    assert lines[0] == "Segments against causal training: no difference shown in the one comparison."
    assert "no difference shown" in lines[1]
    assert "would, tested alone, be shown four times of five" in lines[1]


def test_of_many_null_sweeps_few_claim_anything(tmp_path):
    """Three comparisons each: Holm keeps the chance of any claim in a sweep at 5 %."""
    claims = 0
    for number in range(40):
        effects = {"segments": 0.0, "mixed": 0.0, "opened": 0.0}
        lines = accuracy(found_in(tmp_path / str(number), effects=effects, items=60, generator=number))
        claims += any("accuracy higher" in line or "accuracy lower" in line for line in lines[:3])
    assert claims <= 4


def test_what_only_the_correction_hides_is_said(tmp_path):
    cells, _ = read_cells([write_cells(tmp_path, made_up_sweep({"segments": 0.0}))])
    summary = summarize(cells)
    row = summary["differences"][0]
    row["difference"] = {"value": 0.1, "low": 0.01, "high": 0.19}
    row.update(p=0.03, p_corrected=0.09, shown=False, verdict="no difference shown")
    line = accuracy(findings(summary))[1]
    assert "no difference shown: p 0.03 alone, 0.09 corrected for 1 comparisons" in line
    assert "four times of five" not in line


def test_the_mismatch_is_one_sided_as_planted(tmp_path):
    lines = found_in(tmp_path, effects={"segments": 0.0}, items=200, seeds=range(5))["Run the other way"]
    assert lines[0].startswith("Causal, run with segments: accuracy lower in the one comparison (-0.")
    assert lines[0].endswith("one model and task at a time: lower in 5, higher in 0 of 5.")
    assert lines[1].startswith("Segments, run causally: no difference shown in the one comparison")
    assert lines[1].endswith("one model and task at a time: lower in 0, higher in 0 of 5.")


def test_slower_learning_is_told_of_the_segment_arm_too(tmp_path):
    lines = found_in(tmp_path, effects={"segments": 0.0}, seeds=range(5))["Learning"]
    assert lines[0].startswith("smollm2, banking77, segments: the mask costs ")
    assert (
        lines[1]
        == "Segments against causal training, mean held-out loss over the training run: higher in the one comparison."
    )


def test_one_seed_is_called_one_seed(tmp_path):
    found = found_in(tmp_path, effects={"segments": 0.0}, seeds=(0,))
    assert found["What the intervals leave out"] == [
        "One seed of each arm: the intervals speak of other items, not of other seeds."
    ]
    assert "Learning" not in found or all("one seed" in line for line in found["Learning"])


def test_long_prompts_have_a_line_where_training_samples_were_cut(tmp_path):
    (line,) = found_in(tmp_path, effects={"segments": 0.0}, max_length=100)["Prompts longer than the training cut-off"]
    assert "prompts of 101 and more tokens" in line
    assert "not corrected: segments " in line
    assert "untuned" not in line


def test_without_a_causal_arm_nothing_is_compared(tmp_path):
    contents = [one for one in made_up_sweep() if one["names"]["arm"] != "causal"]
    cells, _ = read_cells([write_cells(tmp_path, contents)])
    assert accuracy(findings(summarize(cells)))[0].startswith("No arm can be compared with causal training")


def test_where_no_arm_is_above_chance_is_named():
    def row(task, arm, low, chance=0.25):
        places = {"model": "tiny", "data": "exam", "task": task, "scoring": "likelihood", "arm": arm}
        return {**places, "accuracy": {"value": low + 0.1, "low": low, "high": low + 0.2}, "chance": chance}

    rows = [row("hard", "causal", 0.2), row("hard", "segments", 0.25), row("easy", "causal", 0.2)]
    rows += [row("easy", "segments", 0.3), row("open", "causal", 0.0, None)]
    (text,) = at_chance_text(rows)
    assert text.endswith("tells nothing: tiny, exam / hard, likelihood.")
    assert at_chance_text(rows[2:]) == []
