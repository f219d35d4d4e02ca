import json

import pytest

from reproduction.made_up_cells import made_up_sweep, write_cells
from segattn.reports.page import ReportError
from segattn.reproduction.finished_cells import read_cells


@pytest.fixture
def run(tmp_path):
    return write_cells(tmp_path / "sweep", made_up_sweep(items=20))


def test_all_cells_are_read(run):
    cells, notes = read_cells([run])
    assert notes == []
    assert sorted(str(cell.names) for cell in cells) == [
        *(f"smollm2, banking77, {arm}, seed {seed}" for arm in ("causal", "segments") for seed in (0, 1, 2)),
        "smollm2, banking77, untuned, seed 0",
    ]
    masks = {cell.names.arm: cell.own_mask for cell in cells}
    assert masks == {"untuned": "causal", "causal": "causal", "segments": "segments"}


def test_an_arm_of_mixed_training_runs_with_segments(tmp_path):
    contents = made_up_sweep(items=20)
    contents[-1]["settings"]["trained_as"] = "mixed"
    cells, _ = read_cells([write_cells(tmp_path, contents)])
    assert {cell.own_mask for cell in cells if cell.names.arm == "segments"} == {"segments"}


def test_several_tasks_are_also_one_of_all_their_items(tmp_path):
    content = made_up_sweep(items=3)[1]
    first, second = (
        {"task": "first", "ids": ["1", "2", "3"], "correct": [1, 0, 1], "losses": [0.1, 0.2, 0.3], "chance": 0.5},
        {"task": "second", "ids": ["1"], "correct": [0], "losses": [4.0], "chance": 0.1},
    )
    about = {"attention": "causal", "scoring": "likelihood", "lengths": [9], "seconds": 1}
    content["evaluations"] = [
        {**about, **first, "lengths": [5, 6, 7]},
        {**about, **second},
        {**about, **first, "lengths": [5, 6, 7], "scoring": "generation", "losses": None, "chance": None},
        {**about, **second, "scoring": "generation"},
        {**about, **second, "attention": "segments"},  # of one of the tasks only
    ]
    ((cell,), _) = read_cells([write_cells(tmp_path, [content])])
    together = {(one.attention, one.scoring): one for one in cell.evaluations if one.task == "all 2 tasks"}
    assert set(together) == {("causal", "likelihood"), ("causal", "generation")}
    ranked = together["causal", "likelihood"]
    assert ranked.ids == ("first/1", "first/2", "first/3", "second/1")
    assert ranked.correct == (True, False, True, False)
    assert ranked.lengths == (5, 6, 7, 9)
    assert ranked.losses == (0.1, 0.2, 0.3, 4.0)
    assert ranked.chance == pytest.approx(0.4)
    assert together["causal", "generation"].losses is None
    assert together["causal", "generation"].chance is None


def broken(change):
    content = made_up_sweep(items=20)[1]
    change(content)
    return json.dumps(content)


def mix_up_lengths(content):
    content["evaluations"][0]["lengths"].pop()


def repeat_an_id(content):
    content["evaluations"][0]["ids"][1] = content["evaluations"][0]["ids"][0]


def answer_half(content):
    content["evaluations"][0]["correct"][0] = 0.5


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"names": {"mod', "no complete JSON"),
        ("", "no complete JSON"),
        ("[]", "holds a list"),
        ("{}", "lacks 'names'"),
        (broken(lambda content: content.pop("evaluations")), "lacks 'evaluations'"),
        (broken(lambda content: content.update(evaluations=[])), "no evaluations"),
        (broken(lambda content: content["evaluations"][0].pop("ids")), "evaluation lacks ids"),
        (broken(lambda content: content["training"].update(curve=[{"step": 0}])), "lacks 'loss'"),
        (broken(lambda content: content["attention_pattern"].update(ahead=[[0.1], [0.1, 0.2]])), "heads"),
        (broken(mix_up_lengths), "[19, 20] items"),
        (broken(repeat_an_id), "19 different ids"),
        (broken(answer_half), "not all 0 or 1"),
    ],
)
def test_what_cannot_be_read_is_named_and_left_out(run, text, reason):
    (run / "cells" / "odd.json").write_text(text)
    cells, notes = read_cells([run])
    assert len(cells) == 7
    assert len(notes) == 1
    assert "odd.json was left out" in notes[0]
    assert reason in notes[0]


def test_files_on_their_way_are_no_cells(run):
    (run / "cells" / ".a.json.partial").write_text("{")
    (run / "cells" / ".b.json").write_text("{")
    assert read_cells([run])[1] == []


def test_the_same_cell_in_two_runs_counts_once(run, tmp_path):
    other = write_cells(tmp_path / "other", made_up_sweep(items=20, seeds=(2, 3)))
    cells, notes = read_cells([run, other])
    assert len(cells) == 9
    assert len(notes) == 3  # untuned, and both arms of seed 2
    assert all("is the same cell" in note for note in notes)


def test_seeds_with_other_settings_are_pointed_out(tmp_path):
    contents = made_up_sweep(items=20)
    contents[-1]["settings"]["steps"] = 200
    _, notes = read_cells([write_cells(tmp_path, contents)])
    assert len(notes) == 1
    assert "other settings" in notes[0]
    assert "(steps)" in notes[0]


def test_no_cell_at_all_is_an_error(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "a.json").write_text("{")
    with pytest.raises(ReportError, match=r"a\.json was left out.*segattn reproduce"):
        read_cells([tmp_path])
